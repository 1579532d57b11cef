"""From settings to jobs: the runs that a protocol is made of, and what each builds on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace

from dassl.config.inputs import DATA, START, WEIGHTS, InputCheck, places_of
from scripts.jobs.content import ContentReader
from scripts.jobs.job import Job
from scripts.jobs.protocols import RunKey
from scripts.jobs.settings import Settings

FIRST_STAGE = "train"  # directory of first stages where a protocol has no training of its own


@dataclass
class Planner:
    """Expands settings into jobs, each after the training job that it needs.

    A trainer whose config file sets FIRST_STAGE.CONFIG, such as ``LP/fft``, starts from a run of
    that trainer with that file, on the same dataset, shots and seed. The first stage is an ordinary
    training job, planned once even if it is also asked for by itself.
    """

    settings: Settings
    _read: ContentReader = field(init=False)
    _training: dict[RunKey, Job] = field(default_factory=dict)
    _check: InputCheck = field(default_factory=InputCheck)

    def __post_init__(self) -> None:
        """Set up the reader, which reads no file yet."""
        self._read = ContentReader(self.settings.repo, self.settings.root)

    def jobs(self) -> list[Job]:
        """Return all jobs of the protocol in the order they should start."""
        return list(self._expand())

    def _expand(self) -> Iterator[Job]:
        settings, protocol = self.settings, self.settings.protocol
        runs = itertools.product(settings.datasets, settings.rows, settings.shots, settings.seeds)
        for dataset, (trainer, cfg), shots, seed in runs:
            stage = protocol.train_stage or FIRST_STAGE
            key = RunKey(protocol.name, stage, dataset, shots, trainer, cfg, seed)
            known = len(self._training)  # jobs behind this one are new and not yielded yet
            trained = self._train(key) if protocol.train_stage else self._first_stage(key)
            yield from list(self._training.values())[known:]
            # Evaluations follow their training at once, so that first results come early.
            if protocol.test_stage:
                for target in settings.targets or (dataset,):
                    test = replace(key, stage=protocol.test_stage, dataset=target)
                    yield self._job(test, trained, evaluates=True)

    def _train(self, key: RunKey, chain: tuple[RunKey, ...] = ()) -> Job:
        """Return a training job; it and its first stages go to ``_training`` in starting order."""
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

    def _job(self, key: RunKey, parent: Job | None = None, *, evaluates: bool = False) -> Job:
        settings = self.settings
        options = list(settings.options)
        # Shots mean nothing for a mere target, whose training images are not used.
        if not evaluates or key.dataset in settings.datasets:
            options += ["DATASET.NUM_SHOTS", str(key.shots)]
        options += ["DATASET.SUBSAMPLE_CLASSES", settings.protocol.classes_of(key.stage)]
        files = settings.dataset_file(key.dataset), settings.trainer_file(key.trainer, key.cfg)
        content = {
            "run": list(astuple(key)),
            **self._read.decisive(*files, options),
            "parent": parent.fingerprint if parent else "",
        }
        if parent is not None and not evaluates:
            # Added after the fingerprint's content, which has the first stage's own fingerprint:
            # where that run lies must not matter.
            options = ["FIRST_STAGE.DIR", settings.shown(parent.directory), *options]
        start = parent.directory if parent is not None else ""
        places = places_of({DATA: settings.root, START: start, WEIGHTS: start})
        canonical = json.dumps(content, sort_keys=True, default=str)
        return Job(
            key,
            key.directory(settings.output),
            self._flags(key, parent if evaluates else None, evaluates),
            tuple(options),
            hashlib.sha256(canonical.encode()).hexdigest(),
            parent,
            content=content,
            places={**places, "repository": str(settings.repo)},
            check=self._check,
        )

    def _flags(self, key: RunKey, evaluated: Job | None, evaluates: bool) -> tuple[str, ...]:
        """Return program and flags; an evaluation without a job is of the pre-trained model."""
        settings = self.settings
        flags = {
            "--root": settings.shown(settings.root),
            "--seed": str(key.seed),
            "--trainer": key.trainer,
            "--dataset-config-file": settings.shown(settings.dataset_file(key.dataset)),
            "--config-file": settings.shown(settings.trainer_file(key.trainer, key.cfg)),
            "--output-dir": settings.shown(key.directory(settings.output)),
        }
        if evaluated is not None:
            flags["--model-dir"] = settings.shown(evaluated.directory)
        words = [word for pair in flags.items() for word in pair]
        # In front of other flags: it takes all words up to the next one.
        track = ["--track", *settings.track] if settings.track else []
        return (*settings.train_command, *track, *words, *["--eval-only"] * evaluates)
