"""A step of every method that LightRA and RAda are compared with.

    python scripts/bench.py baselines               # 26 minutes on two CPU cores
    python scripts/bench.py baselines --trainers CoOp MaPLe LightRA --classes 200
    python scripts/bench.py baselines --trainers DePT DePT:base2novel_maple TPT:ttt_coop
    python scripts/bench.py baselines --backbone ViT-B/16 --device cuda --json

Each with its base-to-novel config and that config's batch, in a process of its own, on generated
pictures, one batch again and again: loading pictures is not measured. The step is the engine's,
optimiser included; seconds are the median of --steps after a warm-up. Methods with a frozen image
encoder are measured a second time on cached features (--feature-cache).

A step of test-time training is the episodes of one picture, of --batch if given: its views, 64 as
published, through the encoder, the adaptation and the prediction. "trainable" is what an episode
adapts. Episodes of methods that need a trained run start from an untrained one of the same form.

"x zero-shot" is how many times longer the step takes than zero-shot classification of the same
pictures: the frozen model's image features against ready class weights. Both are timed in turn in
one process, and the median of their ratios is given. peak MiB is the most memory in use, model
included: what PyTorch allocated on CUDA, elsewhere what the process took on top of its libraries.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip import adapters_disabled
from clip.text import unit_norm
from dassl.data.transforms import finish
from dassl.engine import TRAINER_REGISTRY
from dassl.errors import plain_main
from scripts.benchmarks import efficiency
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
    median_seconds,
    peak_mib,
    reset_peak,
    resident_mib,
    run_config,
)
from trainers.heads import cosine_logits
from trainers.test_time.episodes import Episodes

COMMAND = "baselines"
# Measured by `bench.py efficiency` and `bench.py ttt`; anything else that is trained base-to-novel
# or adapts to test pictures is a baseline.
OURS = ("LightRA", "LightRAda", "RAda", "RAdaAdapter", "RAdaPrompt", "RAdaTTT")
VIEWS = "views"  # input of test-time training
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
COLUMNS: Columns = {
    "method": ("method", ""),
    "input": ("input", ""),
    "batch": ("batch", "d"),
    "precision": ("precision", ""),
    "parameters": ("trainable", ",d"),
    "seconds": ("seconds", ".3f"),
    "ratio": ("x zero-shot", ".2f"),
    "speed": ("images/s", ".3g"),
    "peak_mib": ("peak MiB", ".0f"),
}


def adapts(trainer: Any) -> bool:
    """Whether a trainer class adapts to each test picture; one made for Dassl has no recipe."""
    return issubclass(getattr(trainer, "recipe_type", object), Episodes)


def test_time_methods() -> list[str]:
    """Names of the registered methods that adapt to each test picture."""
    found = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return [name for name, trainer in found.items() if adapts(trainer)]


def baselines() -> list[str]:
    """Names of all registered methods, except ours, that train base-to-novel or adapt to tests."""
    trained = [n for n in efficiency.methods() if "base2novel" in _trainer_class(n).protocols]
    return [n for n in (*trained, *test_time_methods()) if n not in (*OURS, *ZERO_SHOT)]


def tasks(names: Sequence[str], batches: dict[str, int]) -> list[dict[str, Any]]:
    """Return what is measured, one process each, with the batch size B of each method."""
    return [
        {"method": name, "kind": kind, "batch": batches[name]}
        for name in names
        for kind in _inputs(name)
    ]


def _trainer_class(name: str) -> Any:
    return TRAINER_REGISTRY.get(name.partition(":")[0])


def _inputs(name: str) -> tuple[str, ...]:
    trainer = _trainer_class(name)
    if adapts(trainer):
        return (VIEWS,)
    return ("pictures", "features") if trainer.frozen_image_encoder else ("pictures",)


class Work(NamedTuple):
    """What is timed."""

    trainer: Any
    step: Callable[[], object]  # one training step or one batch of episodes
    batch: dict[str, Any]  # what zero-shot classification gets
    parameters: int  # how many numbers a step changes


def _training(method: str, kind: str, batch: int, *where: Any) -> Work:
    """Steps of the engine's training loop; ``where`` as ``build_run``."""
    options = ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", batch]
    trainer = build_run(method, *where, *options)
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if not parameters:
        raise ValueError(f"{method} does not train: it has no step to measure")
    data = efficiency.first_batch(trainer, trainer.train_loader_x, kind)
    begin_training(trainer)
    return Work(trainer, partial(trainer.forward_backward, data), data, parameters)


