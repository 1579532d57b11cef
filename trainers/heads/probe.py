"""A linear classifier that knows which classes its rows were trained for, beside a host's model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip import Backbone
from clip.adapters import Adapter
from clip.prompts import match_key
from trainers.base.class_rows import class_rows, imagenet_rows
from trainers.base.prompted_clip import PromptedCLIP


def fingerprints(classnames: Sequence[str]) -> Tensor:
    """A number for each class name, which identifies a classifier's row in checkpoints: (K,)."""
    digests = [hashlib.sha256(match_key(name).encode()).digest() for name in classnames]
    # 56 bits: the largest whole number of bytes that a signed 64-bit integer holds.
    return torch.tensor([int.from_bytes(digest[:7], "big") for digest in digests])


class Probe(Adapter):
    """A linear classifier of un-normalised features; images and texts are rescaled by channel."""

    classes: Tensor  # fingerprints of the K classes that the rows are for; saved with the weights
    current: Tensor  # fingerprints of the run's classes

    def __init__(self, classnames: Sequence[str], width: int) -> None:
        super().__init__()
        plain = nn.Linear(width, len(classnames))
        self.weight, self.bias = plain.weight, plain.bias
        self.image_scale, self.text_scale = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.image_shift, self.text_shift = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.register_buffer("classes", fingerprints(classnames))
        self.register_buffer("current", self.classes.clone(), persistent=False)

    def of_image(self, image: Tensor) -> Tensor:
        """Logits of image features f', (B, D) -> (B, K)."""
        return F.linear(self.image_scale * image + self.image_shift, self.weight, self.bias)

    def of_text(self, text: Tensor) -> Tensor:
        """Logits of text features h', (B, D) -> (B, K)."""
        return F.linear(self.text_scale * text + self.text_shift, self.weight, self.bias)

    def knows_classes(self) -> bool:
        """Whether the classes of the run are those that the rows were trained on."""
        return torch.equal(self.classes, self.current)

    def fitted(self, state: Mapping[str, Tensor], prefix: str, dataset: Any) -> dict[str, Tensor]:
        """A trained probe's state, names behind ``prefix``, for the classes of the run's dataset.

        Their rows are picked. If a class has none, this probe keeps its own values and gets classes
        of no run, so that :meth:`knows_classes` is False.
        """
        fitted = dict(state)
        classes = fitted[f"{prefix}classes"]
        rows = self._rows(classes, dataset)
        # Channel scales and shifts belong to no class: they are taken over in any case.
        if rows is not None:
            for name in {f"{prefix}weight", f"{prefix}bias"} & fitted.keys():
                fitted[name] = fitted[name][rows]
            fitted[f"{prefix}classes"] = self.current.cpu()
        elif classes.shape != self.current.shape:  # else the fingerprints tell
            fitted[f"{prefix}weight"], fitted[f"{prefix}bias"] = self.weight.data, self.bias.data
            fitted[f"{prefix}classes"] = torch.full_like(self.current, -1).cpu()
        return fitted

    def _rows(self, classes: Tensor, dataset: Any) -> list[int] | None:
        """Where the run's classes are among a probe's; None if one is not."""
        found = class_rows(self.current.tolist(), classes.tolist(), keys=(int,))
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            return None
        if len(classes) == len(dataset.imagenet_names) and (labels := imagenet_rows(dataset)):
            return labels
        return rows


class DecoupledCLIP(nn.Module):
    """A host's model, with one prompt per class, and the probe.

    ``weight`` is t; ``mixes`` says whether the probe counts in evaluation, on its own classes.
    """

    def __init__(
        self, host: PromptedCLIP, classnames: Sequence[str], weight: float, mixes: bool = True
    ) -> None:
        super().__init__()
        self.host = host
        self.probe = Probe(classnames, host.backbone.embed_dim)
        self.weight, self.mixes = weight, mixes

    @property
    def backbone(self) -> Backbone:
        """The host's."""
        return self.host.backbone

    def image_features(self, image: Tensor) -> Tensor:
        """The host's unit-norm image features, (B, D)."""
        return self.host.image_features(image)

    def class_weights(self) -> Tensor:
        """The host's class weights, (K, D)."""
        return self.host.class_weights()

    def forward(self, image: Tensor) -> Tensor:
        """(1 - t) host's logits + t probe's on its classes, the host's on others: -> (B, K)."""
        f = self.host.raw_image_features(image)  # (B, D); the host takes it for a cached feature
        logits = self.host(f)  # (B, K)
        if not (self.mixes and self.probe.enabled and self.probe.knows_classes()):
            return logits
        return (1 - self.weight) * logits + self.weight * self.probe.of_image(f)
