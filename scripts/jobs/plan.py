"""Jobs of a protocol: expanding them, their command lines, and when one is done.

A directory that exists proves nothing. A job is done when all of these hold:

* its ``result.json`` is whole and says ``"status": "complete"``;
* the ``job.json`` that the driver wrote beside it before the start carries the fingerprint the
  job has now: a hash of what the two config files and their ``_BASE_`` *contain* (comments,
  spelling of the YAML, which of the files a key stands in and the ``PER_DATASET`` entries of other
  datasets do not count), of the files they name (class descriptions, class names, a backbone), of
  the trailing options, of seed, shots, classes and trainer, and of the training job's fingerprint;
* what the run itself recorded in ``identity.json`` that it read, the dataset's lists, folders and
  images among it, is still the same;
* for an evaluation or a second stage, the training run it needs is done and is still the very run
  it was made from (``job.json`` keeps the hash of that run's ``result.json``).

Keys that cannot change a result, such as the device and the data directory, are no part of it (see
``dassl.config.identity``), nor is the revision of the code.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dassl.config.identity import IDENTITY_NAME, digest_of, shown
from dassl.config.inputs import DATA, START, WEIGHTS, InputCheck, places_of
from dassl.results import RESULT_NAME, no_result, read_identity, read_object, read_result
from dassl.utils.files import atomic_write
from scripts.jobs.content import ContentReader, content_changes
from scripts.jobs.protocols import Protocol, RunKey

PREVIOUS, RECORD = "result.previous.json", "job.json"
LOG, RESUME = "job.log", "resume.pth.tar"
FIRST_STAGE = "train"  # directory of first stages where a protocol has no training of its own

# Keys that the protocol or a flag of the driver sets, with the flag. Overriding them behind the
# driver's back would file a run under a directory that lies about it.
RESERVED = {
    "DATASET.NAME": "--datasets",
    "DATASET.NUM_SHOTS": "--shots",
    "DATASET.ROOT": "--root",
    "DATASET.SUBSAMPLE_CLASSES": "--protocol",
    "DEVICE": "--devices",
    "FIRST_STAGE.CONFIG": "a config file of the trainer (--cfg)",
    "FIRST_STAGE.DIR": "FIRST_STAGE.CONFIG in a config file of the trainer",
    "OUTPUT_DIR": "--output",
    "RESUME": "the run directory",
    "SEED": "--seeds",
    "TRAINER.NAME": "--trainer",
}


@dataclass(frozen=True)
class Settings:
    """What the command line asks for, with names checked and paths absolute.

    Attributes:
        protocol: The protocol to expand.
        trainers: Trainer names.
        cfgs: Stems of the trainers' config files; each trainer runs with each.
        datasets: Datasets to train on; cross_dataset has one, its source.
        targets: Datasets to evaluate a cross-dataset run on.
        shots: Images per class.
        seeds: Seeds.
        root: Data directory.
        output: Directory that the run directories are under.
        options: Trailing KEY VALUE options, for every job.
        repo: Repository; jobs run there and paths below it are printed relative to it.
        train_command: Program that trains, before its flags.
        relative: Whether to print paths below ``repo`` relative to it.
    """

    protocol: Protocol
    trainers: tuple[str, ...]
    cfgs: tuple[str, ...]
    datasets: tuple[str, ...]
    targets: tuple[str, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    root: Path
    output: Path
    options: tuple[str, ...]
    repo: Path
    train_command: tuple[str, ...]
    relative: bool = True

    def dataset_file(self, dataset: str) -> Path:
        """Return the config file of a dataset."""
        return self.repo / "configs" / "datasets" / f"{dataset}.yaml"

    def trainer_file(self, trainer: str, cfg: str) -> Path:
        """Return a config file of a trainer."""
        return self.repo / "configs" / "trainers" / trainer / f"{cfg}.yaml"

    def shown(self, path: Path) -> str:
        """Return a path as it is put into a command."""
        if self.relative and path.is_relative_to(self.repo):
            return str(path.relative_to(self.repo))
        return str(path)


@dataclass(frozen=True, eq=False)
class Job:
    """One run of ``train.py``.

    Attributes:
        key: Identity of the run.
        directory: Its own directory, absolute.
        flags: Program and flags, without the device's.
        options: Trailing options, the protocol's last.
        fingerprint: Hash of everything that decides the result (module docstring).
        parent: Training job that this one evaluates or starts from, or None.
        content: What the fingerprint is of.
        places: Where files that the run read are now, see ``dassl.config.inputs.places_of``.
        check: Looks at it; jobs of one driver share one.
    """

    key: RunKey
    directory: Path
    flags: tuple[str, ...]
    options: tuple[str, ...]
    fingerprint: str
    parent: Job | None = None
    content: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    check: InputCheck = field(default_factory=InputCheck)

    def __str__(self) -> str:
        """Return the run directory's parts, which name the job."""
        return str(self.key.directory(Path()))

    def command(self, device_flags: tuple[str, ...] = ()) -> list[str]:
        """Return the whole command line."""
        return [*self.flags, *device_flags, *self.options]

    @property
    def log(self) -> Path:
        """File that takes everything the job prints."""
        return self.directory / LOG

    def parent_digest(self) -> str:
        """Return the hash of the training run's result; empty for a training job."""
        if self.parent is None:
            return ""
        try:
            content = (self.parent.directory / RESULT_NAME).read_bytes()
        except FileNotFoundError:
            return "missing"
        return hashlib.sha256(content).hexdigest()

    def to_do(self) -> str:
        """Return why the job has to run; empty when it is done."""
        if self.parent is not None and self.parent.to_do():
            return "its training run is not done"
        result = read_result(self.directory)
        if result is None:
            return no_result(self.directory)
        record = read_object(self.directory / RECORD)
        if record is None:
            return f"result of unknown origin (no {RECORD})"
        changed = self._changed(record)
        if changed:
            return changed
        if record.get("parent_result") != self.parent_digest():
            return "its training run was repeated"
        return self._other_inputs(result)

    def _changed(self, record: dict[str, Any]) -> str:
        """Name the difference to what the driver recorded before the start; "" if there is none."""
        if record.get("fingerprint") == self.fingerprint:
            return ""
        before = record.get("content")
        if not isinstance(before, dict):  # of an older version
            return "config or options changed"
        lines = content_changes(before, self.content)
        return f"config or options changed: {shown(lines)}" if lines else ""

    def _other_inputs(self, result: dict[str, Any]) -> str:
        """Say what the run would read differently now; empty where it has not recorded any."""
        if "identity" not in result:  # of an older version
            return ""
        identity = read_identity(self.directory)
        if identity is None or digest_of(identity) != result["identity"]:
            return f"{IDENTITY_NAME} is missing or was changed after the run"
        return shown(self.check.changes(identity.get("inputs", {}), self.places))

    def begin(self, command: list[str]) -> None:
        """Record what is about to run and move what another run left out of the way."""
        before = read_object(self.directory / RECORD)
        if before is not None and self._changed(before):
            # train.py would see it too; without the file it need not say so.
            (self.directory / RESUME).unlink(missing_ok=True)
        stale = self.directory / RESULT_NAME
        if stale.exists():
            # Kept, because it may have cost hours, but under a name that no report reads.
            stale.replace(self.directory / PREVIOUS)
        record = {
            "format": 1,
            "fingerprint": self.fingerprint,
            "content": self.content,
            "parent_result": self.parent_digest(),
            "command": command,
        }
        with atomic_write(self.directory / RECORD) as file:
            file.write(json.dumps(record, indent=1, default=str) + "\n")


