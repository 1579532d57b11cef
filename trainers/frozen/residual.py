"""A residual of each class's text feature: the head that TaskRes, ZSLP and CLAP train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.heads import HeadOutput


class UnitLogits(torch.autograd.Function):
    """``f unit(w)^T`` of f (B, D) and w (K, D), which gives no gradient for f: (B, K).

    Lengths divide the logits, and the gradient is written out: where classes are many, each pass
    over weights of (K, D) takes as long as a tenth of the products, and autograd makes a dozen.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor) -> Tensor:
        """The logits."""
        weight = weight.to(image.dtype)
        lengths = torch.linalg.vector_norm(weight, dim=1).clamp_min(1e-12)  # (K,), as F.normalize
        logits = (image @ weight.T).div_(lengths)
        ctx.save_for_backward(image, weight, lengths, logits)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        """For w: (g / |w|)^T f, less its part along w."""
        image, weight, lengths, logits = ctx.saved_tensors
        gradient = gradient / lengths  # (B, K)
        along = (gradient * logits).sum(0) / lengths  # (K,)
        return None, (weight * -along[:, None]).addmm_(gradient.T, image)


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
        own = torch.addcmul(text, self.alpha, self.of_run(self.residual.T).T)  # (K, D)
        logits = UnitLogits.apply(scale * image, own)
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
