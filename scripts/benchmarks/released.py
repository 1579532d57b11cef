"""A step of every method, ours against the way of its release.

    python scripts/bench.py released --json released.json
    python scripts/bench.py released --cases LightRA/24/4 MaPLe --rounds 1
    python scripts/bench.py released --backbone ViT-B/16 --device cuda --steps 20

A case is a method, K classes and a batch of B images. "release" is the step in the form of the
authors' code (scripts/benchmarks/release_forms), "limit" the bare encoder passes that it needs on
the tokens that there are, with no method around them. LightRA-text is the encoding of 5 prompts
for each class (in place of B) before evaluation; RAda-head is a step on given image features, which
needs no encoder; a step of TPT is the episode of one image, 64 views.

First both take some steps of SGD with the same batch and weights in one process, with at most 100
classes: a difference of losses is an error, and nothing is timed. Then ours, release and limit take
turns, each time in a process of its own; seconds are medians, and ratios medians of the turns'
ratios. peak MiB is the most memory in use, model included: what PyTorch allocated on CUDA,
elsewhere what the process took on top of its libraries. Frozen weights are counted once, also where
a release keeps a second copy.

All at fp32. Texts that share a prefix may let ours go below the limit, which encodes it again in
every text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dassl.engine.device import autocast_context
from dassl.errors import plain_main
from scripts.benchmarks import cases
from scripts.benchmarks.cases import CASES, Case
from scripts.benchmarks.command import (
    Columns,
    answer,
    make_parser,
    measure_apart,
    render,
    require_least,
)
from scripts.benchmarks.release_forms.limits import PASSES, bare_passes
from scripts.benchmarks.release_forms.step import ReleaseStep
from scripts.benchmarks.tools import (
    RANDOM_VIT,
    backbone_name,
    median_seconds,
    peak_mib,
    reset_peak,
    resident_mib,
)

COMMAND = "released"
CHECKED_STEPS, CHECKED_CLASSES, TOLERANCE = 3, 100, 1e-5  # more classes change no formula
LEAST_SECONDS = 2.0  # short steps are repeated that long, for a steady median
COLUMNS: Columns = {
    "method": ("method", ""),
    "classes": ("K", "d"),
    "batch": ("B", "d"),
    "ours": ("ours s", ".4g"),
    "release": ("release s", ".4g"),
    "limit": ("limit s", ".4g"),
    "ratio": ("ours / release", ".2f"),
    "to_limit": ("ours / limit", ".2f"),
    "ours_mib": ("peak MiB ours", ".0f"),
    "release_mib": ("release", ".0f"),
    "memory_ratio": ("ratio", ".2f"),
}


def check(
    case: Case, root: Path, backbone: str, device: str, tolerance: float = TOLERANCE
) -> float:
    """Take steps both ways and return the largest difference of their outcomes, relative above 1.

    All in single precision, whatever the case's own is.

    Raises:
        ValueError: It is above ``tolerance``.
    """
    case = case._replace(precision="fp32")
    trainer = cases.build(case, root, backbone, device, check=True)
    batch = cases.batch_of(case, trainer)
    # The release first: it copies the learned weights, which our steps change.
    release = case.release(trainer, batch)
    ours = cases.our_step(case, trainer, batch)
    worst = 0.0
    for step in range(1, CHECKED_STEPS + 1):
        here, there = ours().cpu(), release().cpu()
        gap = float((here - there).abs().max() / there.abs().max().clamp(min=1))
        if not gap <= tolerance:  # NaN too
            values = f"{here.flatten()[0]:.8g} and {there.flatten()[0]:.8g}"
            raise ValueError(
                f"{case.name}: step {step}: ours and the release's way differ by {gap:.1e}, which "
                f"is above {tolerance:g} (loss or first number {values}): they do not compute the "
                "same, so that their times cannot be compared"
            )
        worst = max(worst, gap)
    return worst


def prepared(
    case: Case, way: str, root: Path, backbone: str, device: str
) -> tuple[Callable[[], object], torch.device]:
    """What is timed of a case, and where it runs; what else it was made from is not kept."""
    # Releases keep their weights in single precision; autocast rounds them at every use.
    built = case if way == "ours" else case._replace(precision="fp32")
    trainer = cases.build(built, root, backbone, device)
    batch = cases.batch_of(case, trainer)
    if way == "ours":
        return cases.our_step(case, trainer, batch), trainer.device
    if way == "limit":
        return bare_passes(
            case.label, trainer, cases.pictures(case, trainer, batch)
        ), trainer.device
    release = case.release(trainer, batch)
    return computing_in(case.precision, release, trainer.device), trainer.device


def computing_in(
    precision: str, release: Callable[[], object], device: torch.device
) -> Callable[[], object]:
    """The release's step in another precision than single."""
    if isinstance(release, ReleaseStep):
        release.compute_in(precision)
        return release

    def run() -> object:
        with autocast_context(precision, device):
            return release()

    return run


