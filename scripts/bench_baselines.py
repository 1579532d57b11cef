"""A training step of every method that LightRA and RAda are compared with.

    python scripts/bench.py baselines               # about 20 minutes on two CPU cores
    python scripts/bench.py baselines --trainers CoOp MaPLe LightRA --classes 200
    python scripts/bench.py baselines --backbone ViT-B/16 --device cuda --json

Each with its base-to-novel config and that config's batch, in a process of its own, on generated
pictures, one batch again and again: loading pictures is not measured. The step is the engine's,
optimiser included; seconds are the median of --steps after a warm-up. Methods that leave the image
encoder alone are measured a second time on kept features (--feature-cache).

"x zero-shot" is what the step costs over zero-shot classification of the same pictures: the frozen
model's image features against class weights that are at hand. Both are taken in turn in the same
process, and the median of their ratios is given. peak MiB is the most memory in use, model
included: what PyTorch allocated on CUDA, elsewhere what the process took on top of its libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import clip
from clip import adapters_disabled
from clip.text import unit_norm
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.registry import check_availability
from scripts import efficiency
from scripts.bench_tools import (
    RANDOM_VIT,
    backbone_name,
    begin_training,
    build_run,
    median_seconds,
    peak_mib,
    reset_peak,
    resident_mib,
    run_config,
    write_pictures,
)
from trainers.heads import cosine_logits

COMMAND = "baselines"
# Measured by `bench.py efficiency`; anything else that is trained base-to-novel is a baseline.
OURS = ("LightRA", "LightRAda", "RAda", "RAdaAdapter", "RAdaPrompt")
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
COLUMNS = {  # key -> (heading, format)
    "method": ("method", ""),
    "input": ("input", ""),
    "batch": ("batch", "d"),
    "precision": ("precision", ""),
    "parameters": ("trainable", ",d"),
    "seconds": ("seconds", ".3f"),
    "ratio": ("x zero-shot", ".2f"),
    "speed": ("images/s", ".1f"),
    "peak_mib": ("peak MiB", ".0f"),
}


def baselines() -> list[str]:
    """Names of the registered methods that are compared with, whoever registered them."""
    return [
        name
        for name in efficiency.methods()
        if name not in (*OURS, *ZERO_SHOT) and "base2novel" in TRAINER_REGISTRY.get(name).protocols
    ]


def tasks(names: Sequence[str], batches: dict[str, int]) -> list[dict[str, Any]]:
    """What is measured, one process each.

    Args:
        names: Registered methods.
        batches: B of each.
    """
    return [
        {"method": name, "kind": kind, "batch": batches[name]}
        for name in names
        for kind in _inputs(name)
    ]


def _inputs(name: str) -> tuple[str, ...]:
    frozen = TRAINER_REGISTRY.get(name).frozen_image_encoder
    return ("pictures", "features") if frozen else ("pictures",)


def measure(
    method: str, kind: str, batch: int, root: str, backbone: str, device: str, steps: int
) -> dict[str, Any]:
    """Measure a method's step and zero-shot classification in turn, in this process.

    Args:
        method: Registered name of a method that trains.
        kind: ``pictures``, or ``features`` for what the image encoder made of them.
        batch: B.
        root: Directory of :func:`scripts.bench_tools.write_pictures`, with B pictures to train on.
        backbone: A name for ``clip.load``.
        device: auto, cpu, cuda...
        steps: Timed steps.

    Returns:
        A value for every key of ``COLUMNS``; no ratio for features, which zero-shot classification
        takes no time with.

    Raises:
        ValueError: The method has nothing to train.
    """
    libraries = resident_mib()
    options = ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", batch]
    trainer = build_run(method, Path(root), backbone, device, *options)
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if not parameters:
        raise ValueError(f"{method} does not train: it has no step to measure")
    data = efficiency.first_batch(trainer, trainer.train_loader_x, kind)
    reset_peak(trainer.device)
    begin_training(trainer)
    step = partial(trainer.forward_backward, data)
    step()
    zero_shot = partial(classify, trainer, data, torch.randn(trainer.num_classes, _width(trainer)))
    compared = kind == "pictures"
    if compared:
        zero_shot()
    seconds, ratios = [], []
    for _ in range(steps):
        seconds.append(median_seconds(step, 1, trainer.device))
        if compared:
            ratios.append(seconds[-1] / median_seconds(zero_shot, 1, trainer.device))
    peak = peak_mib(trainer.device)
    median = statistics.median(seconds)
    return {
        "method": method,
        "input": kind,
        "batch": batch,
        "precision": trainer.precision,
        "parameters": parameters,
        "seconds": median,
        "ratio": statistics.median(ratios) if ratios else None,
        "speed": batch / median,
        "peak_mib": peak if trainer.device.type == "cuda" else peak - libraries,
    }


def _width(trainer: Any) -> int:
    return trainer.model.backbone.embed_dim


@torch.no_grad()
def classify(trainer: Any, batch: dict[str, Any], weights: Tensor) -> Tensor:
    """Logits of a batch's pictures by the model without what the method put into it, (B, K).

    Args:
        trainer: Built.
        batch: Of :func:`scripts.efficiency.first_batch`; of several views the first counts.
        weights: (K, D).
    """
    views = batch["img"]
    pictures = views[0] if isinstance(views, list) else views
    with adapters_disabled(trainer.model), trainer.autocast():
        image = trainer.model.backbone.encode_image(pictures)
        return cosine_logits(unit_norm(image), weights.to(image), torch.tensor(100.0).to(image))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure everything that the arguments ask for, one process after the other.

    Raises:
        ValueError: The backbone is unknown.
        ConnectionError: Its weights are not here and cannot be downloaded.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        backbone = backbone_name(args.backbone, root)
        batches = {
            name: args.batch
            or run_config(name, root, backbone, "cpu").DATALOADER.TRAIN_X.BATCH_SIZE
            for name in args.trainers
        }
        each = -(-max(batches.values()) // args.classes)  # enough for a batch
        write_pictures(root, args.classes, each, 1, clip.input_spec(backbone).size)
        common = {"root": temporary, "backbone": backbone, "device": args.device}
        common["steps"] = args.steps
        return [
            efficiency.measure_apart({**task, **common}, args.threads, COMMAND)
            for task in tqdm(tasks(args.trainers, batches), disable=None)
        ]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog=f"bench.py {COMMAND}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--backbone", default=RANDOM_VIT, help=f"default {RANDOM_VIT}, see bench.py efficiency")
    add("--classes", type=int, default=100, metavar="K")
    add("--batch", type=int, default=0, metavar="B", help="default: each config's own")
    add("--trainers", nargs="+", default=baselines(), metavar="NAME", help="default: all baselines")
    add("--steps", type=int, default=3, help="timed steps, after one warm-up")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--json", action="store_true", help="print the numbers as JSON")
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


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
    for name, least in (("classes", 1), ("steps", 1), ("threads", 1), ("batch", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    try:
        for name in args.trainers:
            check_availability(name, efficiency.methods())
        results = run(args)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=2) if args.json else efficiency.render(results, COLUMNS))
    return int(any("error" in one for one in results))
