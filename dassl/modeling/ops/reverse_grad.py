"""The gradient reversal layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ReverseGrad"]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        # A view: autograd would not record a tensor that is returned as it came.
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grads[0], None


class ReverseGrad(nn.Module):
    """Identity whose gradient is multiplied by ``-scale`` (DANN, arXiv:1505.07818)."""

    def forward(self, input: Tensor, grad_scaling: float = 1.0) -> Tensor:
        """Return the input; its gradient will be scaled by ``-grad_scaling``.

        Raises:
            ValueError: ``grad_scaling`` is negative.
        """
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling must not be negative, got {grad_scaling}")
        return _Reverse.apply(input, grad_scaling)
