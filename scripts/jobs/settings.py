"""From the driver's command line to checked settings: names that exist, defaults filled in."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl.names import check_availability
from dassl.tracking.available import TRACKERS, check_installed
from scripts.jobs.protocols import (
    FEW_SHOT_DATASETS,
    PROTOCOLS,
    Protocol,
    dataset_rank,
    read_integers,
    read_shots,
    split_words,
    work_folder,
)

CROSSING = ", ".join(row.name for row in PROTOCOLS.values() if row.crosses)

# Keys that the protocol or a flag of the driver sets, with the flag. Overridden by an option, the
# run would lie in a directory whose name says otherwise.
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
    "TRACK": "--track",
    "TRAINER.NAME": "--trainer",
}


@dataclass(frozen=True)
class Settings:
    """What the command line asks for, with names checked and paths absolute."""

    protocol: Protocol
    rows: tuple[tuple[str, str], ...]  # trainers, each with the stem of a config file of it
    datasets: tuple[str, ...]  # to train on; just the source where the protocol crosses to others
    targets: tuple[str, ...]  # to evaluate on where the protocol crosses to others
    shots: tuple[int, ...]  # images per class
    seeds: tuple[int, ...]
    root: Path
    output: Path
    options: tuple[str, ...]  # trailing KEY VALUE options, for every job
    repo: Path  # jobs run here
    train_command: tuple[str, ...]  # program that trains, before its flags
    track: tuple[str, ...] = ()  # trackers of every job; train.py's default if there are none
    relative: bool = True  # print paths below ``repo`` relative to it

    @property
    def trainers(self) -> tuple[str, ...]:
        """The trainers of all rows, each once."""
        return tuple(dict.fromkeys(trainer for trainer, _ in self.rows))

    @property
    def cfgs(self) -> tuple[str, ...]:
        """The stems of all rows, each once."""
        return tuple(dict.fromkeys(cfg for _, cfg in self.rows))

    def dataset_file(self, dataset: str) -> Path:
        """Return the config file of a dataset."""
        return self.repo / "configs" / "datasets" / f"{dataset}.yaml"

    def trainer_file(self, trainer: str, cfg: str) -> Path:
        """Return a config file of a trainer."""
        return self.repo / "configs" / "trainers" / trainer / f"{cfg}.yaml"

    def shown(self, path: Path) -> str:
        """Return a path as it is written in a command."""
        if self.relative and path.is_relative_to(self.repo):
            return str(path.relative_to(self.repo))
        return str(path)


def config_stems(directory: Path) -> list[str]:
    """Return the names of the YAML files in a directory, the field's datasets first."""
    return sorted((path.stem for path in directory.glob("*.yaml")), key=dataset_rank)


def default_targets(source: str, existing: Sequence[str], protocol: Protocol) -> list[str]:
    """Return the datasets that a source's model is evaluated on when none are named.

    A user's own dataset has none: only its owner knows its shifts.
    """
    candidates = protocol.targets_of(source)
    if not candidates:
        raise ValueError(f"--targets: name the datasets to evaluate a model of {source!r} on.")
    return [name for name in candidates if name in existing]


def choose_datasets(
    args: argparse.Namespace, existing: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the datasets to train on and the targets, if the flags fit the protocol."""
    named = split_words(args.datasets)
    targets = split_words(args.targets)
    protocol = PROTOCOLS[args.protocol]
    if protocol.crosses:
        # --datasets may name the source as well, as it does in the other protocols.
        if args.source and named and named != [args.source]:
            raise ValueError("--datasets and --source name different sources; give one of them.")
        if len(named) > 1:
            raise ValueError(f"--datasets: {protocol.name} trains on one source; see --targets.")
        datasets = [args.source] if args.source else named or ["imagenet"]
    elif args.source or targets:
        flag = "--source" if args.source else "--targets"
        raise ValueError(f"{flag} is for --protocol {CROSSING}, not {args.protocol}.")
    else:
        datasets = named or [name for name in FEW_SHOT_DATASETS if name in existing]
    # If neither flag is given, the default of --source is checked.
    flag = "--datasets" if named else "--source"
    for name in datasets:
        check_availability(name, existing, flag, " (configs/datasets)")
    for name in targets:
        check_availability(name, existing, "--targets", " (configs/datasets)")
    if protocol.crosses and not targets:
        targets = default_targets(datasets[0], existing, protocol)
    if not datasets or (protocol.crosses and not targets):
        raise ValueError("configs/datasets has none of the default datasets; name some.")
    return tuple(datasets), tuple(targets)


def choose_rows(
    args: argparse.Namespace, protocol: Protocol, configs: Path
) -> tuple[tuple[str, str], ...]:
    """Return the trainers and config files that the flags name, if all of them are there.

    ``configs`` is the folder of the trainers' files. A missing one is an error now, not after
    hours of jobs.
    """
    if args.rows and (args.trainer or args.cfg):
        raise ValueError("--rows stands for --trainer and --cfg; give it or them.")
    flags = ("--rows", "--rows") if args.rows else ("--trainer", "--cfg")
    if args.rows:
        words = [word.partition("/") for word in split_words(args.rows)]
        rows = [(trainer, cfg) for trainer, _, cfg in words]
    else:
        trainers = split_words(args.trainer) or [protocol.trainer]
        rows = list(itertools.product(trainers, split_words(args.cfg) or [protocol.name]))
    known = sorted(path.name for path in configs.glob("*") if path.is_dir())
    for trainer, cfg in rows:
        check_availability(trainer, known, flags[0], " (configs/trainers)")
        check_availability(cfg, config_stems(configs / trainer), flags[1], f" for {trainer}")
    return tuple(dict.fromkeys(rows))


def read_settings(
    args: argparse.Namespace, options: list[str], repo: Path, train_command: Sequence[str] | None
) -> Settings:
    """Check the command line and fill in defaults; errors name flag, value and what is allowed."""
    check_availability(args.protocol, PROTOCOLS, "--protocol")
    protocol = PROTOCOLS[args.protocol]
    configs = repo / "configs"
    rows = choose_rows(args, protocol, configs / "trainers")
    datasets, targets = choose_datasets(args, config_stems(configs / "datasets"))
    track = tuple(split_words(args.track))
    for name in track:
        check_availability(name, TRACKERS, "--track")
    check_installed(track)  # once, instead of in the log of every job
    shots = read_shots(args.shots) if args.shots else protocol.shots
    # Commands are printed to be pasted; inside the repository they can be shorter.
    relative = Path.cwd() == repo
    train = "train.py" if relative else str(repo / "train.py")
    if not relative:
        # Jobs run in the repository; a file named from elsewhere must still be found.
        options = [str(Path(word).resolve()) if Path(word).is_file() else word for word in options]
    return Settings(
        protocol=protocol,
        rows=rows,
        datasets=datasets,
        targets=targets,
        shots=shots,
        seeds=read_integers("--seeds", args.seeds, least=0),
        root=(args.root or work_folder(repo) / "data").absolute(),
        output=(args.output or work_folder(repo) / "output").absolute(),
        options=check_options(options),
        repo=repo,
        train_command=tuple(train_command or (sys.executable, train)),
        track=track,
        relative=relative,
    )


def check_options(words: list[str]) -> tuple[str, ...]:
    """Check the form of trailing KEY VALUE options, and refuse keys that the driver sets itself."""
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