@dataclass
class Planner:
    """Expands settings into jobs, each after the training job that it needs.

    A trainer whose config file has FIRST_STAGE.CONFIG, as ``LP/fft``, starts from a run of that
    trainer with that file: on the same dataset, shots and seed, a training job like any other, and
    the same one where it is also asked for by itself.
    """

    settings: Settings
    _read: ContentReader = field(init=False)
    _training: dict[RunKey, Job] = field(default_factory=dict)
    _check: InputCheck = field(default_factory=InputCheck)

    def __post_init__(self) -> None:
        """Read no file yet."""
        self._read = ContentReader(self.settings.repo, self.settings.root)

    def jobs(self) -> list[Job]:
        """Return all jobs of the protocol in the order they should start.

        Raises:
            FileNotFoundError: A config file names a base or a first stage that does not exist.
            ValueError: A config file cannot be read.
        """
        return list(self._expand())

    def _expand(self) -> Iterator[Job]:
        settings, protocol = self.settings, self.settings.protocol
        runs = itertools.product(
            settings.datasets, settings.trainers, settings.cfgs, settings.shots, settings.seeds
        )
        for dataset, trainer, cfg, shots, seed in runs:
            stage = protocol.train_stage or FIRST_STAGE
            key = RunKey(protocol.name, stage, dataset, shots, trainer, cfg, seed)
            known = len(self._training)
            trained = self._train(key) if protocol.train_stage else self._first_stage(key)
            yield from list(self._training.values())[known:]
            yield from self._evaluations(key, trained)

    def _train(self, key: RunKey, chain: tuple[RunKey, ...] = ()) -> Job:
        """Return a training job; it and those before it are in ``_training``, in their order."""
        if key in chain:
            file = self.settings.shown(self.settings.trainer_file(key.trainer, key.cfg))
            raise ValueError(f"{file}: by FIRST_STAGE.CONFIG, it is its own first stage.")
        if key not in self._training:
            first = self._first_stage(key, (*chain, key))
            self._training[key] = self._job(key, first)
        return self._training[key]

    def _first_stage(self, key: RunKey, chain: tuple[RunKey, ...] = ()) -> Job | None:
        """Return the training job that a run starts from, if there is one."""
        file = self.settings.trainer_file(key.trainer, key.cfg)
        section = self._read.content(file).get("FIRST_STAGE")
        config = str(section.get("CONFIG") or "") if isinstance(section, dict) else ""
        if not config:
            return None
        trainer, _, cfg = config.partition("/")
        if not self.settings.trainer_file(trainer, cfg).is_file():
            raise FileNotFoundError(
                f"{self.settings.shown(file)}: FIRST_STAGE.CONFIG is {config!r}, but there is no "
                f"{self.settings.shown(self.settings.trainer_file(trainer, cfg))}."
            )
        return self._train(replace(key, trainer=trainer, cfg=cfg), chain)

    def _evaluations(self, key: RunKey, trained: Job | None) -> Iterator[Job]:
        protocol = self.settings.protocol
        if not protocol.test_stage:
            return
        for target in self.settings.targets or (key.dataset,):
            rest = (key.shots, key.trainer, key.cfg, key.seed)
            test = RunKey(key.protocol, protocol.test_stage, target, *rest)
            yield self._job(test, trained, evaluates=True)

    def _job(self, key: RunKey, parent: Job | None = None, *, evaluates: bool = False) -> Job:
        settings = self.settings
        directory = key.directory(settings.output)
        flags = {
            "--root": settings.shown(settings.root),
            "--seed": str(key.seed),
            "--trainer": key.trainer,
            "--dataset-config-file": settings.shown(settings.dataset_file(key.dataset)),
            "--config-file": settings.shown(settings.trainer_file(key.trainer, key.cfg)),
            "--output-dir": settings.shown(directory),
        }
        words = [*settings.train_command, *(word for pair in flags.items() for word in pair)]
        if evaluates and parent is not None:
            words += ["--model-dir", settings.shown(parent.directory)]
        words += ["--eval-only"] * evaluates
        options = list(settings.options)
        # A target has no shots of its own: its training images play no part.
        if not evaluates or key.dataset in settings.datasets:
            options += ["DATASET.NUM_SHOTS", str(key.shots)]
        options += ["DATASET.SUBSAMPLE_CLASSES", settings.protocol.classes_of(key.stage)]
        content = {
            "run": [getattr(key, part) for part in key.__dataclass_fields__],
            **self._read.decisive(
                settings.dataset_file(key.dataset),
                settings.trainer_file(key.trainer, key.cfg),
                options,
            ),
            "parent": parent.fingerprint if parent else "",
        }
        if parent is not None and not evaluates:
            # Where the first stage lies is no part of the fingerprint; what it is, is.
            options = ["FIRST_STAGE.DIR", settings.shown(parent.directory), *options]
        start = parent.directory if parent is not None else ""
        places = places_of({DATA: settings.root, START: start, WEIGHTS: start})
        places["repository"] = str(settings.repo)
        canonical = json.dumps(content, sort_keys=True, default=str)
        fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        return Job(
            *(key, directory, tuple(words), tuple(options), fingerprint, parent),
            content=content,
            places=places,
            check=self._check,
        )


def check_options(words: list[str]) -> tuple[str, ...]:
    """Check trailing KEY VALUE options as far as that goes without the config.

    Args:
        words: What followed ``--``.

    Raises:
        ValueError: A key without value, something that is no key, or a key the driver sets.
    """
    for key in words[::2]:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            raise ValueError(
                f"After -- come KEY VALUE pairs such as OPTIM.MAX_EPOCH 5, but {key!r} is no key."
                " Flags of the driver go before the --."
            )
        if key in RESERVED:
            raise ValueError(f"{key} is set by the driver; use {RESERVED[key]} instead.")
    if len(words) % 2:
        raise ValueError(f"Option {words[-1]!r} after -- has no value.")
    return tuple(words)
