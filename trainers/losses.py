"""Loss terms that methods share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.engine import StepOutput
from trainers.heads import HeadOutput


def classification_loss(output: HeadOutput, label: Tensor) -> StepOutput:
    """CE(logits, y) of logits (B, K) and labels (B,), the whole loss of VPT, IVLP and MaPLe."""
    ce = F.cross_entropy(output.logits, label)
    return StepOutput(ce, output.logits, {"ce": ce})


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - mean cosine similarity of matching rows: (N, D), (N, D) -> scalar, in [0, 2]."""
    return 1 - F.cosine_similarity(a, b, dim=-1).mean()


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy with a teacher's probabilities, times T^2: (B, K), (B, K) -> scalar.

    Its gradient is that of the Kullback-Leibler divergence (Hinton et al., arXiv:1503.02531).
    """
    target = (teacher / temperature).softmax(-1)
    return F.cross_entropy(logits / temperature, target) * temperature**2


class _WithGradient(torch.autograd.Function):
    # A loss that knows its own gradient still has to be one scalar that the engine scales and
    # runs backward.
    @staticmethod
    def forward(ctx: Any, value: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, scales[0] * gradient, None


def with_gradient(value: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar ``value`` whose backward pass adds ``gradient`` to ``parameter``.

    What ``value`` was computed from gets no gradient.
    """
    return _WithGradient.apply(value, parameter, gradient)
