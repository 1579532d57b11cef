"""What runs have cost, as Table 5 of RAda has it: images a second and memory, from results."""

from __future__ import annotations

from typing import Any

from dassl.results import read_result
from scripts.jobs.job import Job
from scripts.jobs.protocols import PROTOCOLS
from scripts.papers.catalogue import Entry, Row
from scripts.papers.cells import Cell, Grid, Printed
from scripts.papers.runs import Work, why_not
from scripts.reporting.scores import MEAN, Stat

COLUMNS = {"fps": "images/s", "memory_gb": "memory (GB)", "gflops": "GFLOP/image"}
HARDWARE = "measured on other hardware than the paper's, not compared"


def cost_grid(entry: Entry, work: Work, demonstration: bool) -> Grid:
    """Return the costs of a table's rows, each of its first run that has finished."""
    rows = []
    for row in entry.rows:
        printed = Printed() if demonstration else Printed.of(entry, row)
        own = _runs(row, work)
        done = [job for job in own if job not in work.undone]
        result = read_result(done[0].directory) if done else None
        found = costs(result, row) if result else {}
        marks = [] if demonstration else [HARDWARE]
        if not done:
            marks.append(why_not(own[0]) if own else "no such run")
        cells = tuple(
            Cell(
                Stat(found[name], None, 1) if name in found else None,
                printed.values.get((MEAN, name)),
                compared=False,
            )
            for name in COLUMNS
        )
        rows.append((row.label, (*row.remarks, *marks), cells))
    return Grid("", tuple(COLUMNS.values()), tuple(rows))


def _runs(row: Row, work: Work) -> list[Job]:
    """The runs that do a row's work: trainings, or tests where these adapt the model."""
    protocol = PROTOCOLS[row.protocol]
    stage = protocol.train_stage or protocol.test_stage
    return [job for job in work.of_row(row) if job.key.stage == stage]


def costs(result: dict[str, Any], row: Row) -> dict[str, float]:
    """Return what a run's ``result.json`` tells of images a second and peak memory in GB."""
    phase = "train" if PROTOCOLS[row.protocol].train_stage else "test"
    images = result["num_test"]
    if phase == "train":
        epochs = result["config"]["OPTIM"]["MAX_EPOCH"]
        images = result["shots"] * result["num_classes"] * epochs
    # Older results have neither.
    seconds = (result.get("durations") or {}).get(phase)
    memory = result.get("peak_memory_mb")
    found = {}
    if seconds:
        found["fps"] = images / seconds
    if memory:
        found["memory_gb"] = memory * 2**20 / 1e9
    return found
