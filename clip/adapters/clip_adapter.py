"""CLIP-Adapter's bottleneck for image or text features."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from clip.adapters import Adapter


class FeatureAdapter(Adapter):
    """``v' = ratio A(v) + (1 - ratio) v`` of features v (CLIP-Adapter, arXiv:2110.04544).

    A is a bottleneck without biases, with a ReLU behind each of its two layers, so that it can only
    add to a feature's entries. Its weights start as PyTorch's default: v' is near v, not equal.
    Disabled, v' is v. The inner width is ``embed_dim`` (D) over ``reduction``.
    """

    def __init__(self, embed_dim: int, reduction: int = 4, ratio: float = 0.2) -> None:
        super().__init__()
        if not 1 <= reduction <= embed_dim:
            raise ValueError(f"REDUCTION must be from 1 to D = {embed_dim}, got {reduction}")
        if not 0 < ratio <= 1:
            raise ValueError(
                f"RATIO, the adapter's share, must be above 0 and at most 1, got {ratio}"
            )
        self.down = nn.Linear(embed_dim, embed_dim // reduction, bias=False)
        self.up = nn.Linear(embed_dim // reduction, embed_dim, bias=False)
        self.ratio = ratio

    def forward(self, features: Tensor) -> Tensor:
        """Adapted features, not normalised: (B, D) -> (B, D)."""
        if not self.enabled:
            return features
        adapted = F.relu(self.up(F.relu(self.down(features))))  # (B, D / reduction) inside
        return self.ratio * adapted + (1 - self.ratio) * features
