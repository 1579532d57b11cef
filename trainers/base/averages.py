"""PromptSRC's average of parameters over the epochs of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def gaussian_weights(epochs: int, mean: float, std: float, first: int = 0) -> Tensor:
    """Weights of the prompts at the ends of epochs, proportional to a Gaussian, sum 1: (E,).

    The first epoch is 1 for ``mean``; the ``first`` epochs get weight 0.
    """
    epoch = torch.arange(1, epochs + 1, dtype=torch.double)
    exponent = -((epoch - mean) ** 2) / (2 * std**2)
    # A softmax of the exponents cannot underflow where the mean lies far outside of the training.
    return torch.softmax(exponent.masked_fill(epoch <= first, -torch.inf), 0)


class GaussianAverage:
    """Sum of parameters at the ends of epochs, weighted by :func:`gaussian_weights`."""

    def __init__(self, epochs: int, mean: float, std: float) -> None:
        self.epochs, self.mean, self.std = epochs, mean, std
        # In double precision on the CPU; empty before the first epoch.
        self.values: dict[str, Tensor] = {}
        # Epochs to leave out: a run resumed from a checkpoint without a sum knows the later ones.
        self.start = 0

    def add(self, epoch: int, state: Mapping[str, Tensor]) -> None:
        """Add parameters by name at the end of an epoch; the first epoch is 0."""
        weight = gaussian_weights(self.epochs, self.mean, self.std, self.start)[epoch]
        for name, value in state.items():
            weighted = weight * value.detach().cpu().double()
            self.values[name] = self.values.get(name, 0) + weighted

    def state_dict(self) -> dict[str, Any]:
        """The sum so far, for a resumed run."""
        return {"average": self.values, "average_start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.values, self.start = state["average"], state["average_start"]
