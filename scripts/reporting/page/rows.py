"""Rows of the page's tables and points of its charts, from a section's scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.jobs.protocols import ALL_IMAGES, FEW_SHOT_DATASETS, SHIFTS
from scripts.reporting import published
from scripts.reporting.scores import MEAN, MEAN_SHIFTS, MEAN_TARGETS, MEANS
from scripts.reporting.sections import Section

# What readers see in place of the scores' own words.
METRIC_NAMES = {"base": "base", "novel": "novel", "hm": "HM", "accuracy": "accuracy"}
PLACE_NAMES = {
    MEAN: "mean of datasets",
    MEAN_TARGETS: "mean of targets",
    MEAN_SHIFTS: "mean of shifts",
}
_PRINTED_MEANS = {"targets": MEAN_TARGETS, "shifts": MEAN_SHIFTS}

Cell = tuple[str, int, str]  # dataset or mean, shots, metric
Printed = dict[Cell, tuple[float, str]]  # value and source


def shots_name(shots: int) -> str:
    """Return a number of shots as readers see it."""
    return "all" if shots == ALL_IMAGES else str(shots)


def table_rows(section: Section) -> list[dict[str, Any]]:
    """Return one row per number of a section, with the published number where one compares."""
    printed = {name: _printed(section, name) for name in section.series}
    rows = []
    scores = section.scores.to_dict("records")
    if len(section.datasets()) == 1:  # its mean would say the same again
        scores = [score for score in scores if score["dataset"] not in MEANS]
    for score in sorted(scores, key=lambda score: section.series.index(score["series"])):
        cell = (score["dataset"], score["shots"], score["metric"])
        value, source = printed[score["series"]].get(cell, (None, ""))
        rows.append(
            {
                "method": score["series"],
                "dataset": PLACE_NAMES.get(score["dataset"], score["dataset"]),
                "shots": shots_name(score["shots"]),
                "metric": METRIC_NAMES[score["metric"]],
                "seeds": int(score["n"]),
                "mean": round(score["mean"], 4),
                "std": _rounded(score["std"]),
                "published": value,
                "difference": None if value is None else round(score["mean"] - value, 4),
                "source": source,
            }
        )
    return rows


def curve_points(section: Section) -> list[dict[str, Any]]:
    """Return the table's rows for curves by shots, with zero-shot methods at 0 shots only."""
    zero_shot = section.zero_shot()
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in table_rows(section):
        shots = "0" if row["method"] in zero_shot else row["shots"]
        found.setdefault((row["method"], row["dataset"], shots), {**row, "shots": shots})
    return list(found.values())


def _rounded(value: float) -> float | None:
    return round(value, 4) if value == value else None  # NaN stands for no deviation


def _printed(section: Section, series: str) -> Printed:
    """Return the numbers that papers print for a series, where ours are made the same way."""
    own = section.scores[section.scores.series == series].iloc[0]
    protocol = section.protocol.name
    # Another config is another method, such as an ablation, and the suite is no one's benchmark.
    if section.suite or own.cfg != protocol:
        return {}
    found: Printed = {}
    for row in published.shown(protocol):
        same = published.trainer_of(row.method, protocol) == own.trainer
        if same and row.backbone == section.backbones.get(series):
            for cell, value in _cells(section, row):
                if cell[0] not in MEANS or series in _series_over(section, cell):
                    found.setdefault(cell, (round(value, 2), row.source))
    return found


def _cells(section: Section, row: published.Published) -> Iterator[tuple[Cell, float]]:
    """Yield what each number of a printed row is the value of."""
    shots = section.protocol.shots[0]
    for name, value in row.values.items():
        if name in METRIC_NAMES:
            yield (MEAN, shots, name), value
        elif name.isdecimal():
            yield (MEAN, int(name), "accuracy"), value
        else:
            yield (_PRINTED_MEANS.get(name, name), shots, "accuracy"), value
    for dataset, values in row.by_dataset.items():
        yield from (((dataset, shots, metric), value) for metric, value in values.items())


def _series_over(section: Section, cell: Cell) -> set[str]:
    """Return the series whose mean is over exactly the datasets of the papers' mean."""
    place, shots, metric = cell
    if place == MEAN:
        return section.covering(FEW_SHOT_DATASETS, metric, shots)
    if section.source != "imagenet":
        return set()
    wanted = [
        name
        for name in section.protocol.targets_of("imagenet")
        if (name in SHIFTS) == (place == MEAN_SHIFTS)
    ]
    rest = [name for name in section.datasets() if (name in SHIFTS) != (place == MEAN_SHIFTS)]
    return section.covering(wanted, metric, shots, aside=[section.source, *rest])


def points(section: Section) -> list[dict[str, Any]]:
    """Return one point per series and place, for charts of one number against another.

    Base-to-novel has ``base``, ``novel`` and ``hm``; a protocol that crosses to other datasets has
    ``source``, ``targets`` and ``shifts``, as far as there are such numbers.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for score in section.scores.to_dict("records"):
        if section.protocol.crosses:
            names = {section.source: "source", MEAN_TARGETS: "targets", MEAN_SHIFTS: "shifts"}
            place, axis = "", names.get(score["dataset"], "")
        else:
            place = PLACE_NAMES.get(score["dataset"], score["dataset"])
            axis = score["metric"]
        if not axis:
            continue
        shots = shots_name(score["shots"])
        point = found.setdefault(
            (score["series"], place, shots),
            {"method": score["series"], "dataset": place, "shots": shots},
        )
        point[axis] = round(score["mean"], 3)
        point[f"{axis} std"] = _rounded(score["std"])
    return list(found.values())
