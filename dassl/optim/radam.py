"""Dassl's own optimisers: built on PyTorch's, with the behaviour of Dassl's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["AdamW", "PlainRAdam", "RAdam"]


class RAdam(torch.optim.RAdam):
    """Rectified Adam (arXiv:1908.03265) with decoupled weight decay, as in its authors' code.

    ``degenerated_to_sgd`` says what happens in the first steps, whose variance cannot be rectified:
    momentum SGD, or an update of the moments only.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        """Build like PyTorch's; the weight decay is multiplied by the learning rate."""
        self.degenerated_to_sgd = degenerated_to_sgd
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Do a step."""
        # PyTorch's RAdam always falls back to SGD: at rate 0 such a step updates only the moments.
        rates = {} if self.degenerated_to_sgd else self._still_degenerate()
        with _rates(self, rates):
            return super().step(closure)

    def _still_degenerate(self) -> dict[int, float]:
        """Return a rate of 0 for the groups whose next step could not be rectified."""
        rates = {}
        for number, group in enumerate(self.param_groups):
            decay = group["betas"][1]
            step = 1 + _steps(self, group)
            # The paper's rho_t and its limit rho_inf: the variance can be rectified once rho_t > 5.
            longest = 2 / (1 - decay) - 1
            if longest - 2 * step * decay**step / (1 - decay**step) <= 5:
                rates[number] = 0.0
        return rates


class PlainRAdam(RAdam):
    """`RAdam` under the name that its authors gave a plainer version of the code."""


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay (arXiv:1711.05101) and ``warmup`` linear steps at first."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup: int = 0,
    ) -> None:
        """Build like PyTorch's; the weight decay is multiplied by the learning rate."""
        self.warmup = warmup
        super().__init__(params, lr, betas, eps, weight_decay)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Do a step."""
        rates = {}
        for number, group in enumerate(self.param_groups):
            step = 1 + _steps(self, group)
            if step < self.warmup:
                # Dassl's formula, with its small offset.
                rates[number] = 1e-8 + step * group["lr"] / self.warmup
        with _rates(self, rates):
            return super().step(closure)


def _steps(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> int:
    """Return how many steps a group has done."""
    done = [optimizer.state[p]["step"] for p in group["params"] if p in optimizer.state]
    return int(max(done, default=0))


@contextmanager
def _rates(optimizer: torch.optim.Optimizer, rates: dict[int, float]) -> Iterator[None]:
    """Give some groups, by their numbers, another rate inside a block."""
    kept = [group["lr"] for group in optimizer.param_groups]
    for number, rate in rates.items():
        optimizer.param_groups[number]["lr"] = rate
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, kept, strict=True):
            group["lr"] = rate
