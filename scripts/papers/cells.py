"""The cells of a paper's table: ours, the paper's, and their difference where both compare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.jobs.protocols import SHIFTS
from scripts.papers.catalogue import NOTHING_PRINTED, Entry, Row
from scripts.papers.runs import Work, why_not
from scripts.reporting import published
from scripts.reporting.results import Selection, collect
from scripts.reporting.scores import MEAN, MEAN_SHIFTS, Stat, harmonic_mean, score

METRICS = {"base": "base", "novel": "novel", "hm": "HM"}
ACCURACY = "accuracy"
Place = tuple[str, str]  # dataset or mean, metric
MISPRINT = "misprint in the paper, not compared"


@dataclass(frozen=True)
class Cell:
    """One number of a table, twice."""

    ours: Stat | None
    paper: float | None
    marks: tuple[str, ...] = ()  # footnotes
    compared: bool = True

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None where one is missing or they do not compare."""
        if not self.compared or self.ours is None or self.paper is None:
            return None
        return self.ours.mean - self.paper


@dataclass(frozen=True)
class Grid:
    """A table of cells; every row has a label and footnotes of its own."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Printed:
    """What a paper prints of one row: its values by place and metric, misprints among them."""

    values: Mapping[Place, float] = field(default_factory=dict)
    wrong: frozenset[Place] = frozenset()

    @classmethod
    def of(cls, entry: Entry, row: Row) -> Printed:
        """Look a row up; it is empty if the paper has none."""
        name = row.printed or row.label
        if not entry.table or name == NOTHING_PRINTED:
            return cls()
        table = published.find_table(entry.paper, entry.table, row.backbone, row.setting)
        given = table["rows"].get(name)
        if given is None:
            return cls()
        by_place = given if isinstance(given, dict) else {MEAN: given}
        values: dict[Place, float] = {}
        for place, numbers in by_place.items():
            for column, number in zip(table["columns"], numbers, strict=True):
                # A column of shifts is a dataset, and "shifts" their mean.
                shifts = entry.kind == "shifts"
                where = (MEAN_SHIFTS if column == "shifts" else column) if shifts else place
                values[where, ACCURACY if shifts else column] = number
        marked = set(table.get("misprints", {}).get(name, ()))
        wrong = {
            (place, metric)
            for place, metric in values
            if marked & {place, metric, f"{place}.{metric}"}
            or (place == MEAN_SHIFTS and "shifts" in marked)
        }
        return cls(values, frozenset(wrong))

    def mean_over(self, datasets: Sequence[str], metric: str) -> tuple[float | None, bool]:
        """Return the mean of the printed values, and whether a misprint is among them."""
        if metric == "hm":
            (base, first), (novel, second) = (
                self.mean_over(datasets, m) for m in ("base", "novel")
            )
            if base is None or novel is None:
                return None, False
            return harmonic_mean(base, novel), first or second
        places = [(name, metric) for name in datasets]
        if not places or not all(place in self.values for place in places):
            return None, False
        mean = statistics.fmean(self.values[place] for place in places)
        return mean, any(place in self.wrong for place in places)


def printed_notes(entry: Entry) -> list[str]:
    """Return what is known of the printed tables behind an entry, misprints above all."""
    if not entry.table:
        return []
    tables = [
        published.find_table(entry.paper, entry.table, row.backbone, row.setting)
        for row in entry.rows
    ]
    return list(dict.fromkeys(table["note"].strip() for table in tables if "note" in table))


def measure(entry: Entry, work: Work, output: Path) -> dict[str, dict[Place, Stat]]:
    """Return the numbers of finished jobs below ``output`` by row's label, place and metric."""
    rows = [row for row in entry.rows if row.run]
    selection = Selection(
        entry.protocol.name,
        output.absolute(),
        rows=tuple((row.trainer, row.cfg) for row in rows),
        must_exist=False,
    )
    try:
        runs = collect(selection)
    except LookupError:
        return {}
    # Results of other options may lie in the same folders until their jobs run again.
    runs = runs[runs.directory.isin([job.directory for job in work.done()])]
    found: dict[str, dict[Place, Stat]] = {}
    for row in rows:
        own = runs[(runs.trainer == row.trainer) & (runs.cfg == row.cfg)]
        if not len(own):
            continue
        source = str(own.source.iloc[0]) if entry.protocol.crosses else ""
        numbers: Any = score(own.assign(series=row.label), entry.protocol, source)
        found[row.label] = {
            (one.dataset, one.metric): Stat(
                one.mean, None if one.std != one.std else one.std, int(one.n)
            )
            for one in numbers.itertuples()
        }
    return found


