"""Running averages for log lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["AverageMeter", "MetricMeter"]


class AverageMeter:
    """Last value and running average of one quantity.

    Attributes:
        val: Last value.
        avg: Mean of all values, or their exponential average.
        sum: Sum of all values.
        count: Number of values.
    """

    def __init__(self, ema: bool = False) -> None:
        """Start empty; ``ema`` averages exponentially (0.9 old, 0.1 new) instead of uniformly."""
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val = 0.0
        self.avg = 0.0
        self.sum = 0.0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Add a value.

        Args:
            val: Number or one-element tensor.
            n: Number of observations that it is the mean of.
        """
        value = val.item() if hasattr(val, "item") else float(val)
        first = self.count == 0
        self.val = value
        self.sum += value * n
        self.count += n
        # The first value starts the average: from 0 it would need dozens of steps to recover.
        if self.ema and not first:
            self.avg = 0.9 * self.avg + 0.1 * value
        else:
            self.avg = self.sum / self.count


class MetricMeter:
    """A dictionary of `AverageMeter`, printed as ``name val (avg)`` pairs."""

    def __init__(self, delimiter: str = " ") -> None:
        """Start empty; ``delimiter`` separates the quantities when printed."""
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | torch.Tensor] | None) -> None:
        """Add one value per name; None and an empty dict are ignored.

        Raises:
            TypeError: Not a mapping.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(
                f"forward_backward must return a dict of numbers, got {type(input_dict).__name__}"
            )
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        """Format all quantities for a log line."""
        return self.delimiter.join(
            f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items()
        )
