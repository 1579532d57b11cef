"""RAda's fast paths: the mask's attention in chunks, and cached features instead of pictures."""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.benchmarks.tools import (
    RANDOM_VIT,
    Case,
    backbone_name,
    begin_training,
    build_run,
    median_seconds,
    peak_mib,
    resident_mib,
    write_pictures,
)
from trainers.heads import HeadOutput, RationalHead
from trainers.rada import mask_loss

CPU = torch.device("cpu")
ALPHA, LR = 1.5, 9e-4  # the paper's
STEPS_OF_EPOCH = 10  # timed with pictures, per step asked for


class PlainRationalHead(nn.Module):
    """RAda's mask as printed, with the parameters of a :class:`RationalHead` of one layer.

    Queries are repeated to K rows and B images; each of the three K x K score matrices of every
    image and head is stored, and goes through one softmax over all its K * K entries, times K;
    their average is applied to the values; M = relu(1 + out).
    """

    def __init__(self, head: RationalHead) -> None:
        super().__init__()
        self.layer: Any = head.layers[0]

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """As :meth:`RationalHead.forward`: f (B, D), h (K, D)."""
        layer, root = self.layer, scale.sqrt()
        batch, classes = len(image), len(text)
        rational = image[:, None] * text  # (B, K, D)
        queries = (
            layer.query["image"](root * image)[:, None].repeat(1, classes, 1),
            layer.query["text"](root * text)[None].repeat(batch, 1, 1),
            layer.query["rational"](scale * rational),
        )
        key, value = (self._heads(t(scale * rational)) for t in (layer.key, layer.value))
        matrices = []
        for query in queries:
            scores = layer.factor * self._heads(query) @ key.transpose(-1, -2)  # (B, H, K, K)
            matrices.append(classes * scores.flatten(-2).softmax(-1).view_as(scores))
        mixed = sum(matrices) / len(matrices) @ value  # (B, H, K, Dh)
        mask = F.relu(1 + layer.out(mixed.transpose(1, 2).flatten(-2)))
        logits = scale * (mask * rational).sum(-1)
        return HeadOutput(logits, (mask - 1).square().mean(), mask)

    def _heads(self, rows: Tensor) -> Tensor:
        """(B, K, D) -> (B, H, K, Dh)."""
        return rows.unflatten(-1, (self.layer.num_heads, -1)).transpose(1, 2)


def measure_step(
    plain: bool, steps: int, classes: int = 500, batch: int = 32, width: int = 512
) -> dict[str, float]:
    """Median seconds of a training step on given features (B, D), and the memory it takes on top.

    ``steps`` are timed after one warm-up, which counts for the memory. Classes K, batch B, width D.
    """
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(n, width), dim=-1) for n in (batch, classes))
    label, scale = torch.randint(classes, (batch,)), torch.tensor(100.0)
    rational = RationalHead(width)
    head: Any = PlainRationalHead(rational) if plain else rational
    optimizer = torch.optim.Adam(head.parameters(), LR)

    def step() -> None:
        loss = mask_loss(head(image, text, scale), label, ALPHA).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    before = resident_mib()
    step()
    seconds = median_seconds(step, steps, CPU)
    return {"seconds": seconds, "mib": peak_mib(CPU) - before}


def measure_epoch(
    plain: bool, steps: int, classes: int = 50, shots: int = 16, backbone: str = RANDOM_VIT
) -> dict[str, float]:
    """Seconds of an epoch of RAda in the engine's loop, batch 1, and peak memory.

    ``plain``: ``STEPS_OF_EPOCH * steps`` steps from pictures are timed, loading included, and
    scaled to the epoch. Else the whole epoch on cached features; these are random, since computing
    them, once for all epochs and runs, is not measured.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        name = backbone_name(backbone, root)
        write_pictures(root, classes, shots, test=1, side=224)
        options = ["DATASET.NUM_SHOTS", shots, "DATALOADER.TRAIN_X.BATCH_SIZE", 1]
        if not plain:
            options += ["FEATURE_CACHE.ENABLED", True, "FEATURE_CACHE.DIR", root / "features"]
        trainer = build_run("RAda", root, name, "cpu", *options)
        seconds = _pictures(trainer, STEPS_OF_EPOCH * steps) if plain else _features(trainer)
        return {"seconds": seconds, "mib": peak_mib(CPU)}


def _pictures(trainer: Any, steps: int) -> float:
    """Seconds of an epoch, from the first steps after one warm-up."""
    begin_training(trainer)
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

    loader.encoder.encode = encode
    begin_training(trainer)
    trainer.forward_backward(next(iter(loader)))  # fills the cache
    started = time.perf_counter()
    trainer.run_epoch()
    return time.perf_counter() - started


CASES = {
    "rada_step": Case(
        "RAda training step, 500 classes, batch 32, D 512, features given; extra memory",
        measure_step,
    ),
    "rada_epoch": Case(
        "RAda epoch, 50 classes x 16 shots, batch 1: pictures (scaled from "
        f"{STEPS_OF_EPOCH} steps per --steps) against cached features",
        measure_epoch,
    ),
}
