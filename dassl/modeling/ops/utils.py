"""Small functions on labels, probabilities and weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = [
    "create_onehot",
    "ema_model_update",
    "linear_rampup",
    "reverse_index",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Sharpen probabilities (B, K) by a power, and normalise them.

    As in Dassl, ``temperature`` is the power, not its inverse: more is sharper.
    """
    powers = p.pow(temperature)
    return powers / powers.sum(1, keepdim=True)


def reverse_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in reverse order."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the same random order."""
    order = torch.randperm(len(data), device=data.device)
    return data[order], label[order]


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Return labels (B,) as float one-hot rows, (B, num_classes)."""
    return torch.nn.functional.one_hot(label.long(), num_classes).float()


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """Rise from exp(-5) to 1 (arXiv:1610.02242); 1 at once if the length is 0."""
    if rampup_length == 0:
        return 1.0
    phase = 1 - min(max(current, 0.0), rampup_length) / rampup_length
    return math.exp(-5 * phase * phase)


def linear_rampup(current: float, rampup_length: float) -> float:
    """Rise from 0 to 1 in proportion; 1 at once if the length is 0."""
    return 1.0 if rampup_length == 0 else min(max(current / rampup_length, 0.0), 1.0)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Move the parameters of an averaged model: ``alpha * averaged + (1 - alpha) * current``."""
    # Only parameters, as in Dassl: buffers such as batch statistics are not averaged.
    for average, current in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(current, alpha=1 - alpha)
