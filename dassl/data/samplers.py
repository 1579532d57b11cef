"""Samplers whose order and per-item seeds depend only on (seed, epoch, position).

PyTorch's samplers draw from the global generator, and augmentation draws from whichever worker
loads the image, so results change with NUM_WORKERS. Here each index carries its own seed
(`SeededIndex`), and an epoch's order is a function of the run's seed and the epoch: the same
whatever the number of workers, and the same when a run is resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from dassl.data.datasets.base_dataset import Datum
from dassl.names import check_availability

__all__ = [
    "EpochSampler",
    "RandomClassSampler",
    "RandomDomainSampler",
    "RandomSampler",
    "SeededIndex",
    "SeqDomainSampler",
    "SequentialSampler",
    "ShardedSampler",
    "build_sampler",
    "mix_seed",
]


def mix_seed(*parts: Hashable) -> int:
    """Hash anything printable into a seed in [0, 2**32).

    Args:
        *parts: Numbers and strings.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


class SeededIndex(int):
    """An index that carries the seed for its item's random transform.

    Attributes:
        seed: In [0, 2**32).
    """

    seed: int

    def __new__(cls, value: int, seed: int) -> SeededIndex:
        """Create from an index and a seed."""
        self = super().__new__(cls, value)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the seed on the way to a worker process."""
        return SeededIndex, (int(self), self.seed)


class EpochSampler(Sampler[int]):
    """Yields seeded indices; subclasses give the order of one pass.

    Each iteration is a new pass with a new order. `set_epoch` makes passes a function of the
    epoch, which the engine calls so that a resumed run sees what the interrupted one would have.
    """

    def __init__(self, data_source: Sequence[Datum], seed: int | None = None) -> None:
        """Keep the images.

        Args:
            data_source: Images.
            seed: By default what PyTorch's global generator was last seeded with.
        """
        self.data_source = data_source
        self.seed = torch.initial_seed() if seed is None else seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the first one of an epoch.

        Args:
            epoch: Epoch, from 0.
        """
        self._epoch = epoch
        self._passes = 0

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return the indices of one pass.

        Args:
            rng: Source of randomness for the pass.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        """Start a pass."""
        pass_seed = mix_seed(self.seed, self._epoch, self._passes)
        self._passes += 1
        for position, index in enumerate(self.order(random.Random(pass_seed))):
            yield SeededIndex(index, mix_seed(pass_seed, position))

    def __len__(self) -> int:
        """Return the number of indices in a pass."""
        return len(self.data_source)


