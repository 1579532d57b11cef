"""Samplers whose order and per-item seeds depend only on (seed, epoch, position).

PyTorch's samplers draw from the global generator, and augmentation draws from whichever worker
loads the image, so results change with NUM_WORKERS. Here each index carries its own seed
(`SeededIndex`), and an epoch's order is a function of the run's seed and the epoch: the same
whatever the number of workers, and the same when a run is resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from dassl.data.datasets.base_dataset import Datum

__all__ = ["EpochSampler", "RandomSampler", "SeededIndex", "SequentialSampler", "mix_seed"]


def mix_seed(*parts: Hashable) -> int:
    """Hash numbers and strings into a seed in [0, 2**32)."""
    # Not hash(): Python's hash of a text differs from process to process.
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


class SeededIndex(int):
    """An index that carries a ``seed``, in [0, 2**32), for its item's random transform.

    Given a position, the seed is that of this place in a pass with the given seed. It is made when
    it is asked for: features have no transform, and to hash a seed for each of them would take as
    long as an epoch's steps.
    """

    _seed: int
    _position: int | None

    def __new__(cls, value: int, seed: int, position: int | None = None) -> SeededIndex:
        """Create from an index and a seed, or a pass's seed and a position in it."""
        self = super().__new__(cls, value)
        self._seed, self._position = seed, position
        return self

    @property
    def seed(self) -> int:
        """Seed of the item's random transform."""
        return self._seed if self._position is None else mix_seed(self._seed, self._position)

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the seed when pickled for a worker process."""
        return SeededIndex, (int(self), self.seed)


class EpochSampler(Sampler[int]):
    """Yields seeded indices; subclasses give the order of one pass.

    Each iteration is a new pass with a new order. The engine calls `set_epoch` before an epoch, so
    that a resumed run sees the images that the interrupted one would have seen. The default seed is
    the one that PyTorch's global generator was last seeded with.
    """

    def __init__(self, data_source: Sequence[Datum], seed: int | None = None) -> None:
        self.data_source = data_source
        self.seed = torch.initial_seed() if seed is None else seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the first one of an epoch, counted from 0."""
        self._epoch = epoch
        self._passes = 0

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return the indices of one pass, with ``rng`` as the only source of randomness."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        """Start a pass."""
        # A second pass in the same epoch, as over the shorter of two loaders, is a new draw.
        pass_seed = mix_seed(self.seed, self._epoch, self._passes)
        self._passes += 1
        for position, index in enumerate(self.order(random.Random(pass_seed))):
            yield SeededIndex(index, pass_seed, position)

    def __len__(self) -> int:
        """Return the number of indices in a pass."""
        return len(self.data_source)


class RandomSampler(EpochSampler):
    """Every image once, in random order."""

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return a permutation."""
        return rng.sample(range(len(self.data_source)), len(self.data_source))


class SequentialSampler(EpochSampler):
    """Every image once, in order, with the same seeds in every pass."""

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return all indices."""
        return range(len(self.data_source))

    def __iter__(self) -> Iterator[int]:
        """Start a pass."""
        # An evaluation must not depend on the number of evaluations before it.
        self.set_epoch(0)
        return super().__iter__()
