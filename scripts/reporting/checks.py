"""What makes a table's numbers doubtful: missing and collapsed seeds, mixed configs or splits."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dassl.config.identity import relevant
from dassl.results import no_result
from scripts.jobs.protocols import PROTOCOLS, RunKey
from scripts.reporting.results import Selection, run_directories

if TYPE_CHECKING:
    import pandas as pd

COLLAPSE_POINTS = 10.0
_CELL = ["series", "dataset", "stage", "shots"]  # runs that differ in nothing but the seed


def warnings(runs: pd.DataFrame, selection: Selection) -> list[str]:
    """Return one line for everything that a reader of a section's table has to know.

    ``runs`` have the labels of `scripts.reporting.results.with_labels`.
    """
    lines = [*_missing_series(runs, selection), *_missing(runs, selection)]
    lines += _damaged(runs, selection)
    for _, cell in runs.groupby(_CELL, sort=False):
        lines += [*_collapsed(cell), *_mixed_configs(cell)]
        for run in cell.itertuples():
            lines += _contradictions(run)
    return [*lines, *_mixed_backbones(runs), *_mixed_splits(runs)]


def _missing_series(runs: pd.DataFrame, selection: Selection) -> Iterator[str]:
    """Name the rows that were asked for and that no run belongs to."""
    found = set(zip(runs.trainer, runs.cfg, strict=True))
    wanted = selection.rows or itertools.product(selection.trainers, selection.cfg)
    for trainer, cfg in wanted:
        if (trainer, cfg) not in found:
            yield f"missing row: {trainer} ({cfg}) has no finished run here"


def _missing(runs: pd.DataFrame, selection: Selection) -> Iterator[str]:
    """Name the seeds that a cell of the table lacks, but another cell or ``--seeds`` has."""
    protocol = PROTOCOLS[selection.protocol]
    places = set(zip(runs.dataset, runs.stage, runs.shots, strict=True))
    if not protocol.crosses:
        # A model tested on its own dataset should have every stage on each of them.
        places |= {(name, stage, shots) for name, _, shots in places for stage in protocol.stages}
    # Seeds that any run has, all should have.
    seeds = set(selection.seeds) | set(runs.seed)
    for _, own in runs.groupby("series", sort=False):
        trainer, cfg, untrained = own.trainer.iloc[0], own.cfg.iloc[0], not own.trains.any()
        for dataset, stage, shots in sorted(places):
            if protocol.name != "few_shot" and shots not in set(own.shots):
                continue  # the place of a series with other shots
            here = (own.dataset == dataset) & (own.stage == stage) & (own.shots == shots)
            absent = sorted(seeds - set(own.seed[here]))
            # Without training all seeds give the same result: one is enough.
            if not absent or (here.any() and untrained):
                continue
            key = RunKey(protocol.name, stage, dataset, shots, trainer, cfg, absent[0])
            numbers = ", ".join(map(str, absent))
            none = "" if here.any() else "; no seed is there, left out of the means"
            parent = key.directory(selection.output).parent
            yield f"missing seed{'s' * (len(absent) > 1)} {numbers}: {parent}{none}"


def _damaged(runs: pd.DataFrame, selection: Selection) -> Iterator[str]:
    """Name the results that do not count because they are not what a run wrote."""
    counted = set(runs.directory)
    for key, directory in run_directories(selection):
        if selection.accepts(key) and directory not in counted:
            why = no_result(directory)
            if "damaged" in why:
                yield f"{why}: {directory}"


def _collapsed(cell: pd.DataFrame) -> Iterator[str]:
    """Name the seeds at chance level or far below the median of their siblings."""
    for run in cell.itertuples():
        if _at_chance(run.accuracy, run.result):
            chance = run.result["chance"]
            yield (
                f"collapsed: {run.accuracy:.2f} % is chance level ({chance:.2f} %): {run.directory}"
            )
            continue
        siblings = cell.accuracy[cell.seed != run.seed].tolist()
        if siblings and statistics.median(siblings) - run.accuracy > COLLAPSE_POINTS:
            yield (
                f"collapsed: {run.accuracy:.2f} %, the other seeds' median is "
                f"{statistics.median(siblings):.2f} %: {run.directory}"
            )


def _at_chance(accuracy: float, result: dict[str, Any]) -> bool:
    """Whether an accuracy is no better than guessing.

    Three standard deviations of a binomial over the test images are added, because on few images
    even guessing scatters.
    """
    chance, images = result.get("chance"), result.get("num_test")
    if not (isinstance(chance, int | float) and isinstance(images, int) and images > 0):
        return False
    share = min(max(chance / 100, 0.0), 1.0)
    scatter = 300 * math.sqrt(share * (1 - share) / images)
    return chance < 100 and accuracy <= chance + scatter


def _mixed_configs(cell: pd.DataFrame) -> Iterator[str]:
    """Name the keys in which the seeds of one number differ."""
    flat = [relevant(result.get("config") or {}) for result in cell.result]
    mixed = []
    for key in sorted({key for config in flat for key in config} - {"SEED"}):
        # As text, since lists are not hashable; an absent key counts as None.
        values = [json.dumps(config.get(key)) for config in flat]
        if len(set(values)) > 1:
            pairs = zip(cell.seed, values, strict=True)
            mixed.append(f"{key} ({', '.join(f'seed {seed}: {value}' for seed, value in pairs)})")
    if mixed:
        more = f" and {len(mixed) - 3} more keys" if len(mixed) > 3 else ""
        parent = cell.directory.iloc[0].parent
        yield f"seeds with different configs: {'; '.join(mixed[:3])}{more}: {parent}"


def _contradictions(run: Any) -> Iterator[str]:
    """List result fields that contradict the run's directory."""
    expected = {
        "seed": run.seed,
        "trainer": run.trainer,
        "subsample_classes": PROTOCOLS[run.protocol].classes_of(run.stage),
    }
    for name, value in expected.items():
        found = run.result.get(name, value)
        if found != value:
            yield f"result of another run ({name} is {found}, not {value}): {run.directory}"


def _mixed_backbones(runs: pd.DataFrame) -> Iterator[str]:
    for series, names in runs.groupby("series", sort=False).backbone:
        backbones = sorted(set(names) - {""})
        if len(backbones) > 1:
            yield f"{series}: mixed backbones {', '.join(backbones)}"


def _mixed_splits(runs: pd.DataFrame) -> Iterator[str]:
    """Name the columns in which two series saw different images."""
    for place, results in runs.groupby(["dataset", "stage", "shots", "seed"]).result:
        if len({str(result.get("split_hash", "")) for result in results} - {""}) > 1:
            dataset, stage, shots, seed = place
            yield (
                f"trainers saw different images ({dataset}, {stage}, {shots} shots, seed {seed}): "
                "their numbers do not compare"
            )


def run_notes(runs: pd.DataFrame) -> Iterator[str]:
    """Pass on what the runs themselves noted, each text once."""
    notes = runs.assign(note=[result.get("notes") or () for result in runs.result]).explode("note")
    for note, directories in notes.dropna(subset="note").groupby("note", sort=False).directory:
        where = f"{len(directories)} runs, first" if len(directories) > 1 else "1 run,"
        yield f"{note} ({where} {directories.iloc[0]})"
