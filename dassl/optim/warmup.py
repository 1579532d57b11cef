"""Dassl's warm-up schedulers, for trainers that chain schedulers themselves.

`dassl.optim.build_lr_scheduler` gives the same rates without a chain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["ConstantWarmupScheduler", "LinearWarmupScheduler"]


class _BaseWarmupScheduler(LRScheduler):
    """Sets its own rates for ``warmup_epoch`` epochs, then lets ``successor`` continue.

    The successor is a scheduler of the same optimiser, which starts from its beginning. ``verbose``
    is ignored: PyTorch's schedulers no longer print.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: Any,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warm_rate(self, base: float) -> float:
        """Return the rate of a group before the end of the warm-up."""
        raise NotImplementedError

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return every group's rate."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self.warm_rate(float(base)) for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch, or to the given one as PyTorch's schedulers do."""
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            # get_last_lr of this scheduler is what trainers log.
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return plain data, the other scheduler's state included."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": [float(base) for base in self.base_lrs],
            "last_lr": [float(rate) for rate in self._last_lr],
            "successor": self.successor.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a saved state."""
        self.last_epoch = state_dict["last_epoch"]
        self.base_lrs = list(state_dict["base_lrs"])
        self.successor.load_state_dict(state_dict["successor"])
        # Saved: PyTorch's schedulers change the last rate, they do not compute it anew.
        self._last_lr = list(state_dict["last_lr"])
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """One rate, ``cons_lr``, for all groups in the warm-up."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: Any,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr  # first, since PyTorch's constructor asks for the first rates
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warm_rate(self, base: float) -> float:
        """Return ``cons_lr``."""
        return self.cons_lr


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """``min_lr`` in the first epoch, then ``lr * epoch / warmup_epoch``."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        successor: Any,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr  # first, since PyTorch's constructor asks for the first rates
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warm_rate(self, base: float) -> float:
        """Return the epoch's share of the base rate; ``min_lr`` in the first epoch."""
        if self.last_epoch == 0:
            return self.min_lr
        return base * self.last_epoch / self.warmup_epoch
