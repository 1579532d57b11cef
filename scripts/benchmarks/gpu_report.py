"""The report of scripts/gpu.py: one dictionary, and the same as Markdown."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

from scripts.benchmarks.gpu import COLUMNS, NOT_RUN, milliseconds, remarks
from scripts.benchmarks.gpu_cases import EPOCH
from scripts.jobs.protocols import REPO
from scripts.reporting.published import read_tables

Rows = Sequence[Mapping[str, Any]]
# A test of every method in every precision, by its name.
_OF_METHOD = re.compile(r"test_every_method\.py::.*\[(\w+)-(fp32|amp|bf16|fp16)\]$")


class Target(NamedTuple):
    """A number to reach on an H100 or better."""

    what: str
    name: str  # of the row
    key: str  # of the row
    bound: float
    form: str = "g"
    most: bool = False  # the bound is the most that is allowed, not the least

    def judge(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return ``what``, ``found``, ``bound`` and the verdict: met, missed or not measured."""
        found = rows.get(self.name, {}).get(self.key)
        verdict = "not measured"
        if found is not None:
            reached = found <= self.bound if self.most else found >= self.bound
            verdict = "met" if reached else "missed"
        words = "at most" if self.most else "at least"
        return {
            "what": self.what,
            "found": found,
            "shown": "-" if found is None else format(found, self.form),
            "bound": f"{words} {self.bound:{self.form}}",
            "verdict": verdict,
        }


TARGETS = (
    Target("LightRA, K 100, amp: times faster than plain", "LightRA/100/4/amp", "times", 3),
    Target(
        "RAda, batch 1 on features, CUDA graphs: steps/s",
        "RAda-head/50/1/graphs",
        "ours_a_second",
        1500,
    ),
    Target(
        "RAdaTTT, ViT-B/16, 64 views, bf16: images/s", "RAdaTTT/200/16/bf16", "images_a_second", 200
    ),
    Target("LightRA, batch 4, 8 workers: GPU busy in an epoch", EPOCH, "ours_busy", 0.8, ".0%"),
    # 8 GB, not GiB.
    Target(
        "LightRA, K 1000, batch 4, amp: peak MiB",
        "LightRA/1000/4/amp",
        "ours_mib",
        8e9 / 2**20,
        ".0f",
        most=True,
    ),
)


def machine(device: str) -> dict[str, Any]:
    """Return what the numbers were taken on: card, driver, versions, commit, date."""
    found: dict[str, Any] = {
        "card": None,
        "cards": 0,
        "memory_gib": None,
        "capability": None,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _said("git", "rev-parse", "HEAD"),
        "changed_files": len((_said("git", "status", "--porcelain") or "").splitlines()),
    }
    if device != "cpu":
        # This makes a CUDA context in this process, which takes some of the card until it ends.
        card = torch.cuda.get_device_properties(torch.device(device))
        found |= {"card": card.name, "cards": torch.cuda.device_count()}
        found |= {"memory_gib": round(card.total_memory / 2**30, 1)}
        found |= {"capability": f"{card.major}.{card.minor}"}
    return found


