"""From runs to numbers: mean, deviation and count of every cell, which tables and figures view."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts.jobs.protocols import SHIFTS, Protocol, dataset_rank
from scripts.reporting.results import CLASS_METRICS, policy_of

if TYPE_CHECKING:
    import pandas as pd

# Names of means, used in place of a dataset's name.
MEAN, MEAN_TARGETS, MEAN_SHIFTS = "mean", "mean_targets", "mean_shifts"
MEANS = (MEAN, MEAN_TARGETS, MEAN_SHIFTS)


class Stat(NamedTuple):
    """Mean and sample standard deviation (ddof = 1; None for one value) of ``n`` values."""

    mean: float
    std: float | None
    n: int


def _stdev(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def harmonic_mean(base: float, novel: float) -> float:
    """Return 2bn / (b + n), 0 when both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def _by_seed(accuracies: pd.DataFrame) -> dict[int, float]:
    """Return the mean over datasets for each seed that all of them have."""
    whole = accuracies.dropna()
    return dict(zip(whole.index, map(statistics.fmean, whole.to_numpy().tolist()), strict=True))


def _is_even(accuracies: pd.DataFrame) -> bool:
    """Whether all datasets have the same seeds."""
    return len(accuracies.dropna()) == len(accuracies.dropna(how="all"))


def summarise(accuracies: pd.DataFrame) -> Stat:
    """Return the mean over datasets of their means over seeds.

    The deviation is that of the single seeds' means over datasets. It is None when the datasets do
    not have the same seeds, since it would then belong to other numbers than the mean.

    Args:
        accuracies: One row per seed, one column per dataset; NaN where there is no run.
    """
    # statistics, not pandas: its sums are exact, so that the order of runs changes no digit.
    means = [statistics.fmean(column.dropna()) for _, column in accuracies.items()]
    std = _stdev(list(_by_seed(accuracies).values())) if _is_even(accuracies) else None
    return Stat(statistics.fmean(means), std, int(accuracies.count().min()))


def summarise_hm(base: pd.DataFrame, novel: pd.DataFrame) -> Stat:
    """Return the harmonic mean of two halves' accuracies, both as for `summarise`.

    The value is of the *means over seeds*, the field's convention; the deviation is that of the
    harmonic means of the single seeds, over the seeds that have both.
    """
    value = harmonic_mean(summarise(base).mean, summarise(novel).mean)
    if not (_is_even(base) and _is_even(novel)):
        return Stat(value, None, summarise(novel).n)
    of_base, of_novel = _by_seed(base), _by_seed(novel)
    paired = [harmonic_mean(of_base[seed], of_novel[seed]) for seed in of_base if seed in of_novel]
    return Stat(value, _stdev(paired), len(paired))


def score(runs: pd.DataFrame, protocol: Protocol, source: str = "") -> pd.DataFrame:
    """Return all numbers of a protocol, a series' datasets in table order and its means last.

    ``source`` is the training dataset of a protocol that crosses to others; it counts neither as
    target nor as shift. One row per number: series, trainer, cfg, val_policy, dataset (or the name
    of a mean), shots, metric, and the fields of `Stat`, with NaN for no deviation.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for series, own in runs.groupby("series", sort=False):
        first = own.iloc[0]
        named = {"series": series, "trainer": first.trainer, "cfg": first.cfg}
        named["val_policy"] = policy_of(first.result)  # the series' label tells policies apart
        found = [
            {**named, "dataset": place, "shots": shots, "metric": metric, **stat._asdict()}
            for shots, part in own.groupby("shots")
            for place, metric, stat in _stats(part, protocol, source)
        ]
        rows += sorted(found, key=_table_order)
    # If no number has a deviation the column would hold None, which cannot be formatted.
    return pd.DataFrame(rows).astype({"std": float})


def _table_order(row: dict[str, Any]) -> tuple[Any, ...]:
    is_mean = row["dataset"] in MEANS
    return (True,) if is_mean else (False, dataset_rank(row["dataset"]))


def _stats(runs: pd.DataFrame, protocol: Protocol, source: str) -> Iterator[tuple[str, str, Stat]]:
    """Yield place, metric and number for the runs of one series and number of shots."""
    metrics = list(dict.fromkeys(CLASS_METRICS[protocol.classes_of(s)] for s in protocol.stages))
    # A source evaluated as its own target counts once, by its training run: runs are sorted by
    # stage, and "test" comes before "train".
    runs = runs.drop_duplicates(["dataset", "metric", "seed"], keep="last")
    tables = {  # seeds x datasets
        metric: part.pivot(index="seed", columns="dataset", values="accuracy")
        for metric, part in runs.groupby("metric")
    }
    for place, datasets in _places(runs, protocol, source, len(metrics)):
        halves = {
            metric: tables[metric][[name for name in datasets if name in tables[metric]]]
            for metric in metrics
            if metric in tables
        }
        halves = {metric: table for metric, table in halves.items() if table.size}
        stats = {metric: summarise(table) for metric, table in halves.items()}
        yield from ((place, metric, stat) for metric, stat in stats.items())
        if protocol.base_to_novel and len(stats) == len(metrics):
            hm = summarise_hm(halves["base"], halves["novel"])
            if place == MEAN and None in (stats["base"].std, stats["novel"].std):
                hm = hm._replace(n=stats["novel"].n)  # seeds were not compared in pairs
            yield place, "hm", hm


def _places(
    runs: pd.DataFrame, protocol: Protocol, source: str, metrics: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each dataset and mean, with the datasets that it is the mean of."""
    datasets = sorted(runs.dataset.unique(), key=dataset_rank)
    for name in datasets:
        yield name, [name]
    if protocol.crosses:
        shifts = [name for name in datasets if name in SHIFTS]
        targets = [name for name in datasets if name not in (*shifts, source)]
        means = {MEAN_TARGETS: targets, MEAN_SHIFTS: shifts}
    else:  # over the datasets that have every stage
        counts = runs.groupby("dataset").metric.nunique()
        means = {MEAN: [name for name in datasets if counts[name] == metrics]}
    yield from ((name, over) for name, over in means.items() if over)
