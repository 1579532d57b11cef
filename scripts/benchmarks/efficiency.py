"""What each method costs: parameters, speed, memory, operations (RAda, arXiv:2507.15480, Table 5).

    python scripts/bench.py efficiency
    python scripts/bench.py efficiency --backbone shapes --batch 8 32 --trainers RAda LightRA
    python scripts/bench.py efficiency --backbone ViT-B/16 --device cuda --classes 1000 --json

Every method of this repository with its base-to-novel config, in a process of its own, on generated
pictures. Steps are the engine's, one batch again and again: loading pictures is not measured.
Speed is the median of --steps after a warm-up, which also makes what a method keeps: class weights
in evaluation and, of those that leave the text encoder alone, in training. Methods that leave the
image encoder alone are measured a second time on kept features (--feature-cache).

peak MiB is that of training, model included: what PyTorch allocated on CUDA, elsewhere what the
process took on top of its libraries. GFLOP are counted, a multiply-add as two: matrix products,
convolutions and attention, forward and backward, but no elementwise operation, no softmax and no
optimiser.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

import clip
from dassl.engine import TRAINER_REGISTRY
from dassl.errors import plain_main
from dassl.names import check_availability
from scripts.benchmarks.tools import (
    RANDOM_VIT,
    backbone_name,
    begin_training,
    build_run,
    count_gflops,
    median_seconds,
    peak_mib,
    reset_peak,
    resident_mib,
    write_pictures,
)
from trainers.base import CLIPTrainer

COLUMNS = {  # key -> (heading, format)
    "method": ("method", ""),
    "input": ("input", ""),
    "batch": ("batch", "d"),
    "precision": ("precision", ""),
    "parameters": ("trainable", ",d"),
    "train_speed": ("train images/s", ".1f"),
    "test_speed": ("test images/s", ".1f"),
    "peak_mib": ("peak MiB", ".0f"),
    "train_gflop": ("train GFLOP/image", ".3g"),
    "test_gflop": ("test GFLOP/image", ".3g"),
}


def methods() -> list[str]:
    """Names of the registered trainers that are built on ``CLIPTrainer`` and do not adapt to tests.

    What test-time training takes is measured by ``bench.py ttt``.
    """
    found = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return [
        name
        for name, trainer in found.items()
        if issubclass(trainer, CLIPTrainer) and trainer.protocols != ("ttt",)
    ]


def tasks(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is measured, one process each: the arguments of :func:`measure`."""
    for method in args.trainers:
        inputs = ["pictures"]
        if TRAINER_REGISTRY.get(method).frozen_image_encoder:
            inputs.append("features")
        for kind in inputs:
            for batch in args.batch:
                yield {"method": method, "kind": kind, "batch": batch}


def measure(
    method: str, kind: str, batch: int, root: str, backbone: str, device: str, steps: int
) -> dict[str, Any]:
    """Measure a method in this process.

    Args:
        method: Registered name.
        kind: ``pictures``, or ``features`` for what the image encoder made of them.
        batch: B.
        root: Directory of :func:`scripts.benchmarks.tools.write_pictures`, with B pictures to
        train on
            and B to test on.
        backbone: A name for ``clip.load``.
        device: auto, cpu, cuda...
        steps: Timed steps.

    Returns:
        A value for every key of ``COLUMNS``; None where a method does not train.
    """
    libraries = resident_mib()
    options = ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", batch]
    options += ["DATALOADER.TEST.BATCH_SIZE", batch]
    trainer = build_run(method, Path(root), backbone, device, *options)
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    training = _training(
        trainer, first_batch(trainer, trainer.train_loader_x, kind), steps, parameters
    )
    if training["peak_mib"] is not None and trainer.device.type != "cuda":
        training["peak_mib"] -= libraries
    return {
        "method": method,
        "input": kind,
        "batch": batch,
        "precision": trainer.precision,
        "parameters": parameters,
        **training,
        **_evaluation(trainer, first_batch(trainer, trainer.test_loader, kind), steps),
    }


@torch.no_grad()
def first_batch(trainer: Any, loader: Any, kind: str) -> dict[str, Any]:
    """The first batch of a loader, on the device, as pictures or as features."""
    batch = next(iter(loader))
    views = batch["img"]  # several of each picture, if the method asks for them
    batch["img"] = (
        [view.to(trainer.device) for view in views]
        if isinstance(views, list)
        else views.to(trainer.device)
    )
    for key in ("label", "domain"):
        batch[key] = batch[key].to(trainer.device)
    if kind == "features":
        trainer.set_model_mode("eval")
        with trainer.autocast():
            batch["img"] = trainer.model.backbone.encode_image(batch["img"])
    return batch


