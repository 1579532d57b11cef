"""Mixing two batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mixup"]


def mixup(
    x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor, beta: float, preserve_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Mix images and labels (mixup, arXiv:1710.09412), one Beta-distributed share per image.

    Args:
        x1: Images, (B, 3, height, width).
        x2: The same shape.
        y1: Labels as probabilities, (B, K).
        y2: The same shape.
        beta: Both parameters of the Beta distribution.
        preserve_order: The larger share is always x1's.

    Returns:
        Mixed images and labels.
    """
    # One share per image: (B, 1, 1, 1)
    share = torch.distributions.Beta(beta, beta).sample([len(x1), 1, 1, 1]).to(x1.device)
    if preserve_order:
        share = torch.max(share, 1 - share)
    of_labels = share[:, :, 0, 0]  # (B, 1, 1, 1) -> (B, 1)
    return x1 * share + x2 * (1 - share), y1 * of_labels + y2 * (1 - of_labels)