def _episodes(method: str, kind: str, batch: int, root: Path, *where: Any) -> Work:
    """Episodes of the engine's evaluation; ``where`` as ``build_run``."""
    name = method.partition(":")[0]
    options = ["DATALOADER.NUM_WORKERS", 0, f"TRAINER.{name}.BATCH", batch]
    if start := untrained_start(method, root, *where):
        options += ["FIRST_STAGE.DIR", start]
    trainer = build_run(method, root, *where, *options)
    trainer.load_model("")  # computes what a run needs once, such as token statistics
    trainer.set_model_mode("eval")
    views = efficiency.first_batch(trainer, trainer.test_loader, kind)["img"]

    @torch.no_grad()
    def step() -> Tensor:
        with trainer.autocast():
            return trainer.model_inference(views)

    clean = {"img": finish(views[:, 0], trainer.recipe.normalize)}
    return Work(trainer, step, clean, trainer.recipe.adapted_parameters())


def untrained_start(method: str, root: Path, *where: Any) -> Path | None:
    """Return a run without training that a method's episodes start from; None if it needs none.

    Made once, by :func:`run` before the processes that measure, so that it is no part of their
    memory. ``where`` is backbone and device.
    """
    cfg = run_config(method, root, *where)
    start = cfg.FIRST_STAGE.CONFIG.split("/")[0]
    directory = root / f"start_of_{method.replace(':', '_')}"
    if not start or directory.exists():
        return directory if start else None
    section = cfg.TRAINER[start].items()  # the form of the prompts
    options = [word for key, value in section for word in (f"TRAINER.{start}.{key}", value)]
    trainer = build_run(start, root, *where, *options, "OUTPUT_DIR", directory)
    trainer.save_model(0, directory)
    # Episodes read the run's result, which says on which pictures it was trained; one made-up
    # prediction is enough for a result.
    trainer.evaluator.process(torch.eye(trainer.num_classes)[:1], torch.tensor([0]))
    found = trainer.evaluator.evaluate()
    trainer.record.add_test("test", found, trainer.evaluator.per_class(), 0.0)
    return directory


def measure(
    method: str, kind: str, batch: int, root: str, backbone: str, device: str, steps: int
) -> dict[str, Any]:
    """Measure a method's step and zero-shot classification in turn, in this process.

    Args:
        method: Name of a method that trains or adapts, see
            :func:`scripts.benchmarks.tools.run_config`.
        kind: ``pictures``, or ``features`` for what the image encoder made of them; ``views`` for
            test-time training.
        batch: B.
        root: Directory of :func:`scripts.benchmarks.tools.write_pictures`, with B pictures to
            train on or to test on.
        backbone: A name for ``clip.load``.
        device: auto, cpu, cuda...
        steps: Timed steps.

    Returns:
        A value for every key of ``COLUMNS``; no ratio for features, where zero-shot classification
        has nothing left to encode.
    """
    libraries = resident_mib()
    prepare = _episodes if kind == VIEWS else _training
    trainer, step, data, parameters = prepare(method, kind, batch, Path(root), backbone, device)
    reset_peak(trainer.device)
    step()
    weights = torch.randn(trainer.num_classes, trainer.model.backbone.embed_dim)  # (K, D)
    zero_shot = partial(classify, trainer, data, weights)
    compared = kind != "features"
    if compared:
        zero_shot()
    seconds, ratios = [], []
    # In turn, so that a change of the machine's speed meets both.
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


@torch.no_grad()
def classify(trainer: Any, batch: dict[str, Any], weights: Tensor) -> Tensor:
    """Logits (B, K) of a batch's pictures by the model without adapters; weights are (K, D).

    Of several views of a picture the first counts.
    """
    views = batch["img"]
    pictures = views[0] if isinstance(views, list) else views
    with adapters_disabled(trainer.model), trainer.autocast():
        image = trainer.model.backbone.encode_image(pictures)  # (B, D)
        return cosine_logits(unit_norm(image), weights.to(image), torch.tensor(100.0).to(image))


def own_batch(method: str, root: Path, backbone: str) -> int:
    """B of a method's training config; one picture for test-time training, whatever its config."""
    cfg = run_config(method, root, backbone, "cpu")
    return 1 if _inputs(method) == (VIEWS,) else cfg.DATALOADER.TRAIN_X.BATCH_SIZE


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure everything that the arguments ask for, one process after the other."""

    def planned(root: Path, backbone: str) -> list[dict[str, Any]]:
        batches = {name: args.batch or own_batch(name, root, backbone) for name in args.trainers}
        return tasks(args.trainers, batches)

    def prepare(root: Path, backbone: str) -> None:
        for name in args.trainers:
            if _inputs(name) == (VIEWS,):
                untrained_start(name, root, backbone, "cpu")

    return measure_methods(COMMAND, args, planned, prepare)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = method_parser(COMMAND, __doc__, baselines())
    help_text = "default: each config's own, 1 of views"
    parser.add_argument("--batch", type=int, default=0, metavar="B", help=help_text)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a method could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.worker:
        return answer(partial(measure, **args.worker))
    require_least(parser, args, {"classes": 1, "steps": 1, "threads": 1, "batch": 0})
    check_methods(args.trainers, [*efficiency.methods(), *test_time_methods()])
    return print_methods(run(args), COLUMNS, args.json)
