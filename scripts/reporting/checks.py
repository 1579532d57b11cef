"""What makes a table's numbers doubtful: missing and collapsed seeds, mixed configs or splits."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dassl.config.identity import relevant
from dassl.results import no_result
from scripts.jobs.protocols import PROTOCOLS, RunKey
from scripts.reporting.results import (
    Cell,
    Cells,
    Run,
    Selection,
    Series,
    run_directories,
    series_names,
)

COLLAPSE_POINTS = 10.0


def warnings(cells: Cells, selection: Selection) -> list[str]:
    """Return one line for everything that a reader of the table has to know."""
    lines = [*_missing_series(cells, selection), *_missing(cells, selection)]
    lines += _damaged(cells, selection)
    for cell in cells.values():
        lines += collapsed(cell)
        lines += _mixed_configs(cell)
        for run in cell.values():
            lines += _contradictions(run)
    return [*lines, *_mixed_backbones(cells, selection), *_mixed_splits(cells)]


def untrained(cells: Cells, series: Series) -> bool:
    """Whether nothing of a series is trained, so that all its seeds are one and the same run."""
    runs = [run for cell, found in cells.items() if cell.series == series for run in found.values()]
    return all(run.result.get("trainable_parameters") == 0 for run in runs)


def _missing_series(cells: Cells, selection: Selection) -> Iterator[str]:
    """Name the rows that were asked for and of which nothing is there."""
    found = {(cell.series.trainer, cell.series.cfg) for cell in cells}
    for trainer, cfg in itertools.product(selection.trainers, selection.cfg):
        if (trainer, cfg) not in found:
            yield f"missing row: {trainer} ({cfg}) has no finished run here"


def _missing(cells: Cells, selection: Selection) -> Iterator[str]:
    """Name what the table would hold if every series had every place and every seed."""
    protocol = PROTOCOLS[selection.protocol]
    stages = [stage for stage in (protocol.train_stage, protocol.test_stage) if stage]
    places = {(cell.dataset, cell.stage, cell.shots) for cell in cells}
    if not protocol.crosses:
        places |= {(name, stage, shots) for name, _, shots in places for stage in stages}
    seeds = set(selection.seeds) | {seed for cell in cells.values() for seed in cell}
    for series in dict.fromkeys(cell.series for cell in cells):
        for dataset, stage, shots in sorted(places):
            if series.shots not in (None, shots):
                continue
            found = cells.get(Cell(series, dataset, stage, shots), {})
            absent = sorted(seeds - set(found))
            if not absent or (found and untrained(cells, series)):
                continue
            key = RunKey(
                protocol.name, stage, dataset, shots, series.trainer, series.cfg, absent[0]
            )
            what = "seed" if len(absent) == 1 else "seeds"
            numbers = ", ".join(str(seed) for seed in absent)
            parent = key.directory(selection.output).parent
            none = "" if found else "; no seed is there, left out of the means"
            yield f"missing {what} {numbers}: {parent}{none}"


def _damaged(cells: Cells, selection: Selection) -> Iterator[str]:
    """Name the results that do not count because they are not what a run has written."""
    counted = {run.directory for runs in cells.values() for run in runs.values()}
    for directory in run_directories(selection):
        if directory not in counted:
            why = no_result(directory)
            if "damaged" in why:
                yield f"{why}: {directory}"


def collapsed(cell: dict[int, Run]) -> Iterator[str]:
    """Name the seeds at chance level or far below the median of their siblings.

    Chance level is where a guesser would be, with three standard deviations of a binomial over
    the test images added: on few images even guessing scatters.
    """
    for seed, run in cell.items():
        chance, images = run.result.get("chance"), run.result.get("num_test")
        if isinstance(chance, int | float) and isinstance(images, int) and images > 0:
            share = min(max(chance / 100, 0.0), 1.0)
            scatter = 300 * math.sqrt(share * (1 - share) / images)
            if chance < 100 and run.accuracy <= chance + scatter:
                yield (
                    f"collapsed: {run.accuracy:.2f} % is chance level ({chance:.2f} %): "
                    f"{run.directory}"
                )
                continue
        siblings = [other.accuracy for number, other in cell.items() if number != seed]
        if siblings and statistics.median(siblings) - run.accuracy > COLLAPSE_POINTS:
            yield (
                f"collapsed: {run.accuracy:.2f} %, the other seeds' median is "
                f"{statistics.median(siblings):.2f} %: {run.directory}"
            )


def _compared(result: dict[str, Any]) -> dict[str, Any]:
    """What the seeds of one number have to agree in, by key."""
    config = relevant(result.get("config") or {})
    config.pop("SEED", None)  # what they are told apart by
    return config


def _mixed_configs(cell: dict[int, Run]) -> Iterator[str]:
    """Name the keys in which the seeds of one number differ."""
    flat = {seed: _compared(run.result) for seed, run in cell.items()}
    keys = sorted({key for config in flat.values() for key in config})
    mixed = []
    for key in keys:
        values = {seed: json.dumps(config.get(key)) for seed, config in flat.items()}
        if len(set(values.values())) > 1:
            mixed.append(f"{key} ({', '.join(f'seed {s}: {v}' for s, v in values.items())})")
    if mixed:
        more = f" and {len(mixed) - 3} more keys" if len(mixed) > 3 else ""
        directory = next(iter(cell.values())).directory.parent
        yield f"seeds with different configs: {'; '.join(mixed[:3])}{more}: {directory}"


def _contradictions(run: Run) -> Iterator[str]:
    """Name what a result says of itself that its directory says otherwise."""
    protocol = PROTOCOLS[run.key.protocol]
    expected = {
        "seed": run.key.seed,
        "trainer": run.key.trainer,
        "subsample_classes": protocol.classes_of(run.key.stage),
    }
    for name, value in expected.items():
        found = run.result.get(name, value)
        if found != value:
            yield f"result of another run ({name} is {found}, not {value}): {run.directory}"


def _mixed_backbones(cells: Cells, selection: Selection) -> Iterator[str]:
    names = series_names((cell.series for cell in cells), selection.protocol)
    used: dict[Series, set[str]] = {}
    for cell, runs in cells.items():
        found = {str(run.result.get("backbone", "")) for run in runs.values()}
        used.setdefault(cell.series, set()).update(found - {""})
    for series, backbones in used.items():
        if len(backbones) > 1:
            yield f"{names[series]}: mixed backbones {', '.join(sorted(backbones))}"


def _mixed_splits(cells: Cells) -> Iterator[str]:
    """Name the columns in which two series saw different images."""
    hashes: dict[tuple[str, str, int, int], set[str]] = {}
    for cell, runs in cells.items():
        for seed, run in runs.items():
            place = (cell.dataset, cell.stage, cell.shots, seed)
            hashes.setdefault(place, set()).add(str(run.result.get("split_hash", "")))
    for (dataset, stage, shots, seed), found in sorted(hashes.items()):
        if len(found - {""}) > 1:
            yield (
                f"trainers saw different images ({dataset}, {stage}, {shots} shots, seed {seed}): "
                "their numbers do not compare"
            )


def run_notes(cells: Cells) -> Iterator[str]:
    """Pass on what the runs themselves noted, each text once."""
    places: dict[str, list[Path]] = {}
    for runs in cells.values():
        for run in runs.values():
            for note in run.result.get("notes") or ():
                places.setdefault(str(note), []).append(run.directory)
    for note, directories in places.items():
        where = f"{len(directories)} runs, first" if len(directories) > 1 else "1 run,"
        yield f"{note} ({where} {directories[0]})"
