"""ZS-LP and CLAP: a classifier that starts from the text features, free or held near them.

"A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024,
arXiv:2312.12730.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.config.schema import Option, count
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, released
from trainers.frozen.gaussian import class_means
from trainers.frozen.recipe import FittedHead
from trainers.frozen.residual import ResidualHead, residual_clip


@TRAINER_REGISTRY.register()
class ZSLP(CLIPTrainer):
    """CE(s f unit(w)^T, y) for prototypes w (K, D) that start from the text features w0.

    They are kept as r = w - w0, which trains alike: the same gradient, no weight decay. w0 are
    means over templates of features that are not normalised, as in TaskRes. No validation images,
    and one recipe for all datasets: the point of the paper.
    """

    model_name = "adapter"  # the released checkpoints' folder
    recipe_type = FittedHead
    frozen_image_encoder = True
    released_layout = released.prototypes

    def build_model(self) -> nn.Module:
        """The frozen backbone and r, the only part that trains."""
        return residual_clip(self, ResidualHead, 1.0, "a photo of a {}.")

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        logits = self.model(image)
        return StepOutput(F.cross_entropy(logits, label), logits)


class AdaptivePenalty(ResidualHead):
    """Residuals with a penalty, mean_k strength_k |r_k|^2, sums over D."""

    strength: Tensor

    def __init__(self, classes: int, width: int, alpha: float) -> None:
        super().__init__(classes, width, alpha)
        self.register_buffer("strength", torch.zeros(classes))

    def penalty(self, logits: Tensor) -> Tensor:
        """The penalty, a scalar."""
        return (self.strength * self.residual.square().sum(1)).mean()


@TRAINER_REGISTRY.register()
class CLAP(CLIPTrainer):
    """CE + mean_k strength_k |w_k - w0_k|^2: ZSLP with classes held the nearer, the surer CLIP is.

    strength_k is the mean of class k's zero-shot probability over the VIEWS augmentations of its
    training images, computed once. This is the release's ``l2`` constraint, which its published
    scripts run; its adaptive multipliers are not here.

    From pictures each of the 300 epochs has augmentations of its own; the release draws from 20 of
    each image, as ``--feature-cache`` does.
    """

    model_name = "adapter"
    recipe_type = FittedHead
    frozen_image_encoder = True
    released_layout = released.prototypes
    defaults = {"VIEWS": Option(20, count(1, 1000), "augmentations that the strengths are of")}

    def build_model(self) -> nn.Module:
        """The frozen backbone and r, the only part that trains."""
        return residual_clip(self, AdaptivePenalty, 1.0, "a photo of a {}.")

    @torch.no_grad()
    def fit(self) -> None:
        """The strengths."""
        views, label = self.recipe.features.views(self.options.VIEWS)  # (V, N, D), (N,)
        text = F.normalize(self.model.class_weights(), dim=-1)
        logits = self.model.scale * unit_norm(views) @ text.T  # (V, N, K)
        sure = logits.softmax(-1).mean(0)[torch.arange(len(label)), label]  # (N,)
        head = self.model.head
        head.strength.copy_(class_means(sure[:, None], label, len(head.strength))[0][:, 0])

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        out = self.model.output(image)
        ce = F.cross_entropy(out.logits, label)
        return StepOutput(ce + out.penalty, out.logits, {"ce": ce, "penalty": out.penalty})
