"""An epoch of RAda from pictures, and on cached features (--feature-cache).

    python scripts/bench.py features
    python scripts/bench.py features --backbone ViT-B/16 --device cuda --classes 500

The loop is the engine's, with RAda's own batch of one. From pictures some steps are timed, loading
included, and scaled to the epoch. On cached features the whole epoch is; computing them, once for
all epochs and runs, takes about as long as one epoch from pictures without gradients and is not
measured: they are random. Each way has a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dassl.errors import plain_main
from scripts.benchmarks.command import (
    Columns,
    answer,
    make_parser,
    measure_apart,
    print_methods,
    require_least,
)
from scripts.benchmarks.tools import (
    RANDOM_VIT,
    backbone_name,
    begin_training,
    build_run,
    peak_mib,
    write_pictures,
)

COMMAND = "features"
WAYS = ("pictures", "features")
SIDE = 224  # of the pictures' files
COLUMNS: Columns = {
    "method": ("method", ""),
    "input": ("input", ""),
    "batch": ("batch", "d"),
    "seconds": ("s an epoch", ".4g"),
    "mib": ("peak MiB", ".0f"),
}


def measure(
    kind: str, root: str, backbone: str, device: str, shots: int, steps: int, **_: Any
) -> dict[str, float]:
    """Seconds of an epoch and peak memory of this process.

    Args:
        kind: pictures or features.
        root: Directory of :func:`scripts.benchmarks.tools.write_pictures`.
        backbone: A name for ``clip.load``.
        device: auto, cpu, cuda...
        shots: Pictures of a class.
        steps: Timed from pictures, after one warm-up.
    """
    options: list[object] = ["DATASET.NUM_SHOTS", shots, "DATALOADER.TRAIN_X.BATCH_SIZE", 1]
    if kind == "features":
        options += ["FEATURE_CACHE.ENABLED", True, "FEATURE_CACHE.DIR", Path(root) / "features"]
    trainer = build_run("RAda", Path(root), backbone, device, *options)
    begin_training(trainer)
    seconds = _pictures(trainer, steps) if kind == "pictures" else _features(trainer)
    return {"seconds": seconds, "mib": peak_mib(trainer.device)}


def _pictures(trainer: Any, steps: int) -> float:
    """Seconds of an epoch, from the first steps after one warm-up."""
    batches = iter(trainer.train_loader_x)
    trainer.forward_backward(next(batches))
    timed, started = 0, time.perf_counter()
    for batch in islice(batches, steps):
        trainer.forward_backward(batch)
        timed += 1
    return (time.perf_counter() - started) / timed * len(trainer.train_loader_x)


def _features(trainer: Any) -> float:
    """Seconds of an epoch on random features in place of the encoder's."""
    loader = trainer.train_loader_x
    count, width = len(loader.dataset), trainer.model.backbone.embed_dim

    def encode(_loader: Any, _title: str, writer: Any) -> None:
        writer.add(range(count), torch.randn(count, width).numpy())

    # The cache is filled by whatever the encoder is, and read as in any run.
    loader.encoder.encode = encode
    trainer.forward_backward(next(iter(loader)))  # fills the cache
    started = time.perf_counter()
    trainer.run_epoch()
    return time.perf_counter() - started


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way: medians over the rounds, or the reason as ``error``."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        backbone = backbone_name(args.backbone, root)
        write_pictures(root, args.classes, args.shots, test=1, side=SIDE)
        common = {"method": "RAda", "batch": 1, "root": temporary, "backbone": backbone}
        common |= {"device": args.device, "shots": args.shots, "steps": args.steps}
        for way in WAYS * args.rounds:  # in turn
            found[way].append(measure_apart(COMMAND, {**common, "kind": way}, args.threads))
    return [_row(way, of_way) for way, of_way in found.items()]


def _row(way: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": "RAda", "input": way, "batch": 1}
    failed = [one for one in found if "error" in one]
    if failed:
        return {**row, "error": failed[0]["error"]}
    seconds = statistics.median(one["seconds"] for one in found)
    return {**row, "seconds": seconds, "mib": max(one["mib"] for one in found)}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser(COMMAND, __doc__)
    add = parser.add_argument
    add("--classes", type=int, default=50, metavar="K")
    add("--shots", type=int, default=16)
    add("--rounds", type=int, default=3)
    add("--steps", type=int, default=20, help="timed from pictures")
    add("--threads", type=int, default=2)
    add("--backbone", default=RANDOM_VIT, help=f"default {RANDOM_VIT}; or what train.py takes")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--json", action="store_true", help="print the numbers as JSON")
    # What a process of its own is asked for; the command starts it, nobody types it.
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a way could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    # A warm-up and a timed step need two pictures.
    require_least(parser, args, {"classes": 2, "shots": 1, "rounds": 1, "steps": 1, "threads": 1})
    torch.set_num_threads(args.threads)
    if args.worker:
        return answer(partial(measure, **args.worker))
    return print_methods(compare(args), COLUMNS, args.json)