def _training(trainer: Any, batch: dict[str, Any], steps: int, parameters: int) -> dict[str, Any]:
    if not parameters:
        return {"train_speed": None, "peak_mib": None, "train_gflop": None}

    def step() -> None:
        trainer.forward_backward(batch)

    size = len(batch["label"])
    reset_peak(trainer.device)
    begin_training(trainer)
    step()
    seconds = median_seconds(step, steps, trainer.device)
    peak = peak_mib(trainer.device)
    return {
        "train_speed": size / seconds,
        "peak_mib": peak,
        "train_gflop": count_gflops(step) / size,
    }


@torch.no_grad()
def _evaluation(trainer: Any, batch: dict[str, Any], steps: int) -> dict[str, Any]:
    def predict() -> None:
        with trainer.autocast():
            trainer.model_inference(batch["img"])

    size = len(batch["label"])
    trainer.set_model_mode("eval")
    predict()
    seconds = median_seconds(predict, steps, trainer.device)
    return {"test_speed": size / seconds, "test_gflop": count_gflops(predict) / size}


def measure_apart(
    task: dict[str, Any], threads: int, command: str = "efficiency"
) -> dict[str, Any]:
    """:func:`measure`, or that of another sub-command, in a process of its own.

    Args:
        task: Its arguments.
        threads: Of PyTorch.
        command: Sub-command of ``bench.py`` that takes the task as ``--worker``.

    Returns:
        Its result; if it fails, the task with the reason as ``error``.
    """
    words = [sys.executable, str(Path(__file__).parents[1] / "bench.py"), command]
    words += ["--worker", json.dumps(task), "--threads", str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = [line for line in done.stderr.splitlines() if line.strip()][-1:]
    return {
        "method": task["method"],
        "input": task["kind"],
        "batch": task["batch"],
        "error": reason[0] if reason else f"ended with status {done.returncode}",
    }


def render(found: Sequence[dict[str, Any]], columns: dict[str, tuple[str, str]] = COLUMNS) -> str:
    """The table of results by ``columns``, and below it why a method has none."""
    rows = []
    for one in found:
        cells = []
        for key, (_, form) in columns.items():
            value = one.get(key)
            cells.append("-" if value is None else format(value, form))
        rows.append(cells)
    texts = ("method", "input", "precision")
    align = ["left" if key in texts else "right" for key in columns]
    heads = [heading for heading, _ in columns.values()]
    table = tabulate(rows, heads, colalign=align, disable_numparse=True)
    errors = [
        f"{one['method']} ({one['input']}, batch {one['batch']}): {one['error']}"
        for one in found
        if "error" in one
    ]
    return "\n".join([table, *errors])


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="bench.py efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--backbone",
        default=RANDOM_VIT,
        help=f"default {RANDOM_VIT}: that architecture of open_clip with random weights; or any "
        "name or file that train.py takes",
    )
    add("--classes", type=int, default=100, metavar="K")
    add("--batch", type=int, nargs="+", default=[32], metavar="B")
    add("--trainers", nargs="+", default=methods(), metavar="NAME", help="default: all")
    add("--steps", type=int, default=3, help="timed steps, after one warm-up")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--json", action="store_true", help="print the numbers as JSON")
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure everything that the arguments ask for, one process after the other.

    Raises:
        ValueError: The backbone is unknown.
        ConnectionError: Its weights are not here and cannot be downloaded.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        backbone = backbone_name(args.backbone, root)
        each = -(-max(args.batch) // args.classes)  # enough for a batch
        write_pictures(root, args.classes, each, each, clip.input_spec(backbone).size)
        common = {"root": temporary, "backbone": backbone, "device": args.device}
        common["steps"] = args.steps
        return [
            measure_apart({**task, **common}, args.threads)
            for task in tqdm(list(tasks(args)), disable=None)
        ]


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a method could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.worker:
        with contextlib.redirect_stdout(sys.stderr):  # what the engine prints
            found = measure(**args.worker)
        print(json.dumps(found))
        return 0
    for name in ("classes", "steps", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if min(args.batch) < 1:
        parser.error(f"--batch must be at least 1, got {min(args.batch)}")
    for name in args.trainers:
        check_availability(name, methods())
    results = run(args)
    print(json.dumps(results, indent=2) if args.json else render(results))
    return int(any("error" in one for one in results))
