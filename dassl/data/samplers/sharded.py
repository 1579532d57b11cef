"""The share that one of several processes gets of a sampler."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from dassl.data.samplers.epochs import EpochSampler

__all__ = ["ShardedSampler"]


class ShardedSampler(Sampler[int]):
    """One process's share of a sampler that all processes have, seeds included.

    In training every batch is divided: its first Nth goes to the first process, and so on. For
    evaluation the processes take whole batches in turn: PyTorch's DistributedSampler would evaluate
    some images twice to make the shares equal.

    Attributes:
        whole: The sampler, with the same order on all processes.
        batch_size: Images of a batch, on all processes together if batches are divided.
        rank: This process, from 0.
        world_size: Number of processes.
        divide: Divide every full batch, or the only one; otherwise take whole batches in turn.
    """

    def __init__(
        self, whole: EpochSampler, batch_size: int, rank: int, world_size: int, *, divide: bool
    ) -> None:
        self.whole = whole
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.divide = divide

    @property
    def full(self) -> int:
        """Number of full batches in a pass."""
        return len(self.whole) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the first one of an epoch, counted from 0."""
        self.whole.set_epoch(epoch)

    def _span(self, batch: int) -> tuple[int, int]:
        """Return this process's half-open range [start, stop) of a batch's positions."""
        rest = len(self.whole) % self.batch_size
        size = self.batch_size if batch < self.full else rest
        if not self.divide:
            return (0, size) if batch % self.world_size == self.rank else (0, 0)
        if batch >= self.full > 0:
            return 0, 0  # training drops the last, short batch, as with one process
        return size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Start a pass."""
        start = stop = 0
        for position, index in enumerate(self.whole):
            batch, place = divmod(position, self.batch_size)
            if place == 0:
                start, stop = self._span(batch)
            if start <= place < stop:
                yield index

    def __len__(self) -> int:
        """Return the number of indices in a pass of this process."""
        spans = (self._span(batch) for batch in range(self.full + 1))
        return sum(stop - start for start, stop in spans)
