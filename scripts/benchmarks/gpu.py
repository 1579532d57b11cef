"""What a GPU does with it: steps, memory, how busy it is, against the releases' form.

    python scripts/bench.py gpu --json gpu.json
    python scripts/bench.py gpu --names LightRA/100/4/amp --seconds 60

A name is a method, K classes, a batch of B images and a precision other than fp32. "release" is the
step in the form of the authors' code, eager, on the same card, with its weights in single precision
and autocast where ours has amp or bf16. RAda-head is RAda on given (cached) features, and "graphs"
in its name that ours replays CUDA graphs (TRAIN.CUDA_GRAPHS). A step of TPT
and RAdaTTT is the episodes of a batch, 64 views of each image. RAdaFT and RAdaTTT were never
released; theirs is the plain formula.

ms a step is the median of 20 steps after 5, each waited for; images/s that of 20 steps in a row,
which nobody waits for, as in training. Slow steps are timed fewer times. peak MiB is what PyTorch
allocated at most; busy is the share of the time in which a kernel or a copy runs (torch.profiler).
First ours and the release's way take some steps in fp32, as in `bench.py released`; a difference of
losses is an error.

All names are measured in one process, to save starting it; if that ends, or a name takes too long,
the next process goes on with the next name. What does not fit into --seconds is listed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dassl.errors import plain_main
from scripts.benchmarks import cases
from scripts.benchmarks.command import Columns, make_parser, render, require_least
from scripts.benchmarks.gpu_cases import NAMES, Bench
from scripts.benchmarks.tools import RANDOM_VIT, backbone_name
from scripts.jobs.protocols import REPO

COMMAND = "gpu"
TINY = 3  # classes, and pictures of a batch, with --tiny
NOT_RUN = "not run: the time was up"
COLUMNS: Columns = {
    "method": ("method", ""),
    "classes": ("K", "d"),
    "batch": ("B", "d"),
    "input": ("input", ""),
    "precision": ("precision", ""),
    "ours_ms": ("ours, ms a step", ".3g"),
    "release_ms": ("release", ".3g"),
    "times": ("times faster", ".2f"),
    "images_a_second": ("images/s", ".4g"),
    "ours_mib": ("peak MiB ours", ".0f"),
    "release_mib": ("release", ".0f"),
    "ours_busy": ("GPU busy ours", ".0%"),
    "release_busy": ("release", ".0%"),
}


def work(task: dict[str, Any]) -> int:
    """Measure the names of a task in this process; each start and each row is a line of a file.

    ``task`` has ``names``, the ``file`` and the arguments of :class:`Bench`.
    """
    file = Path(task["file"])
    bench = Bench(Path(task["root"]), task["backbone"], task["device"], task["most"])
    for name in task["names"]:
        _note(file, {"name": name})
        try:
            row = bench.measure(name)
        except Exception as error:  # one name must not stop the others
            row = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        _note(file, {"name": name, "row": row})
        if torch.cuda.is_available():
            # After some errors CUDA works no more in a process: end it, and let another go on.
            torch.cuda.synchronize()
    return 0


def _note(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def measure_all(
    task: dict[str, Any], seconds: float, each: float, log: Path
) -> dict[str, dict[str, Any]]:
    """Measure the names of a task in processes that are replaced when they end or hang.

    Args:
        task: See :func:`work`.
        seconds: For all.
        each: For a name.
        log: Gets what the processes print.

    Returns:
        The rows that there are by name, with an ``error`` where a process ended or was too slow.
    """
    deadline = time.monotonic() + seconds
    rows: dict[str, dict[str, Any]] = {}
    progress = tqdm(total=len(task["names"]), disable=None)
    while rest := [name for name in task["names"] if name not in rows]:
        if time.monotonic() >= deadline:
            break
        # A file for each process: what an earlier one was at must not be taken for this one's.
        file = Path(task["root"]) / f"rows_{len(rows)}.jsonl"
        words = ["--worker", json.dumps({**task, "names": rest, "file": str(file)})]
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, str(REPO / "scripts" / "bench.py"), COMMAND, *words],
                stdout=output,
                stderr=output,
            )
            failure = _watch(process, file, each, deadline)
        found, running = read_rows(file)
        rows |= found
        if failure and (running or not found):
            # It is not tried again. A process that got nowhere stands for its first name.
            rows[running or rest[0]] = {"error": failure}
        progress.update(len(rows) - progress.n)
    progress.close()
    return rows


def _watch(process: Any, file: Path, each: float, deadline: float) -> str:
    """Wait for a process; end it if a name takes too long, or all do. Return what went wrong."""
    started, seen = time.monotonic(), 0
    while process.poll() is None:
        time.sleep(0.1)
        size = file.stat().st_size if file.exists() else 0
        now = time.monotonic()
        # A line is written when a name begins and when it is done.
        if size != seen:
            started, seen = now, size
        if now > deadline or now - started > each:
            process.kill()
            process.wait()
            return NOT_RUN if now > deadline else f"took longer than {each:.0f} s"
    status = process.returncode
    return f"its process ended with status {status}" if status else ""


def read_rows(file: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the rows in a process's file, and the name that it was at when it ended, or ""."""
    rows: dict[str, dict[str, Any]] = {}
    running = ""
    # A process that could not import its modules has left no file.
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for line in map(json.loads, lines):
        running = "" if "row" in line else line["name"]
        if "row" in line:
            rows[line["name"]] = line["row"]
    return rows, running