@dataclass(frozen=True)
class Filler:
    """Fills a table's cells.

    Args:
        entry: The table.
        datasets: What was asked for.
        missing: Why datasets cannot be read, by name.
        work: All jobs of the table.
        seeds: Number of seeds asked for.
        numbers: From :func:`measure`.
        demonstration: Whether the bundled suite stands in for the datasets.
        comparable: Whether the runs are of the paper's backbones.
    """

    entry: Entry
    datasets: Sequence[str]
    missing: Mapping[str, str]
    work: Work
    seeds: int
    numbers: Mapping[str, Mapping[Place, Stat]]
    demonstration: bool = False
    comparable: bool = True

    def grids(self) -> list[Grid]:
        """Return the table, or its parts, in the paper's order."""
        if self.entry.kind == "shifts":
            means = [MEAN_SHIFTS] if set(self.datasets) & set(SHIFTS) else []
            header = (*self.datasets, *(["mean of shifts"] if means else []))
            places = [(name, ACCURACY) for name in (*self.datasets, *means)]
            return [self._grid("", header, places)]
        where = [MEAN]
        if self.entry.kind == "datasets":
            where += self.datasets if len(self.datasets) > 1 else []
        here = [name for name in self.datasets if name not in self.missing]
        over = ", ".join(here) if len(here) < 4 else f"{len(here)} datasets"
        titles = {MEAN: f"mean over {over}" if len(here) > 1 else over}
        header = tuple(METRICS.values())
        return [
            self._grid(titles.get(name, name), header, [(name, metric) for metric in METRICS])
            for name in where
        ]

    def _grid(self, title: str, header: Sequence[str], places: Sequence[Place]) -> Grid:
        rows = []
        for row in self.entry.rows:
            if self.demonstration and row.absent:
                continue  # neither ours nor, here, the paper's
            printed = Printed() if self.demonstration else Printed.of(self.entry, row)
            cells = tuple(self._cell(row, place, printed) for place in places)
            # What every cell of a row says is said once, beside its label.
            common = [mark for mark in cells[0].marks if all(mark in one.marks for one in cells)]
            cells = tuple(
                replace(one, marks=tuple(mark for mark in one.marks if mark not in common))
                for one in cells
            )
            rows.append((row.label, (*row.remarks, *common), cells))
        return Grid(title, tuple(header), tuple(rows))

    def _cell(self, row: Row, place: Place, printed: Printed) -> Cell:
        ours = self.numbers.get(row.label, {}).get(place)
        paper, wrong, why = self._paper(row, place, printed)
        marks = [row.absent] if row.absent else self._gaps(row, place, ours)
        if wrong:
            marks.append(MISPRINT)
        elif why and ours is not None and paper is not None:
            marks.append(why)
        compared = self.comparable and not (wrong or why)
        return Cell(ours, paper, tuple(dict.fromkeys(marks)), compared)

    def _paper(self, row: Row, place: Place, printed: Printed) -> tuple[float | None, bool, str]:
        """The paper's number, whether it is a misprint, and why it does not compare."""
        name, metric = place
        value, wrong = printed.values.get(place), place in printed.wrong
        if name not in (MEAN, MEAN_SHIFTS):
            return value, wrong, ""
        wanted = [one for one in self.entry.datasets() if name == MEAN or one in SHIFTS]
        here = self._covered(row, name)
        if not here or set(here) == set(wanted):
            return value, wrong, ""
        # Made again over the same datasets, if the paper prints them one by one.
        remade, wrong_part = printed.mean_over(here, metric)
        if remade is not None:
            return remade, wrong_part, ""
        return value, wrong, f"printed over {len(wanted)} datasets, ours is over {len(here)}"

    def _covered(self, row: Row, name: str) -> list[str]:
        """The datasets that our mean of a row is over."""
        found = self.numbers.get(row.label, {})
        metric = "hm" if name == MEAN else ACCURACY
        return [
            one
            for one in self.datasets
            if (one, metric) in found and (name == MEAN or one in SHIFTS)
        ]

    def _gaps(self, row: Row, place: Place, ours: Stat | None) -> list[str]:
        """Say what is missing of a cell's runs, and why."""
        name, _ = place
        # Of a mean, the sheet says once which datasets are not there.
        if name in self.missing:
            return [self.missing[name]]
        places = [name]
        if name in (MEAN, MEAN_SHIFTS):
            places = [one for one in self.datasets if name == MEAN or one in SHIFTS]
        marks = []
        own = [job for job in self.work.of_row(row) if job.key.dataset in places]
        undone = [job for job in own if job in self.work.undone]
        if undone:
            reason = why_not(undone[0])
            marks.append(f"{len(undone)} of {len(own)} runs are missing: {reason}")
        elif ours is not None and ours.n < self.seeds:
            marks.append(f"{ours.n} of {self.seeds} seeds")
        return marks