class RandomSampler(EpochSampler):
    """Every image once, in random order."""

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return a permutation."""
        return rng.sample(range(len(self.data_source)), len(self.data_source))


class SequentialSampler(EpochSampler):
    """Every image once, in order; an item's seed is the same in every pass."""

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return all indices."""
        return range(len(self.data_source))

    def __iter__(self) -> Iterator[int]:
        """Start a pass; the seeds do not depend on how often was evaluated before."""
        self.set_epoch(0)
        return super().__iter__()


class ShardedSampler(Sampler[int]):
    """What one of several processes gets of another sampler's passes, seeds included.

    In training every batch is divided: its first Nth goes to the first process, and so on. For
    evaluation the batches, whole, go to the processes in turn: nothing twice, nothing added.

    Attributes:
        whole: The other sampler, which the processes have in common.
    """

    def __init__(
        self, whole: EpochSampler, batch_size: int, rank: int, world_size: int, *, divide: bool
    ) -> None:
        """Keep the sampler.

        Args:
            whole: Gives the same order on all processes.
            batch_size: Images of a batch, on all processes together if batches are divided.
            rank: This process, from 0.
            world_size: Number of processes.
            divide: Divide batches, all of them full or there is only one; else take them in turn.
        """
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
        """Make the next pass the first one of an epoch, from 0."""
        self.whole.set_epoch(epoch)

    def _span(self, batch: int) -> tuple[int, int]:
        """Return the positions in a batch that are this process's, as first and one behind."""
        rest = len(self.whole) % self.batch_size
        size = self.batch_size if batch < self.full else rest
        if not self.divide:
            return (0, size) if batch % self.world_size == self.rank else (0, 0)
        if batch >= self.full > 0:
            return 0, 0  # a single process drops the last, short batch
        return size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Start a pass."""
        first = behind = 0
        for position, index in enumerate(self.whole):
            batch, place = divmod(position, self.batch_size)
            if place == 0:
                first, behind = self._span(batch)
            if first <= place < behind:
                yield index

    def __len__(self) -> int:
        """Return the number of indices in a pass of this process."""
        spans = (self._span(batch) for batch in range(self.full + 1))
        return sum(behind - first for first, behind in spans)


class _GroupSampler(EpochSampler):
    """Batches that take the same number of images from each of several groups.

    Subclasses say where a pass ends, as Dassl's samplers do. How long it gets depends on the draw
    then; a pass is at most as long as the one that was drawn when the sampler was made.
    """

    def __init__(
        self,
        data_source: Sequence[Datum],
        attribute: str,
        per_group: int,
        n_groups: int,
        seed: int | None,
    ) -> None:
        super().__init__(data_source, seed)
        self.per_group = per_group
        self.n_groups = n_groups
        self.groups: defaultdict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[getattr(item, attribute)].append(index)
        self._length = len(self.batches(random.Random(0)))

    def shuffled(self, items: list[int], rng: random.Random) -> list[int]:
        """Return a group's images in the order in which they are taken."""
        return rng.sample(items, len(items))

    def choose(self, names: list[int], rng: random.Random) -> list[int]:
        """Return the groups of the next batch."""
        return rng.sample(names, self.n_groups)

    def ends(self, left: dict[int, list[int]], chosen: list[int]) -> bool:
        """Tell whether no batch follows.

        Args:
            left: Images not taken yet, by group.
            chosen: Groups of the last batch.
        """
        raise NotImplementedError

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return the batches of one pass, one after another; no more than `__len__` says."""
        return self.batches(rng)[: self._length]

    def batches(self, rng: random.Random) -> list[int]:
        """Draw batches, one after another, until the pass ends."""
        left = {name: self.shuffled(items, rng) for name, items in self.groups.items()}
        result: list[int] = []
        while True:
            names = [name for name in left if len(left[name]) >= self.per_group]
            chosen = self.choose(names, rng)
            for name in chosen:
                result += left[name][: self.per_group]
                left[name] = left[name][self.per_group :]
            if self.ends(left, chosen):
                return result

    def __len__(self) -> int:
        """Return the number of indices in a pass; unlucky choices may leave a few out."""
        return self._length


class RandomDomainSampler(_GroupSampler):
    """Batches with equally many images from each of ``n_domain`` randomly chosen domains."""

    def __init__(
        self,
        data_source: Sequence[Datum],
        batch_size: int,
        n_domain: int = 0,
        seed: int | None = None,
    ) -> None:
        """Group the images by domain.

        Args:
            data_source: Images.
            batch_size: Must be divisible by the number of domains.
            n_domain: Domains per batch; 0 or less takes all.
            seed: See `EpochSampler`.

        Raises:
            ValueError: Not divisible, more domains than there are, or one with too few images.
        """
        available = len({item.domain for item in data_source})
        wanted = n_domain if n_domain > 0 else available
        if wanted > available or batch_size % wanted:
            raise ValueError(
                f"N_DOMAIN {n_domain} must be at most the {available} domains there are and "
                f"divide BATCH_SIZE {batch_size}"
            )
        share = batch_size // wanted
        for domain, images in Counter(item.domain for item in data_source).items():
            if images < share:
                raise ValueError(
                    f"BATCH_SIZE {batch_size} / N_DOMAIN {wanted} needs {share} images of every "
                    f"domain, domain {domain} has {images}"
                )
        super().__init__(data_source, "domain", share, wanted, seed)

    def ends(self, left: dict[int, list[int]], chosen: list[int]) -> bool:
        """After a batch that a domain in it could not repeat."""
        return any(len(left[name]) < self.per_group for name in chosen)


class SeqDomainSampler(RandomDomainSampler):
    """Batches with equally many images from every domain, domains in fixed order."""

    def __init__(
        self, data_source: Sequence[Datum], batch_size: int, seed: int | None = None
    ) -> None:
        """Group the images by domain.

        Args:
            data_source: Images.
            batch_size: Must be divisible by the number of domains.
            seed: See `EpochSampler`.

        Raises:
            ValueError: Not divisible.
        """
        super().__init__(data_source, batch_size, 0, seed)

    def choose(self, names: list[int], rng: random.Random) -> list[int]:
        """Return all domains in order."""
        return sorted(names)


class RandomClassSampler(_GroupSampler):
    """Batches with ``n_ins`` images from each of ``batch_size / n_ins`` random classes.

    A class with fewer images takes part once, with images drawn with replacement.
    """

    def __init__(
        self,
        data_source: Sequence[Datum],
        batch_size: int,
        n_ins: int = 16,
        seed: int | None = None,
    ) -> None:
        """Group the images by class.

        Args:
            data_source: Images.
            batch_size: At least ``n_ins``. If that does not divide it, the number of classes is
                rounded down, as in Dassl: the loader's batches then mix two draws.
            n_ins: Images per class.
            seed: See `EpochSampler`.

        Raises:
            ValueError: A batch that is too small, or too few classes.
        """
        classes = len({item.label for item in data_source})
        if n_ins <= 0 or batch_size < n_ins:
            raise ValueError(f"N_INS {n_ins} must be in 1..BATCH_SIZE {batch_size}")
        if batch_size % n_ins:
            print(
                f"Note: N_INS {n_ins} does not divide BATCH_SIZE {batch_size}: not every batch has "
                f"{n_ins} images of each class"
            )
        if batch_size // n_ins > classes:
            raise ValueError(
                f"BATCH_SIZE {batch_size} / N_INS {n_ins} needs {batch_size // n_ins} classes, "
                f"there are {classes}"
            )
        super().__init__(data_source, "label", n_ins, batch_size // n_ins, seed)

    def shuffled(self, items: list[int], rng: random.Random) -> list[int]:
        """Return a class's images in random order, enough for one batch."""
        if len(items) < self.per_group:
            return rng.choices(items, k=self.per_group)
        return super().shuffled(items, rng)

    def ends(self, left: dict[int, list[int]], chosen: list[int]) -> bool:
        """When too few classes can fill their share."""
        return sum(len(items) >= self.per_group for items in left.values()) < self.n_groups


def build_sampler(
    sampler_type: str,
    cfg: Any = None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> EpochSampler:
    """Build a sampler by name.

    Args:
        sampler_type: RandomSampler, SequentialSampler, RandomDomainSampler, SeqDomainSampler or
            RandomClassSampler.
        cfg: Unused; part of Dassl's signature.
        data_source: Images.
        batch_size: For the group samplers.
        n_domain: For RandomDomainSampler.
        n_ins: For RandomClassSampler.

    Returns:
        The sampler.

    Raises:
        ValueError: Unknown name or unusable numbers.
    """
    makers = {
        "RandomSampler": lambda: RandomSampler(data_source),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, batch_size, n_domain),
        "SeqDomainSampler": lambda: SeqDomainSampler(data_source, batch_size),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, batch_size, n_ins),
    }
    check_availability(sampler_type, makers)
    return makers[sampler_type]()
