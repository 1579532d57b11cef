"""Runs the tests that need a GPU and measures on it, within a limit of time; writes the report.

    bash scripts/gpu.sh [FOLDER]      # makes the environment, then this
    python scripts/gpu.py [FOLDER]

Stages are processes of their own: a failure, or a stage over its limit, does not stop the next one.
FOLDER gets gpu_report.json, gpu_report.md and what the stages printed. Exit status: 0 all ran and
passed, 1 something failed or did not fit into the time, 3 there is no CUDA GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.errors import plain_main
from scripts.benchmarks.gpu_report import machine, make_report, write_report
from scripts.benchmarks.outcomes import VARIABLE, read_outcomes
from scripts.jobs.protocols import REPO

NO_GPU = 3
SECONDS = 480  # for all
TESTS_SHARE = 0.45  # of them, at most; what the tests leave is the benchmark's
REST = 10.0  # seconds kept for the report, and for stages to end
GRACE = 10.0  # seconds that a stopped stage gets to end by itself
PROCESS_GIB = 3.0  # of the GPU's memory for each process that tests


class Stage(NamedTuple):
    """How a stage ended."""

    seconds: float
    ending: str  # "finished", "stopped at its limit of N s" or "ended with status N"


def run_stage(
    command: Sequence[str], limit: float, log: Path, extra: Mapping[str, str], good: Sequence[int]
) -> Stage:
    """Run a command with all that it starts, no longer than a limit.

    Args:
        command: Words.
        limit: Seconds.
        log: Gets its output.
        extra: Variables of the environment, added to this process's.
        good: Statuses with which it has done its work.
    """
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        # A session of its own, so that its own processes can be ended with it.
        process = subprocess.Popen(
            command,
            cwd=REPO,
            env={**os.environ, **extra},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(max(limit, 0.0))
            ending = "finished" if status in good else f"ended with status {status}"
        except subprocess.TimeoutExpired:
            ending = f"stopped at its limit of {limit:.0f} s"
        finally:
            _end_all(process)
    return Stage(time.monotonic() - started, ending)


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started; first politely."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)  # of a new session, whose number is the process's
            process.wait(GRACE)
        except (ProcessLookupError, PermissionError):
            return  # all have ended
        except subprocess.TimeoutExpired:
            continue


def test_command(device: str, select: str, found: Mapping[str, Any]) -> list[str]:
    """Return what runs the tests, in as many processes as cores and the GPU's memory are for."""
    command = [sys.executable, "-m", "pytest", "tests/cuda", "-m", "cuda", "-q"]
    command += ["-p", "no:cacheprovider", "-p", "scripts.benchmarks.outcomes"]
    if select:
        command += ["-k", select]
    processes = min(8, (found["cores"] or 1) // 2, int((found["memory_gib"] or 0) / PROCESS_GIB))
    # Not in an environment that has pytest alone.
    if processes > 1 and device != "cpu" and importlib.util.find_spec("xdist"):
        command += ["-n", str(processes)]
    return command


def bench_command(args: argparse.Namespace, rows: Path, log: Path, seconds: float) -> list[str]:
    """Return what measures, for so many seconds."""
    command = [sys.executable, str(REPO / "scripts" / "bench.py"), "gpu", "--json", str(rows)]
    command += ["--log", str(log), "--seconds", str(max(1, int(seconds)))]
    command += ["--device", args.device]
    if args.tiny:
        command += ["--tiny"]
    if args.names:
        command += ["--names", *args.names]
    return command


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run the stages and return the report."""
    started = time.monotonic()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found = machine(args.device)
    outcomes, rows = folder / "tests.jsonl", folder / "bench.json"
    for old in (outcomes, rows):
        old.unlink(missing_ok=True)

    print(f"Tests on {found['card'] or 'the CPU'}: {folder / 'tests.log'}", flush=True)
    variables = {VARIABLE: str(outcomes), "OMP_NUM_THREADS": "1"}
    variables |= {"CUDA_TESTS_DEVICE": args.device}
    command = test_command(args.device, args.select, found)
    limit = TESTS_SHARE * args.seconds
    tests = run_stage(command, limit, folder / "tests.log", variables, good=(0, 1))

    print(f"Benchmark: {folder / 'bench.log'}", flush=True)
    left = args.seconds - (time.monotonic() - started) - REST
    command = bench_command(args, rows, folder / "bench.log", left - REST)
    bench = run_stage(command, left, folder / "bench_table.txt", {}, good=(0, 1))
    return make_report(
        found,
        {"tests": tests._asdict(), "bench": bench._asdict()},
        read_outcomes(outcomes),
        json.loads(rows.read_text()) if rows.exists() else [],
        time.monotonic() - started,
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=REPO / "output" / "gpu", help="for the report")
    add("--seconds", type=int, default=SECONDS, help=f"for all of it; {SECONDS}")
    # To try the command itself out, as its tests do.
    add("--device", default="cuda", help=argparse.SUPPRESS)
    add("--select", default="", help=argparse.SUPPRESS)
    add("--names", nargs="+", help=argparse.SUPPRESS)
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; see the module's docstring for the status."""
    args = build_parser().parse_args(argv)
    if args.seconds < 1:
        raise ValueError(f"--seconds must be at least 1, got {args.seconds}")
    if args.device != "cpu" and not torch.cuda.is_available():
        what = "was built without CUDA" if torch.version.cuda is None else "sees none"
        print(f"no CUDA GPU: PyTorch {torch.__version__} {what}", file=sys.stderr)
        return NO_GPU
    report = run_all(args)
    for path in write_report(report, args.folder.resolve()):
        print(f"Report: {path}")
    print(report["summary"])
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
