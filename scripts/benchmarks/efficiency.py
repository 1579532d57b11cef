"""What each method costs: parameters, speed, memory, operations (RAda, arXiv:2507.15480, Table 5).

    python scripts/bench.py efficiency
    python scripts/bench.py efficiency --backbone shapes --batch 8 32 --trainers RAda LightRA
    python scripts/bench.py efficiency --backbone ViT-B/16 --device cuda --classes 1000 --json

Every method of this repository with its base-to-novel config, in a process of its own, on generated
pictures. Steps are the engine's, one batch again and again: loading pictures is not measured.
Speed is the median of --steps after a warm-up, which also computes what a method keeps: class
weights in evaluation and, with a frozen text encoder, in training. Methods with a frozen image
encoder are measured a second time on cached features (--feature-cache).

peak MiB is that of training, model included: what PyTorch allocated on CUDA, elsewhere what the
process took on top of its libraries. GFLOP are counted, a multiply-add as two: matrix products,
convolutions and attention, forward and backward, but no elementwise operation, no softmax and no
optimiser.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dassl.engine import TRAINER_REGISTRY
from dassl.errors import plain_main
from scripts.benchmarks.command import (
    Columns,
    answer,
    check_methods,
    measure_methods,
    method_parser,
    print_methods,
    require_least,
)
from scripts.benchmarks.tools import (
    begin_training,
    build_run,
    count_gflops,
    median_seconds,
    peak_mib,
    reset_peak,
    resident_mib,
)
from trainers.base import CLIPTrainer

COMMAND = "efficiency"
COLUMNS: Columns = {
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
    """Names of the registered ``CLIPTrainer`` methods that train in steps.

    ``bench.py ttt`` has test-time training; what is fitted to all features at once has no step.
    """
    found = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return [
        name
        for name, trainer in found.items()
        if issubclass(trainer, CLIPTrainer)
        and trainer.protocols != ("ttt",)
        and trainer.recipe_type.takes_steps
    ]


def tasks(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is measured, one process each: the arguments of :func:`measure`."""
    for method in args.trainers:
        inputs = ["pictures"]
        if TRAINER_REGISTRY.get(method.partition(":")[0]).frozen_image_encoder:
            inputs.append("features")
        for kind in inputs:
            for batch in args.batch:
                yield {"method": method, "kind": kind, "batch": batch}


def measure(
    method: str, kind: str, batch: int, root: str, backbone: str, device: str, steps: int
) -> dict[str, Any]:
    """Measure a method in this process; see :func:`scripts.benchmarks.baselines.measure`.

    ``root`` holds B pictures to train on and B to test on. Returns a value for every key of
    ``COLUMNS``; None where a method does not train.
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
        training["peak_mib"] -= libraries  # PyTorch and others, loaded before the run was built
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
    views = batch["img"]  # (B, 3, S, S), or a list of those if the method takes several views
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
            batch["img"] = trainer.model.backbone.encode_image(batch["img"])  # (B, D)
    return batch


def _training(trainer: Any, batch: dict[str, Any], steps: int, parameters: int) -> dict[str, Any]:
    if not parameters:
        return {"train_speed": None, "peak_mib": None, "train_gflop": None}

    def step() -> None:
        trainer.forward_backward(batch)

    size = len(batch["label"])
    reset_peak(trainer.device)
    begin_training(trainer)
    step()  # warm-up; it makes the optimiser's state, which counts for the memory
    seconds = median_seconds(step, steps, trainer.device)
    peak = peak_mib(trainer.device)  # before counting operations, which takes memory of its own
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
    predict()  # warm-up; it makes the class weights
    seconds = median_seconds(predict, steps, trainer.device)
    return {"test_speed": size / seconds, "test_gflop": count_gflops(predict) / size}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = method_parser(COMMAND, __doc__, methods())
    parser.add_argument("--batch", type=int, nargs="+", default=[32], metavar="B")
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a method could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.worker:
        return answer(partial(measure, **args.worker))
    require_least(parser, args, {"classes": 1, "steps": 1, "threads": 1, "batch": 1})
    check_methods(args.trainers, methods())
    results = measure_methods(COMMAND, args, lambda *_: list(tasks(args)))
    return print_methods(results, COLUMNS, args.json)
