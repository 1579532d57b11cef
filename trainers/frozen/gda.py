"""GDA: Gaussian discriminant analysis, a classifier in closed form, added to zero-shot CLIP.

"A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation", ICLR 2024, arXiv:2402.04087.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.config.schema import Option, count, number
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer
from trainers.frozen.gaussian import (
    class_means,
    classifier,
    novel_classifier,
    precision_matrix,
)
from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.frozen.recipe import FittedAtOnce
from trainers.frozen.search import best_of
from trainers.heads import HeadOutput, cosine_logits

SHARES = tuple(10.0**power for power in range(-4, 3))  # of the classifier, tried


class DiscriminantHead(ClassHead):
    """``logits = s f t^T + alpha (f W^T + b)``; rows are kept where novel classes may come."""

    chosen = ("alpha",)
    novel_words = "GDA's own rule (text and its nearest training rows)"
    rows: Tensor
    alpha: Tensor

    def __init__(self, classes: int, width: int, alpha: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.add_number("alpha", alpha)
        self.register_buffer("rows", torch.zeros(0, width))
        self._novel: tuple[Tensor, Tensor] | None = None

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """Logits of f (B, D) with text t (K, D): (B, K)."""
        own = self.of_run(F.linear(image, self.weight, self.bias))
        logits = cosine_logits(image, text, scale) + self.alpha * own
        return HeadOutput(logits, logits.new_zeros(()))

    def novel(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """The same for classes that were not trained; zero-shot if the run kept no rows."""
        zero_shot = cosine_logits(image, text, scale)
        if not len(self.rows):
            return zero_shot
        if self._novel is None:
            weight, bias = novel_classifier(self.rows.double(), text.double())
            self._novel = weight.to(image), bias.to(image)
        return zero_shot + self.alpha * F.linear(image, *self._novel)


@TRAINER_REGISTRY.register()
class GDA(CLIPTrainer):
    """Nothing is trained: W and b follow from means and covariance of augmented features.

    Rows are the unit features of VIEWS augmentations of each image. Base-to-novel (that is, with
    DATASET.SUBSAMPLE_CLASSES base) has rules of its own, see `trainers.frozen.gaussian`; its
    checkpoint holds the rows, 0.3 MB a class with 16 shots.

    Config, ``TRAINER.GDA``: VIEWS 10 as released; ALPHA is what ``VAL.POLICY none`` takes, for
    which nothing is published: 1 is ours. The release searches on the whole validation split, on
    ImageNet on the test images.
    """

    recipe_type = FittedAtOnce
    frozen_image_encoder = True
    defaults = {
        "VIEWS": Option(10, count(1, 1000), "augmentations of each image"),
        "ALPHA": Option(1.0, number(0), "share of the classifier, unless it is chosen"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone, and the classifier with zeros."""
        backbone, classes = self.load_backbone(), len(self.dm.dataset.classnames)
        head = DiscriminantHead(classes, backbone.embed_dim, self.options.ALPHA)
        return FrozenCLIP(backbone, prompts_of(self), head)

    @torch.no_grad()
    def fit(self) -> None:
        """W and b in closed form."""
        views, label = self.recipe.features.views(self.options.VIEWS)  # (V, N, D), (N,)
        rows = unit_norm(views).flatten(0, 1).double()  # (V N, D)
        head, label = self.model.head, label.repeat(len(views))
        base = self.cfg.DATASET.SUBSAMPLE_CLASSES == "base"
        means, _ = class_means(rows, label, len(head.bias))
        precision = precision_matrix(rows, label, means, shrinks=not base)
        for own, value in zip((head.weight, head.bias), classifier(means, precision), strict=True):
            own.copy_(value)
        if base:
            head.rows = rows.to(head.rows)

    def choose(self, features: Tensor, label: Tensor) -> None:
        """The best share of the classifier."""
        head, text = self.model.head, self.model.class_weights()
        f = unit_norm(features)
        zero_shot = cosine_logits(f, text, self.model.scale)  # (N, K)
        own = F.linear(f, head.weight, head.bias)
        head.alpha.fill_(best_of(SHARES, lambda alpha: zero_shot + alpha * own, label))
