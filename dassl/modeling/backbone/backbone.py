"""The base class of feature extractors."""

from __future__ import annotations

from torch import nn

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """Maps images (B, 3, height, width) to features (B, ``out_features``).

    Subclasses set ``_out_features``.
    """

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """Width of the features; None if the subclass does not say."""
        return self._out_features