def measure(
    name: str,
    way: str,
    root: str,
    backbone: str,
    device: str,
    steps: int,
    memory: float | None = None,
    **_: Any,
) -> dict[str, float]:
    """Measure one way of a case in this process, or check both.

    Args:
        name: Of a case.
        way: ours, release, limit or check.
        root: Directory of :func:`scripts.benchmarks.cases.write_inputs`.
        backbone: A name for ``clip.load``.
        device: auto, cpu, cuda...
        steps: Least number of timed steps.
        memory: GiB that the process may take; None for all.

    Returns:
        ``seconds`` and ``mib``; the largest ``difference`` for ``check``.
    """
    if memory is not None:
        forbid_more(memory)
    libraries = resident_mib()
    (case,) = cases.named_cases([name])
    if way == "check":
        return {"difference": check(case, Path(root), backbone, device)}
    step, place = prepared(case, way, Path(root), backbone, device)
    reset_peak(place)
    first = median_seconds(step, 1, place)  # warm-up; it counts for the memory
    seconds = median_seconds(step, max(steps, int(LEAST_SECONDS / first)), place)
    peak = peak_mib(place)
    return {"seconds": seconds, "mib": peak if place.type == "cuda" else peak - libraries}


def forbid_more(memory: float) -> None:
    """Let allocations beyond so many GiB fail in this process."""
    import resource  # not on Windows

    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def compare(
    case: Case, args: argparse.Namespace, inputs: Callable[[int], Path], backbone: str
) -> dict[str, Any]:
    """A row of the table: medians over the rounds, and the first reason for a gap as ``error``.

    Args:
        case: What to compare.
        args: The command line's.
        inputs: Returns the directory of K classes.
        backbone: A name for ``clip.load``.
    """
    row: dict[str, Any] = {"method": case.label, "classes": case.classes, "batch": case.batch}
    row["input"] = f"K {case.classes}"  # for the line about an error
    common = {"method": case.label, "kind": row["input"], "batch": case.batch, "name": case.name}
    common |= {"backbone": backbone, "device": args.device, "steps": args.steps}
    common["memory"] = args.memory
    failed = set()

    def ask(way: str, classes: int) -> dict[str, Any]:
        task = {**common, "way": way, "root": str(inputs(classes))}
        found = measure_apart(COMMAND, task, args.threads)
        if "error" in found:
            failed.add(way)
            row.setdefault("error", f"{way}: {found['error']}")
        return found

    row["difference"] = ask("check", min(case.classes, CHECKED_CLASSES)).get("difference")
    if failed:
        return row
    ways = ("ours", "release", "limit") if case.label in PASSES else ("ours", "release")
    turns: list[dict[str, dict[str, Any]]] = []
    for _ in range(args.rounds):
        # What fails once, for want of memory, is not tried again; the others go on.
        found = {way: ask(way, case.classes) for way in ways if way not in failed}
        turns.append({way: one for way, one in found.items() if way not in failed})
    return {**row, **medians(turns)}


def medians(turns: Sequence[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Of the turns' seconds and of their ratios; and the peaks of memory."""
    whole = set.intersection(*(set(turn) for turn in turns))  # ways that never failed
    found = {way: statistics.median(t[way]["seconds"] for t in turns) for way in sorted(whole)}
    for key, other in (("ratio", "release"), ("to_limit", "limit")):
        if {"ours", other} <= whole:
            # The turns' ratios: a turn ran back to back, medians of all rounds did not.
            ratios = [t["ours"]["seconds"] / t[other]["seconds"] for t in turns]
            found[key] = statistics.median(ratios)
    for way in whole - {"limit"}:
        found[f"{way}_mib"] = max(t[way]["mib"] for t in turns)
    if {"ours", "release"} <= whole:
        found["memory_ratio"] = found["ours_mib"] / found["release_mib"]
    return found


def compare_all(args: argparse.Namespace, chosen: Sequence[Case]) -> list[dict[str, Any]]:
    """All rows; each is shown as soon as it is there, since a case takes minutes."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        backbone = backbone_name(args.backbone, root)
        head_towers = str(root / "head.pt")
        cases.write_head_towers(Path(head_towers))
        most = max(case.batch for case in chosen)

        def inputs(classes: int) -> Path:
            folder = root / str(classes)
            if not folder.exists():
                folder.mkdir()
                cases.write_inputs(folder, classes, most)
            return folder

        for case in (progress := tqdm(chosen, disable=None)):
            progress.set_description(case.name)
            given = head_towers if case.input == "features" else backbone
            rows.append(compare(case, args, inputs, given))
            tqdm.write(render(rows[-1:], COLUMNS))
    return rows


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser(COMMAND, __doc__)
    add = parser.add_argument
    known = ", ".join(case.name for case in CASES)
    add("--cases", nargs="+", metavar="NAME", help=f"default: all of {known}; or methods")
    add("--rounds", type=int, default=5, help="turns of the ways, each in a process of its own")
    add("--steps", type=int, default=1, help="timed steps in a process at least, after a warm-up")
    add("--threads", type=int, default=2)
    add("--backbone", default=RANDOM_VIT, help=f"default {RANDOM_VIT}; or what train.py takes")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add(
        "--memory",
        type=float,
        metavar="GIB",
        help="let a way that needs more fail; else the system may end other processes too",
    )
    add("--json", type=Path, metavar="FILE", help="write the rows there too")
    # What a process of its own is asked for; the command starts it, nobody types it.
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a case could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    require_least(parser, args, {"rounds": 1, "steps": 1, "threads": 1})
    torch.set_num_threads(args.threads)
    if args.worker:
        return answer(partial(measure, **args.worker))
    rows = compare_all(args, cases.named_cases(args.cases) if args.cases else CASES)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    print(render(rows, COLUMNS))
    return int(any("error" in row for row in rows))
