"""From runs to numbers: flat rows of mean, deviation and count, which tables and figures view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from scripts.jobs.protocols import PROTOCOLS, SHIFTS, Protocol, dataset_rank
from scripts.reporting.results import (
    Cell,
    Cells,
    Series,
    Stat,
    accuracies,
    average_by_seed,
    harmonic_mean,
    summarise,
    summarise_datasets,
    summarise_hm,
)

# Names that stand for a mean in the place of a dataset's name.
MEAN, MEAN_TARGETS, MEAN_SHIFTS = "mean", "mean_targets", "mean_shifts"
MEANS = (MEAN, MEAN_TARGETS, MEAN_SHIFTS)

# Metric of a stage in protocols without tables of their own, by the classes it is tested on.
CLASS_METRICS = {"base": "base", "new": "novel", "all": "accuracy"}

BySeed = dict[int, float]


@dataclass(frozen=True)
class Score:
    """One number: a metric of a series on a dataset, or on a mean over datasets."""

    series: Series
    dataset: str
    shots: int
    metric: str
    stat: Stat


def scores(protocol: str, cells: Cells, source: str = "") -> list[Score]:
    """Return all numbers of a protocol, a series' datasets in table order and its means last.

    Args:
        protocol: Protocol name.
        cells: Finished runs.
        source: Training dataset of a protocol that crosses over to others; it counts neither as
            target nor as shift.
    """
    found: list[Score] = []
    for series in dict.fromkeys(cell.series for cell in cells):
        own = {cell: accuracies(runs) for cell, runs in cells.items() if cell.series == series}
        if PROTOCOLS[protocol].base_to_novel:
            found += _base2novel(PROTOCOLS[protocol], series, own)
        elif protocol == "few_shot":
            found += _few_shot(series, own)
        elif PROTOCOLS[protocol].crosses:
            found += _cross_dataset(series, own, source)
        else:
            found += _by_classes(PROTOCOLS[protocol], series, own)
    return found


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=dataset_rank)


def _base2novel(protocol: Protocol, series: Series, cells: dict[Cell, BySeed]) -> Iterator[Score]:
    """Base, novel, HM; the means are over the datasets that have both halves."""
    shots = series.shots or 0
    bases: list[BySeed] = []
    novels: list[BySeed] = []
    for dataset in _ordered(cell.dataset for cell in cells):
        base = cells.get(Cell(series, dataset, protocol.train_stage, shots), {})
        novel = cells.get(Cell(series, dataset, protocol.test_stage, shots), {})
        if base:
            yield Score(series, dataset, shots, "base", summarise(list(base.values())))
        if novel:
            yield Score(series, dataset, shots, "novel", summarise(list(novel.values())))
        if base and novel:
            yield Score(series, dataset, shots, "hm", summarise_hm(base, novel))
            bases.append(base)
            novels.append(novel)
    if bases:
        base_mean, novel_mean = summarise_datasets(bases), summarise_datasets(novels)
        hm = Stat(harmonic_mean(base_mean.mean, novel_mean.mean), None, novel_mean.n)
        if base_mean.std is not None and novel_mean.std is not None:
            by_seed = summarise_hm(average_by_seed(bases), average_by_seed(novels))
            hm = Stat(hm.mean, by_seed.std, by_seed.n)
        for metric, stat in (("base", base_mean), ("novel", novel_mean), ("hm", hm)):
            yield Score(series, MEAN, shots, metric, stat)


def _few_shot(series: Series, cells: dict[Cell, BySeed]) -> Iterator[Score]:
    """Accuracy per dataset and shots, and the mean over datasets per shots."""
    for dataset in _ordered(cell.dataset for cell in cells):
        for cell in sorted(cells, key=lambda cell: cell.shots):
            if cell.dataset == dataset:
                stat = summarise(list(cells[cell].values()))
                yield Score(series, dataset, cell.shots, "accuracy", stat)
    for shots in sorted({cell.shots for cell in cells}):
        values = [by_seed for cell, by_seed in cells.items() if cell.shots == shots]
        yield Score(series, MEAN, shots, "accuracy", summarise_datasets(values))


def _cross_dataset(series: Series, cells: dict[Cell, BySeed], source: str) -> Iterator[Score]:
    """Accuracy on source, targets and shifts, and the two means."""
    shots = series.shots or 0
    by_dataset = {cell.dataset: by_seed for cell, by_seed in cells.items()}
    for dataset in _ordered(by_dataset):
        stat = summarise(list(by_dataset[dataset].values()))
        yield Score(series, dataset, shots, "accuracy", stat)
    shifts = [values for name, values in by_dataset.items() if name in SHIFTS]
    targets = [
        values for name, values in by_dataset.items() if name not in SHIFTS and name != source
    ]
    if targets:
        yield Score(series, MEAN_TARGETS, shots, "accuracy", summarise_datasets(targets))
    if shifts:
        yield Score(series, MEAN_SHIFTS, shots, "accuracy", summarise_datasets(shifts))


def _by_classes(protocol: Protocol, series: Series, cells: dict[Cell, BySeed]) -> Iterator[Score]:
    """Accuracy per stage; the means are over the datasets that have every stage."""
    shots = series.shots or 0
    stages = {stage: CLASS_METRICS[protocol.classes_of(stage)] for stage in protocol.stages}
    by_place = {(cell.dataset, cell.stage): by_seed for cell, by_seed in cells.items()}
    datasets = _ordered(dataset for dataset, _ in by_place)
    for dataset in datasets:
        for stage, metric in stages.items():
            if by_seed := by_place.get((dataset, stage)):
                yield Score(series, dataset, shots, metric, summarise(list(by_seed.values())))
    whole = [name for name in datasets if all((name, stage) in by_place for stage in stages)]
    for stage, metric in stages.items() if whole else ():
        stat = summarise_datasets([by_place[name, stage] for name in whole])
        yield Score(series, MEAN, shots, metric, stat)
