"""Loss terms that methods share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - mean cosine similarity of matching rows: (N, D), (N, D) -> scalar, in [0, 2]."""
    return 1 - F.cosine_similarity(a, b, dim=-1).mean()
