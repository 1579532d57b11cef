"""Samplers whose batches take equally many images from each of several domains or classes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from dassl.data.datasets.base_dataset import Datum
from dassl.data.samplers.epochs import EpochSampler

__all__ = ["RandomClassSampler", "RandomDomainSampler", "SeqDomainSampler"]


class _GroupSampler(EpochSampler):
    """Batches that take the same number of images from each of several groups.

    Subclasses decide where a pass ends, each as in Dassl, so its length depends on the draw. But a
    loader needs a fixed length: it is that of a pass drawn at construction, and no pass exceeds it.
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
        # Drawn with a fixed seed, so that all runs have the same number of steps per epoch.
        self._length = len(self.batches(random.Random(0)))

    def shuffled(self, items: list[int], rng: random.Random) -> list[int]:
        """Return a group's images in the order in which they are taken."""
        return rng.sample(items, len(items))

    def choose(self, names: list[int], rng: random.Random) -> list[int]:
        """Return the groups of the next batch."""
        return rng.sample(names, self.n_groups)

    def ends(self, left: dict[int, list[int]], chosen: list[int]) -> bool:
        """Tell whether the pass ends, by the images left per group and the last batch's groups."""
        raise NotImplementedError

    def order(self, rng: random.Random) -> Sequence[int]:
        """Return the batches of one pass, one after another; no more than `__len__` says."""
        return self.batches(rng)[: self._length]

    def batches(self, rng: random.Random) -> list[int]:
        """Draw batches, one after another, until the pass ends."""
        left = {name: self.shuffled(items, rng) for name, items in self.groups.items()}
        result: list[int] = []
        while True:
            # Groups that can no longer fill their share take no part.
            names = [name for name in left if len(left[name]) >= self.per_group]
            chosen = self.choose(names, rng)
            for name in chosen:
                # Without replacement: the rest of the group is for later batches.
                result += left[name][: self.per_group]
                left[name] = left[name][self.per_group :]
            if self.ends(left, chosen):
                return result

    def __len__(self) -> int:
        """Return the number of indices in a pass; an unlucky draw may have a few less."""
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
        """End after a batch with a domain that cannot fill its share again."""
        return any(len(left[name]) < self.per_group for name in chosen)


class SeqDomainSampler(RandomDomainSampler):
    """Batches with equally many images from every domain, domains in fixed order.

    Raises:
        ValueError: ``batch_size`` is not divisible by the number of domains.
    """

    def __init__(
        self, data_source: Sequence[Datum], batch_size: int, seed: int | None = None
    ) -> None:
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
            batch_size: At least ``n_ins``. If it is not a multiple, the number of classes is
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
        # Padded to one share exactly, so that the class is not drawn a second time.
        if len(items) < self.per_group:
            return rng.choices(items, k=self.per_group)
        return super().shuffled(items, rng)

    def ends(self, left: dict[int, list[int]], chosen: list[int]) -> bool:
        """End when too few classes can fill their share."""
        return sum(len(items) >= self.per_group for items in left.values()) < self.n_groups
