"""Finished runs, found by their directories, and the statistics over their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dassl.names import check_availability
from scripts.jobs.protocols import (
    ALL_IMAGES,
    PROTOCOLS,
    RunKey,
    dataset_rank,
    source_of,
)
from scripts.reporting.result_files import read_result


@dataclass(frozen=True)
class Selection:
    """Which runs a report is about; an empty tuple selects all there are.

    Attributes:
        protocol: Protocol name.
        output: Directory that the run directories are under.
        trainers: Trainer names.
        datasets: Config names of datasets.
        cfg: Stems of trainer config files.
        shots: Images per class.
        seeds: Seeds; also the ones whose absence is reported.
        must_exist: Whether a trainer or stem without any finished run is an error, as a typing
            error of a reader is; where jobs may have failed, it only is a row less.
    """

    protocol: str
    output: Path
    trainers: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    cfg: tuple[str, ...] = ()
    shots: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    must_exist: bool = True

    def accepts(self, key: RunKey) -> bool:
        """Tell whether a run is selected."""
        wanted = (
            (self.trainers, key.trainer),
            (self.datasets, key.dataset),
            (self.cfg, key.cfg),
            (self.shots, key.shots),
            (self.seeds, key.seed),
        )
        return all(not values or value in values for values, value in wanted)


class Series(NamedTuple):
    """Runs under one label. ``shots`` is None where shots are a column of the table."""

    trainer: str
    cfg: str
    shots: int | None


class Cell(NamedTuple):
    """One number of a table: runs that differ in nothing but the seed."""

    series: Series
    dataset: str
    stage: str
    shots: int


@dataclass(frozen=True)
class Run:
    """A finished run: its identity, its directory, its ``result.json``."""

    key: RunKey
    directory: Path
    result: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Accuracy in percent."""
        return float(self.result["metrics"]["accuracy"])

    @property
    def cell(self) -> Cell:
        """Cell of the table that the run belongs to."""
        key = self.key
        shots = None if key.protocol == "few_shot" else key.shots
        return Cell(Series(key.trainer, key.cfg, shots), key.dataset, key.stage, key.shots)

    @property
    def source(self) -> str:
        """Dataset the evaluated model was trained on; its own for a training run.

        Where nothing was trained, it is the one whose shifted sibling was evaluated.
        """
        protocol = PROTOCOLS[self.key.protocol]
        if self.key.stage == protocol.train_stage:
            return self.key.dataset
        trained = RunKey.parse(str(self.result.get("model_dir") or ""))
        if trained is None and not protocol.train_stage:
            return source_of(self.key.dataset)
        return trained.dataset if trained else ""


Cells = dict[Cell, dict[int, Run]]


class Stat(NamedTuple):
    """Mean and sample standard deviation (ddof = 1; None for one value) of ``n`` values."""

    mean: float
    std: float | None
    n: int


def run_directories(selection: Selection) -> Iterator[Path]:
    """Yield the selected directories that have a ``result.json``, whatever is in it."""
    base = selection.output / selection.protocol
    for file in sorted(base.glob("*/*/shots_*/*/*/seed*/result.json")):
        key = RunKey.parse(file.parent)
        if key is not None and key.stage in PROTOCOLS[key.protocol].stages:
            if selection.accepts(key):
                yield file.parent


def collect(selection: Selection) -> list[Run]:
    """Return the finished runs of a selection in table order.

    Raises:
        ValueError: The protocol is unknown, or a selected trainer or stem has no finished run.
        LookupError: Nothing finished is there.
    """
    check_availability(selection.protocol, PROTOCOLS, "--protocol")
    base = selection.output / selection.protocol
    runs: list[Run] = []
    found: set[tuple[str, str]] = set()
    for file in base.glob("*/*/shots_*/*/*/seed*/result.json"):
        key = RunKey.parse(file.parent)
        result = read_result(file.parent) if key else None
        if key is None or result is None:
            continue
        if key.stage not in PROTOCOLS[key.protocol].stages:
            continue  # the first stage of another run
        found.add((key.trainer, key.cfg))
        if selection.accepts(key):
            runs.append(Run(key, file.parent, result))
    if found and selection.must_exist:
        _check_names(selection, found, f" under {base}")
    if not runs:
        raise LookupError(f"No finished run of {selection.protocol} under {base} is selected.")

    def rank(run: Run) -> tuple[Any, ...]:
        key = run.key
        series = (*_place(key.trainer, selection.trainers), *_place(key.cfg, selection.cfg))
        return (*series, dataset_rank(key.dataset), key.stage, key.shots, key.seed)

    return sorted(runs, key=rank)


