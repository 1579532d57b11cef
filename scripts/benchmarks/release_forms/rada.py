"""RAda in the form of its release: queries repeated, and all K x K scores stored.

Full fine-tuning and test-time training were never released; they are written here as plainly.

Notation: B images, N of them side by side with V views each, K classes, D embedding width, H heads,
Dh head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from dassl.data.transforms import finish
from scripts.benchmarks.release_forms.step import ReleaseStep, tokens_of
from scripts.benchmarks.release_forms.towers import ReleasedCLIP, unit
from scripts.benchmarks.ttt import one_by_one

HEADS = 8
LAYER = "head.layers.0"


class RAdaHead(ReleaseStep):
    """The mask as printed, on given features (B, D).

    Queries are repeated to K rows and B images; each of the three K x K score matrices of every
    image and head is stored, and goes through one softmax over all its K * K entries, times K;
    their average is applied to the values; M = relu(1 + out).
    """

    def prepare(self, trainer: Any) -> None:
        """Encode the classes' prompts."""
        tokens = tokens_of(trainer.model.bank.texts, self.clip.text)
        self.text = unit(self.clip.text.encode(tokens))  # (K, D)
        self.alpha = trainer.cfg.ALPHA

    def image_features(self) -> Tensor:
        """f, (B, D)."""
        return unit(self.image)

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        f, scale = self.image_features(), self.clip.scale
        rational = f[:, None] * self.text[None]  # (B, K, D)
        mask = self.mask(f, rational)
        logits = scale * (mask * rational).sum(-1)  # (B, K)
        return F.cross_entropy(logits, self.label) + self.alpha * (mask - 1).square().mean()

    def mask(self, f: Tensor, rational: Tensor) -> Tensor:
        """M, (B, K, D), of f (B, D) and R (B, K, D)."""
        scale, (batch, classes, _) = self.clip.scale, rational.shape
        root, pairs = scale.sqrt(), scale * rational
        image = self.linear(root * f, "query.image")[:, None].repeat(1, classes, 1)
        text = self.linear(root * self.text, "query.text")[None].repeat(batch, 1, 1)
        rows = (image, text, self.linear(pairs, "query.rational"))  # (B, K, D) each
        key, value = (by_head(self.linear(pairs, name)) for name in ("key", "value"))
        matrices = []
        for query in map(by_head, rows):
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, H, K, K)
            matrices.append(classes * scores.flatten(2).softmax(-1).view_as(scores))
        mixed = (matrices[0] + matrices[1] + matrices[2]) / 3 @ value  # (B, H, K, Dh)
        return F.relu(1 + self.linear(mixed.transpose(1, 2).flatten(2), "out"))

    def linear(self, rows: Tensor, name: str) -> Tensor:
        """A layer of the mask: (..., D) -> (..., D)."""
        weight, bias = (self.learned[f"{LAYER}.{name}.{part}"] for part in ("weight", "bias"))
        return F.linear(rows, weight, bias)


def by_head(rows: Tensor) -> Tensor:
    """(B, K, D) -> (B, H, K, Dh)."""
    return rows.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class RAda(RAdaHead):
    """The same behind the frozen image encoder, which runs in every step."""

    def image_features(self) -> Tensor:
        """f, (B, D), of pictures."""
        with torch.no_grad():
            return unit(self.clip.visual(self.image))


class RAdaFT(RAdaHead):
    """Image encoder, classifier W and mask train on, with cross entropy alone."""

    def prepare(self, trainer: Any) -> None:
        """Tell the encoder's weights from the others, by their names in the image tower."""
        start = "backbone.model.visual."
        self.encoder = {n.removeprefix(start): p for n, p in self.learned.items() if start in n}

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        f = unit(functional_call(self.clip.visual, self.encoder, (self.image,)))  # (B, D)
        self.text = self.learned["classifier"]  # (K, D)
        rational = f[:, None] * self.text[None]  # (B, K, D)
        logits = self.clip.scale * (self.mask(f, rational) * rational).sum(-1)  # (B, K)
        return F.cross_entropy(logits, self.label)


class RAdaTTT:
    """Episodes of images one after the other: all views through the mask in every step.

    Args:
        trainer: Ours.
        batch: ``img`` are views, bytes (N, V, 3, S, S).
    """

    def __init__(self, trainer: Any, batch: dict[str, Any]) -> None:
        self.clip, self.head = ReleasedCLIP(trainer.model.backbone), trainer.model.head
        self.text = unit(self.clip.text.encode(tokens_of(trainer.model.bank.texts, self.clip.text)))
        self.selected = trainer.recipe.selected
        self.views = [finish(views, trainer.recipe.normalize) for views in batch["img"]]

    def __call__(self) -> Tensor:
        """Logits of view 0 of each image after its episode, (N, K)."""
        with torch.no_grad():
            features = torch.stack([unit(self.clip.visual(views)) for views in self.views])
        return one_by_one(
            self.head, features, self.text, self.selected, all_views=True, scale=self.clip.scale
        )
