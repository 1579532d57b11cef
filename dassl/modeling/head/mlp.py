"""Fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dassl.modeling.head.build import HEAD_REGISTRY
from dassl.names import check_availability

__all__ = ["MLP"]

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Sequential):
    """Linear layers, each with batch norm, activation and dropout if asked for."""

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """Build the layers; ``out_features`` is the width of the last.

        Args:
            in_features: Width of the input.
            hidden_layers: Widths of the layers, at least one.
            activation: relu or leaky_relu.
            bn: Batch norm after every layer.
            dropout: Probability; 0 for none.

        Raises:
            ValueError: No layer, or another activation.
        """
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise ValueError("MODEL.HEAD.HIDDEN_LAYERS is empty; give the width of every layer")
        check_availability(activation, _ACTIVATIONS)
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[activation](inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        super().__init__(*layers)
        self.out_features = in_features


@HEAD_REGISTRY.register()
def mlp(**kwargs: object) -> MLP:
    """Build an `MLP`."""
    return MLP(**kwargs)  # type: ignore[arg-type]