def measure_names(args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each name, with ``name``; ``error`` says why numbers are missing."""
    started = time.monotonic()
    # Shared by all processes, so that weights and pictures are written once.
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if args.tiny:
            backbone = str(root / "tiny.pt")
            cases.write_head_towers(root / "tiny.pt")
        else:
            backbone = backbone_name(args.backbone, root)
        task: dict[str, Any] = {"names": list(names), "root": temporary, "backbone": backbone}
        task |= {"device": args.device, "most": TINY if args.tiny else None}
        left = args.seconds - (time.monotonic() - started)
        rows = measure_all(task, left, args.each, args.log)
    return [{"name": name, **rows.get(name, {"error": NOT_RUN})} for name in names]


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table, and below it what is missing and why."""
    # Not with their errors, which the table would put below itself in words of its own.
    plain = [{**row, **milliseconds(row)} for row in rows if "method" in row]
    for row in plain:
        row.pop("error", None)
    return "\n".join([render(plain, COLUMNS), *remarks(rows)])


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what failed, or was not possible, by name."""
    keys = ("error", "note")
    return [f"{row['name']}: {row[key]}" for row in rows for key in keys if key in row]


def milliseconds(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the milliseconds of ours and the release's step, for `COLUMNS`; None without them."""
    seconds = {way: row.get(f"{way}_seconds") for way in ("ours", "release")}
    return {f"{way}_ms": None if s is None else 1000 * s for way, s in seconds.items()}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser(COMMAND, __doc__)
    add = parser.add_argument
    add("--names", nargs="+", metavar="NAME", help=f"default: all of {', '.join(NAMES)}")
    add("--seconds", type=int, default=3600, help="for all; what does not fit is listed")
    add("--each", type=int, default=120, help="seconds for a name; one that takes longer is ended")
    add("--backbone", default=RANDOM_VIT, help=f"default {RANDOM_VIT}; or what train.py takes")
    add("--device", default="auto", help="auto, cuda, cuda:1; cpu to try it out")
    add("--tiny", action="store_true", help="three classes and tiny towers, to try it out")
    add("--json", type=Path, metavar="FILE", help="write the rows there too")
    add("--log", type=Path, default=Path("/dev/null"), help="gets what the engine prints")
    # What a process of its own is asked for; the command starts it, nobody types it.
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if something could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.worker:
        return work(args.worker)
    require_least(parser, args, {"seconds": 1, "each": 1})
    names = args.names or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"--names: {unknown[0]!r} is none of {', '.join(NAMES)}")
    rows = measure_names(args, names)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    print(shown(rows))
    return int(any("error" in row for row in rows))
