"""Paired timings of the fast paths against the plain way of doing the same.

    python scripts/bench.py                  # all cases, about a quarter of an hour on two cores
    python scripts/bench.py --cases ten --rounds 1
    python scripts/bench.py efficiency       # speed, memory, operations of all methods
    python scripts/bench.py baselines        # a step of the methods compared with
    python scripts/bench.py loading          # pictures a second
    python scripts/bench.py ttt              # test-time training, images side by side

The models have ViT-B/16's shape and random weights; fp32 on the CPU. Every measurement runs in a
process of its own, so that peak memory is that of one way alone; plain and fast take turns, so that
changes of the machine's speed meet both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tabulate import tabulate
from tqdm import tqdm

from dassl.errors import plain_main
from scripts.benchmarks import baselines as bench_baselines
from scripts.benchmarks import efficiency
from scripts.benchmarks import lightra as bench_lightra
from scripts.benchmarks import loading as bench_loading
from scripts.benchmarks import rada as bench_rada
from scripts.benchmarks import ttt as bench_ttt
from scripts.benchmarks.command import answer, ask_process, require_least

COMMANDS: dict[str, Any] = {
    "efficiency": efficiency,
    "baselines": bench_baselines,
    "loading": bench_loading,
    "ttt": bench_ttt,
}
CASES = {**bench_lightra.CASES, **bench_rada.CASES}
HEADERS = ["case", "plain s", "fast s", "times faster", "plain MiB", "fast MiB", "memory ratio"]
FORMATS = ("", ".2f", ".2f", ".2f", ".0f", ".0f", ".2f")


def measure_apart(case: str, kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Return ``seconds`` and ``mib`` of one measurement in a process of its own."""
    words = ("--cases", case, "--worker", kind, "--steps", args.steps, "--threads", args.threads)
    return ask_process(*words)


def compare(case: str, args: argparse.Namespace) -> list[float]:
    """Median seconds of both ways and of their ratio, peak memory of both and its ratio."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "fast": []}
    for kind in ("plain", "fast") * args.rounds:  # in turn
        found[kind].append(measure_apart(case, kind, args))
    seconds = {kind: [m["seconds"] for m in ms] for kind, ms in found.items()}
    memory = {kind: max(m["mib"] for m in ms) for kind, ms in found.items()}
    # The median of the pairs' ratios: a pair ran back to back, medians of all rounds did not.
    ratios = [p / f for p, f in zip(seconds["plain"], seconds["fast"], strict=True)]
    return [
        statistics.median(seconds["plain"]),
        statistics.median(seconds["fast"]),
        statistics.median(ratios),
        memory["plain"],
        memory["fast"],
        memory["fast"] / memory["plain"],
    ]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=1, help="pairs of processes per case")
    parser.add_argument(
        "--steps", type=int, default=2, help="timed steps in a process, after one warm-up"
    )
    parser.add_argument("--threads", type=int, default=2)
    # Set by measure_apart for its processes; nobody types it.
    parser.add_argument("--worker", choices=("plain", "fast"), help=argparse.SUPPRESS)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases and print a table, or one measurement with ``--worker``."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] and words[0] in COMMANDS:
        return COMMANDS[words[0]].main(words[1:])
    parser = build_parser()
    args = parser.parse_args(words)
    require_least(parser, args, {"rounds": 1, "steps": 1, "threads": 1})
    torch.set_num_threads(args.threads)
    if args.worker:
        measure = CASES[args.cases[0]].measure
        return answer(lambda: measure(args.worker == "plain", args.steps))
    rows = []
    for case in tqdm(args.cases, disable=None):
        rows.append([CASES[case].title, *compare(case, args)])
        tqdm.write(tabulate(rows[-1:], HEADERS, floatfmt=FORMATS))  # a case takes minutes
    if len(rows) > 1:
        print(tabulate(rows, HEADERS, floatfmt=FORMATS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
