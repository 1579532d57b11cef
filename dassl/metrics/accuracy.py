"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["compute_accuracy"]


def compute_accuracy(
    output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)
) -> list[Tensor]:
    """Compute top-k accuracies in percent.

    Args:
        output: Logits (B, K), or a sequence whose first element they are.
        target: Labels, (B,).
        topk: The k's.

    Returns:
        One tensor of shape (1,) per k, each in [0, 100].
    """
    logits = output if isinstance(output, Tensor) else output[0]
    best = logits.topk(max(topk), dim=1).indices  # (B, max k)
    hits = best.eq(target.view(-1, 1))  # (B, max k): a row has at most one True
    return [
        hits[:, :k].any(dim=1).to(torch.float32).mean(dim=0, keepdim=True).mul(100.0) for k in topk
    ]
