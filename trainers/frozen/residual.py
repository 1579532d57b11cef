"""A residual of each class's text feature: the head that TaskRes, ZSLP and CLAP train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.heads import HeadOutput, cosine_logits


class ResidualHead(ClassHead):
    """``logits = s f unit(h + a r)^T`` for residuals r (K0, D), zero at first.

    h are text features as the encoder gives them: their length is what r is measured by.
    """

    alpha: Tensor

    def __init__(self, classes: int, width: int, alpha: float = 1.0) -> None:
        super().__init__()
        self.residual = nn.Parameter(torch.zeros(classes, width))
        self.add_number("alpha", alpha)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """Logits of f (B, D) with text h (K, D): (B, K)."""
        own = text + self.alpha * self.of_run(self.residual.T).T  # (K, D)
        logits = cosine_logits(image, F.normalize(own, dim=-1), scale)
        return HeadOutput(logits, self.penalty(logits))

    def penalty(self, logits: Tensor) -> Tensor:
        """What joins the loss; nothing here."""
        return logits.new_zeros(())


def residual_clip(trainer: Any, head: type[ResidualHead], alpha: float, own: str) -> FrozenCLIP:
    """The frozen backbone with such a head.

    Args:
        trainer: Of a method.
        head: The class of the head.
        alpha: a, the factor of the residuals.
        own: A template that joins open_clip's seven on ImageNet.
    """
    backbone, classes = trainer.load_backbone(), len(trainer.dm.dataset.classnames)
    made = head(classes, backbone.embed_dim, alpha)
    return FrozenCLIP(backbone, prompts_of(trainer, own), made, unit_text=False)
