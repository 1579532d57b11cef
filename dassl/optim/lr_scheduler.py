"""Learning rates as a closed form of the epoch (or step), equal to Dassl's values.

Dassl chains two scheduler objects, which makes checkpoints hold live objects. Here one formula
gives every value, so the state is two plain entries and resuming cannot drift. With base rate lr,
E epochs and W warm-up epochs, the rate in epoch i = 0, 1, ... is

    i < W, constant:  WARMUP_CONS_LR
    i < W, linear:    WARMUP_MIN_LR for i = 0, else lr * i / W
    i >= W:           lr * f(i - W)             WARMUP_RECOUNT (default): restart after warm-up
                      lr * f(i) / f(W)          otherwise

with f(i) = (1 + cos(pi i / E)) / 2 for ``cosine``, GAMMA ** (i // STEPSIZE) for ``single_step``
and GAMMA ** (number of milestones <= i) for ``multi_step``. The last line has f(W) because Dassl's
underlying schedulers are recursive: they continue from the rate they find, which is lr.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from dassl.names import check_availability
from dassl.optim.warmup import ConstantWarmupScheduler, LinearWarmupScheduler

__all__ = [
    "AVAILABLE_SCHEDULERS",
    "AVAI_SCHEDS",
    "ClosedFormLR",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
]

AVAILABLE_SCHEDULERS = ["single_step", "multi_step", "cosine", "cosine_step"]
AVAI_SCHEDS = AVAILABLE_SCHEDULERS  # Dassl's name

Curve = Callable[[float, int], float]


class ClosedFormLR(LRScheduler):
    """Sets each group's rate to ``curve(base rate, number of steps so far)``.

    The base rates are the optimiser's rates at construction. With ``per_step``, ``step()`` is due
    after every optimiser step instead of every epoch.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, curve: Curve, per_step: bool = False
    ) -> None:
        """Set the first rates."""
        self.curve = curve
        self.per_step = per_step
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return every group's rate at the current index."""
        return [self.curve(float(base), self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return plain data: the index and the base rates."""
        return {"last_epoch": self.last_epoch, "base_lrs": [float(b) for b in self.base_lrs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a saved index and set its rates; a state needs no more than ``last_epoch``.

        Raises:
            ValueError: Another number of parameter groups.
        """
        bases = list(state_dict.get("base_lrs", self.base_lrs))
        if len(bases) != len(self.base_lrs):
            raise ValueError(
                f"the saved schedule has {len(bases)} parameter groups, "
                f"the optimiser has {len(self.base_lrs)}"
            )
        self.last_epoch = int(state_dict["last_epoch"])
        self.base_lrs = bases
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            # Written into the groups, since PyTorch does so only in step().
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer, optim_cfg: CfgNode, steps_per_epoch: int | None = None
) -> ClosedFormLR:
    """Build the schedule that ``cfg.OPTIM`` describes.

    Args:
        optimizer: Optimiser at its base rates.
        optim_cfg: ``cfg.OPTIM``.
        steps_per_epoch: Batches per epoch, needed by ``cosine_step`` only: WARMUP_STEP linear
            steps, then a cosine to 0 at the last step (the usual recipe of full fine-tuning).

    Returns:
        The scheduler; ``step()`` is due once per epoch, or per step if ``per_step`` is true.

    Raises:
        ValueError: Unknown name or unusable value.
    """
    check_availability(optim_cfg.LR_SCHEDULER, AVAILABLE_SCHEDULERS)
    if optim_cfg.LR_SCHEDULER == "cosine_step":
        if steps_per_epoch is None:
            raise ValueError("OPTIM.LR_SCHEDULER cosine_step needs the number of steps per epoch")
        # At least 1, since an evaluation has no epochs but still builds a schedule.
        total = max(1, optim_cfg.MAX_EPOCH * steps_per_epoch)
        return ClosedFormLR(optimizer, _cosine_step(total, optim_cfg.WARMUP_STEP), per_step=True)
    factor = _factor(optim_cfg)
    if optim_cfg.WARMUP_EPOCH > 0:
        return ClosedFormLR(optimizer, _with_warmup(factor, optim_cfg))
    return ClosedFormLR(optimizer, lambda base, index: base * factor(index))


def _factor(cfg: CfgNode) -> Callable[[int], float]:
    """Return the schedule without warm-up, as a factor of the base rate."""
    if cfg.LR_SCHEDULER == "cosine":
        if cfg.MAX_EPOCH <= 0:
            raise ValueError(f"OPTIM.MAX_EPOCH must be positive for cosine, got {cfg.MAX_EPOCH}")
        return lambda index: 0.5 * (1 + math.cos(math.pi * index / cfg.MAX_EPOCH))
    stepsize = cfg.STEPSIZE
    if cfg.LR_SCHEDULER == "multi_step":
        if not isinstance(stepsize, list | tuple):
            raise ValueError(f"OPTIM.STEPSIZE must be a list for multi_step, got {stepsize!r}")
        return lambda index: cfg.GAMMA ** sum(milestone <= index for milestone in stepsize)
    # As in Dassl, single_step takes the last entry of a list.
    last = stepsize[-1] if isinstance(stepsize, list | tuple) else stepsize
    if not isinstance(last, int):
        raise ValueError(f"OPTIM.STEPSIZE must hold integers, got {stepsize!r}")
    width = last if last > 0 else max(1, cfg.MAX_EPOCH)
    return lambda index: cfg.GAMMA ** (index // width)


def _with_warmup(factor: Callable[[int], float], cfg: CfgNode) -> Curve:
    """Put Dassl's warm-up before a schedule."""
    check_availability(cfg.WARMUP_TYPE, ["linear", "constant"])
    warm, recount = cfg.WARMUP_EPOCH, cfg.WARMUP_RECOUNT
    constant, least = cfg.WARMUP_CONS_LR, cfg.WARMUP_MIN_LR
    at_end = factor(warm)

    def curve(base: float, index: int) -> float:
        if index < warm:
            if cfg.WARMUP_TYPE == "constant":
                return constant
            # Dassl's linear warm-up: its first epoch would otherwise train at rate 0.
            return least if index == 0 else base * index / warm
        if recount:
            return base * factor(index - warm)
        # Divided by f(W), so that the schedule continues from the full rate; see the module.
        return base * factor(index) / at_end if at_end else 0.0

    return curve


def _cosine_step(total: int, warm: int) -> Curve:
    """Return a linear warm-up from lr / warm to lr, then a cosine that reaches 0 at ``total``."""

    def curve(base: float, index: int) -> float:
        if index < warm:
            # From index + 1: the first step trains too.
            return base * (index + 1) / warm
        progress = min(1.0, (index - warm) / max(1, total - warm))
        return 0.5 * base * (1 + math.cos(math.pi * progress))

    return curve
