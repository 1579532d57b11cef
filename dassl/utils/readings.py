"""Numbers that stay on a GPU until many of them are read at once.

Whoever reads a number from a GPU waits until all work that was queued before it is done, and then
the GPU waits until Python has queued more. A CPU computes at once, so that reading costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

__all__ = ["Readings", "reads_late"]

# Types of devices that work behind Python's back; a test adds the CPU.
LATE_DEVICES = {"cuda"}
# Entries that may wait: without log lines nothing else would bound them.
MOST_KEPT = 1000

Then = Callable[[list[float]], None]


def reads_late(device: torch.device) -> bool:
    """Tell whether numbers on a device are read together, later, instead of at once."""
    return device.type in LATE_DEVICES


class Readings:
    """Scalars that wait on a device, with what is to be done once they are known."""

    def __init__(self) -> None:
        """Start without any."""
        self._kept: list[tuple[Tensor, Then]] = []

    def keep(self, values: Sequence[Tensor], then: Then) -> None:
        """Keep a copy of scalars on a device; ``then`` is called with them as floats.

        Raises:
            Exception: So many wait that they are read now, and a ``then`` of them raised it.
        """
        dtype = reduce(torch.promote_types, [value.dtype for value in values])
        # A copy, in one operation: the next step may write into the same memory.
        copied = torch.stack([value.detach().reshape(()).to(dtype) for value in values])  # (n,)
        self._kept.append((copied, then))
        if len(self._kept) >= MOST_KEPT:
            self.read()

    def read(self) -> None:
        """Read all that waits in one transfer, and do what is to be done, in the order of `keep`.

        Raises:
            Exception: What a ``then`` raised; whatever waited behind it is dropped.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return
        numbers = torch.cat([values.double() for values, _ in kept]).tolist()  # exact
        start = 0
        for values, then in kept:
            end = start + len(values)
            then(numbers[start:end])
            start = end
