"""A pytest plugin that notes every test's outcome in a file as soon as it is known.

    OUTCOMES_FILE=found.jsonl pytest -p scripts.benchmarks.outcomes tests/cuda

A report made at the end, as pytest's own are, would be lost when a run is stopped at its limit.
Lines are JSON: ``{"collected": [names]}``, then ``{"name", "outcome", "seconds", "message"}``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "OUTCOMES_FILE"


def _note(line: dict[str, Any]) -> None:
    # Opened for appending each time: several processes of pytest-xdist write to it.
    with open(os.environ[VARIABLE], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def pytest_collection_finish(session: Any) -> None:
    """Note which tests there are; of pytest-xdist's processes the first does."""
    # Not by the environment, which a process has from another pytest that started it.
    worker = getattr(session.config, "workerinput", {"workerid": "gw0"})["workerid"]
    if worker == "gw0" and session.items:
        _note({"collected": [item.nodeid for item in session.items]})


def pytest_runtest_logreport(report: Any) -> None:
    """Note a test's outcome: that of its call, or of another phase that failed or skipped it."""
    # The main process of pytest-xdist gets each report a second time.
    if hasattr(report, "node") or (report.when != "call" and report.passed):
        return
    message = ""
    if report.skipped:
        # A skip is told by file, line and reason.
        message = report.longrepr[-1] if isinstance(report.longrepr, tuple) else ""
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else str(report.longrepr)
    lines = [line for line in message.splitlines() if line.strip()]
    # The first line has the error, the last one what pytest compared.
    short = " ... ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))
    _note(
        {
            "name": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "message": short[:500],
        }
    )


def read_outcomes(path: Path) -> list[dict[str, Any]]:
    """Return a test each, in the order of collection; ``not run`` is the outcome of the rest.

    Of a test that failed in its call and again in its teardown the first failure counts.
    """
    names: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    for line in _lines(path):
        if "collected" in line:
            names = line["collected"]
        elif found.get(line["name"], {}).get("outcome", "passed") == "passed":
            found[line["name"]] = line
    rest = {"outcome": "not run", "seconds": 0.0, "message": "the time was up"}
    order = dict.fromkeys([*names, *found])
    return [found.get(name, {"name": name, **rest}) for name in order]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut off when its process was stopped
            continue