def _said(*command: str) -> str | None:
    """Return a program's output; None if it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def make_report(
    found: Mapping[str, Any],
    stages: Mapping[str, Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    rows: Rows,
    seconds: float,
) -> dict[str, Any]:
    """Put the report together.

    Args:
        found: Of `machine`.
        stages: ``seconds`` and ``ending`` of tests and bench.
        tests: Of `scripts.benchmarks.outcomes.read_outcomes`.
        rows: Of ``bench.py gpu``.
        seconds: Of all.

    Returns:
        ``ok, summary, machine, seconds, stages, tests, methods, timings, targets, published`` and
        ``not_run``. It is ``ok`` if all ran and passed, whether or not a target is met: cards
        differ.
    """
    counts = Counter(test["outcome"] for test in tests)
    # What did not fit into the time is told apart from what failed.
    failed = [row["name"] for row in rows if row.get("error", NOT_RUN) != NOT_RUN]
    missing = [test["name"] for test in tests if test["outcome"] == "not run"]
    missing += [row["name"] for row in rows if row.get("error") == NOT_RUN]
    # A stage that left nothing has run nothing, whatever its status.
    missing += [name for name, kept in (("tests", tests), ("bench", rows)) if not kept]
    whole = all(stage["ending"] == "finished" for stage in stages.values())
    measured = [row for row in rows if "error" not in row]
    words = (
        f"{counts['passed']} tests passed, {counts['failed']} failed, {counts['skipped']} skipped; "
        f"{len(measured)} measurements, {len(failed)} failed; {len(missing)} not run"
    )
    return {
        "ok": bool(whole and not failed and not missing and not counts["failed"]),
        "summary": words,
        "machine": dict(found),
        "seconds": round(seconds, 1),
        "stages": {name: dict(stage) for name, stage in stages.items()},
        "tests": {
            **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
            "outcomes": [dict(test) for test in tests],
        },
        "methods": methods(tests),
        "timings": [dict(row) for row in rows],
        "targets": [target.judge({row["name"]: row for row in rows}) for target in TARGETS],
        "published": published(),
        "not_run": missing,
    }


def methods(tests: Rows) -> dict[str, dict[str, str]]:
    """Return, for every method by precision, how its training on the GPU went."""
    found: dict[str, dict[str, str]] = {}
    for test in tests:
        if named := _OF_METHOD.search(test["name"]):
            found.setdefault(named[1], {})[named[2]] = test["outcome"]
    return found


def published() -> list[dict[str, Any]]:
    """Return RAda's Table 5: images a second and GB of MaPLe and RAda, with the card in a note."""
    return [
        {
            "stage": {"eft": "training", "ttt": "test time"}[table["protocol"]],
            "rows": {name: dict(zip(table["columns"], row, strict=True)) for name, row in rows},
            "note": table["note"].strip(),
        }
        for table in read_tables()
        if table["table"] == "Table 5, efficiency"
        for rows in [table["rows"].items()]
    ]


def write_report(report: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write gpu_report.json and gpu_report.md, and return their paths."""
    as_json, as_text = folder / "gpu_report.json", folder / "gpu_report.md"
    as_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    as_text.write_text(markdown(report), encoding="utf-8")
    return as_json, as_text


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    machine, tests = report["machine"], report["tests"]
    card = machine["card"] or "no GPU (the command's own test, on the CPU)"
    parts = [f"# GPU report: {card}", f"{report['summary']}; {report['seconds']:.0f} s in all."]
    parts.append(_table([[key, value] for key, value in machine.items()], ["machine", ""]))
    parts.append("## Numbers to reach (H100 or better)")
    verdicts = [[t["what"], t["shown"], t["bound"], t["verdict"]] for t in report["targets"]]
    parts.append(_table(verdicts, ["", "found", "to reach", ""]))
    parts.append("## Steps, against the release's form in eager mode on the same card")
    parts.append(_timings(report["timings"]))
    parts.append("\n".join(f"- {line}" for line in remarks(report["timings"])))
    for table in report["published"]:
        speeds = [f"{name} {row['fps']:g} images/s" for name, row in table["rows"].items()]
        parts.append(f"RAda's Table 5, {table['stage']}: {', '.join(speeds)} ({table['note']})")
    parts.append("## Every method trained, evaluated, saved and read on the CPU")
    precisions = list(dict.fromkeys(p for of in report["methods"].values() for p in of))
    matrix = [[n, *(of.get(p, "-") for p in precisions)] for n, of in report["methods"].items()]
    parts.append(_table(matrix, ["method", *precisions]))
    parts.append("## Tests")
    parts.append(f"{tests['passed']} passed.")
    # Hundreds of tests that passed would hide the others; the JSON file has all.
    others = [t for t in tests["outcomes"] if t["outcome"] != "passed"]
    parts.append(_table([[t["name"], t["outcome"], t["message"]] for t in others], ["", "", ""]))
    stages = [[name, f"{s['seconds']:.0f}", s["ending"]] for name, s in report["stages"].items()]
    parts.append(_table(stages, ["stage", "seconds", "ending"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _timings(rows: Rows) -> str:
    shown = []
    for row in rows:
        if "method" in row:
            values = {**row, **milliseconds(row)}
            shown.append(
                [
                    "-" if values.get(key) is None else format(values[key], form)
                    for key, (_, form) in COLUMNS.items()
                ]
            )
    return _table(shown, [heading for heading, _ in COLUMNS.values()])


def _table(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> str:
    """Return a Markdown table; "" without rows."""
    if not rows:
        return ""
    # A bar would end the cell.
    cells = [["" if c is None else str(c).replace("|", "\\|") for c in row] for row in rows]
    return tabulate(cells, headings, tablefmt="pipe", disable_numparse=True)