def _place(name: str, selected: tuple[str, ...]) -> tuple[int, str]:
    """Sort key: as selected, by name where nothing is."""
    return (selected.index(name) if name in selected else len(selected), name)


def _check_names(selection: Selection, found: set[tuple[str, str]], where: str) -> None:
    for name in selection.trainers:
        check_availability(name, sorted({trainer for trainer, _ in found}), "--trainer", where)
    stems = {cfg for trainer, cfg in found if trainer in (selection.trainers or (trainer,))}
    for name in selection.cfg:
        check_availability(name, sorted(stems), "--cfg", where)


def group(runs: Iterable[Run]) -> Cells:
    """Put runs into their cells, by seed."""
    cells: Cells = {}
    for run in runs:
        cells.setdefault(run.cell, {})[run.key.seed] = run
    return cells


def accuracies(cell: dict[int, Run]) -> dict[int, float]:
    """Return accuracy by seed."""
    return {seed: run.accuracy for seed, run in cell.items()}


def summarise(values: Sequence[float]) -> Stat:
    """Return mean, sample standard deviation and count of a non-empty sequence."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Stat(statistics.fmean(values), std, len(values))


def harmonic_mean(base: float, novel: float) -> float:
    """Return 2bn / (b + n), 0 when both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def summarise_hm(base: dict[int, float], novel: dict[int, float]) -> Stat:
    """Return the harmonic mean of two accuracies given by seed.

    The value is of the *means over seeds*, the field's convention; the deviation is that of the
    harmonic means of the single seeds, over the seeds that have both.
    """
    value = harmonic_mean(statistics.fmean(base.values()), statistics.fmean(novel.values()))
    paired = [harmonic_mean(base[seed], novel[seed]) for seed in base if seed in novel]
    return Stat(value, statistics.stdev(paired) if len(paired) > 1 else None, len(paired))


def average_by_seed(cells: Sequence[dict[int, float]]) -> dict[int, float]:
    """Return the mean over datasets for each seed that all of them have."""
    seeds = set.intersection(*(set(cell) for cell in cells)) if cells else set()
    return {seed: statistics.fmean(cell[seed] for cell in cells) for seed in sorted(seeds)}


def summarise_datasets(cells: Sequence[dict[int, float]]) -> Stat:
    """Return the mean over datasets of their means over seeds.

    The deviation is that of the single seeds' means over datasets; it is None when the datasets
    do not have the same seeds, as it would then belong to other numbers than the mean.
    """
    value = statistics.fmean(statistics.fmean(cell.values()) for cell in cells)
    by_seed = average_by_seed(cells)
    same = all(set(cell) == set(by_seed) for cell in cells)
    std = statistics.stdev(by_seed.values()) if same and len(by_seed) > 1 else None
    return Stat(value, std, min(len(cell) for cell in cells))


def series_names(series: Iterable[Series], protocol: str) -> dict[Series, str]:
    """Return a label for each series: the trainer, and only what else is worth saying.

    The config file is named where a trainer has several, or one that is not the protocol's own;
    the number of shots where it differs.
    """
    ordered = list(dict.fromkeys(series))
    names = {}
    for one in ordered:
        same = [other for other in ordered if other.trainer == one.trainer]
        extra = []
        if {other.cfg for other in same} != {protocol}:
            extra.append(one.cfg)
        if len({other.shots for other in ordered}) > 1:
            extra.append("all images" if one.shots == ALL_IMAGES else f"{one.shots} shots")
        names[one] = f"{one.trainer} ({', '.join(extra)})" if extra else one.trainer
    return names
