"""Choose among images: few shots per class, base or new classes, random splits.

All published numbers of the field depend on these rules (those of CoOp). Every choice comes from a
generator of its own, never from the global one, so nothing else can shift it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from dassl.data.datasets import DatasetBase, Datum
from dassl.names import check_availability
from datasets.splits import Splits

HALVES = ("all", "base", "new")
MAX_VAL_SHOTS = 4  # CoOp's

T = TypeVar("T")


def relabel(item: Datum, *, label: int | None = None, classname: str | None = None) -> Datum:
    """Copy an item with another label or class name."""
    return replace(
        item,
        label=item.label if label is None else label,
        classname=item.classname if classname is None else classname,
    )


def by_label(items: Sequence[Datum]) -> dict[int, list[Datum]]:
    """Group items by label, labels in the order they are first seen."""
    groups: dict[int, list[Datum]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def draw_few_shot(
    splits: Splits,
    shots: int,
    seed: int,
    notes: list[str] | None = None,
    val_policy: str = "min4",
) -> Splits:
    """Draw ``shots`` training and ``min(shots, 4)`` validation images per class.

    For each label in first-seen order ``random.sample(items, shots)``, first of train, then of val
    with the same generator: exactly the published draws of CoOp. A class with fewer images gives
    all it has (and takes nothing from the generator). ``test`` is left alone.

    ``splits`` are of all classes; halves are taken afterwards, as CoOp does. ``notes`` get a line
    about classes that have fewer images. ``val_policy`` is VAL.POLICY: ``shots`` draws as many
    validation as training images, ``full`` keeps all of them; the training images are the same.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    if seed < 0:
        # random.Random(-1) is random.Random(1): it would pass for seed 1 unnoticed.
        raise ValueError(f"the seed of a few-shot draw must be at least 0, got {seed}")
    generator = random.Random(seed)
    # The engine's own draw, fed with a generator that nothing else can have moved.
    engine = DatasetBase(train_x=splits.train, test=splits.test)
    train = engine.generate_fewshot_dataset(splits.train, num_shots=shots, rng=generator)
    if notes is not None:
        notes += engine.notes
    # With the generator as train left it: val's draw depends on train's, as it does in CoOp.
    if val_policy == "full":
        return Splits(train, splits.val, splits.test)
    val_shots = shots if val_policy == "shots" else min(shots, MAX_VAL_SHOTS)
    val = engine.generate_fewshot_dataset(splits.val, num_shots=val_shots, rng=generator)
    return Splits(train, val, splits.test)


def kept_labels(splits: Splits, half: str) -> list[int]:
    """Labels of the base or the new classes, or of all, sorted; base is the first ceil(n/2)."""
    check_availability(half, HALVES, "DATASET.SUBSAMPLE_CLASSES")
    labels = sorted({item.label for item in splits.defining})
    if half == "all":
        return labels
    middle = (len(labels) + 1) // 2  # of an odd number of classes base has one more, as in CoOp
    kept = labels[:middle] if half == "base" else labels[middle:]
    if not kept:
        raise ValueError(
            f"DATASET.SUBSAMPLE_CLASSES is {half!r}, but of {len(labels)} class(es) none is left"
        )
    return kept


def subsample_classes(splits: Splits, half: str) -> Splits:
    """Keep the base or the new classes, relabelled from 0."""
    kept = kept_labels(splits, half)
    if half == "all":
        return splits
    new_label = {label: index for index, label in enumerate(kept)}
    return Splits(
        *(
            [relabel(item, label=new_label[item.label]) for item in part if item.label in new_label]
            for part in splits
        )
    )


def check_ratio(ratio: Sequence[float]) -> tuple[float, float, float]:
    """Refuse shares of train, val and test that do not sum to 1, or none for train or test."""
    good = len(ratio) == 3 and abs(sum(ratio) - 1) < 1e-6
    if not good or ratio[0] <= 0 or ratio[1] < 0 or ratio[2] <= 0:
        raise ValueError(
            f"DATASET.SPLIT_RATIO is {tuple(ratio)}; it must be three shares (train, val, test) "
            "that sum to 1, of which only val may be 0, for example (0.5, 0.2, 0.3)"
        )
    return (float(ratio[0]), float(ratio[1]), float(ratio[2]))


def part_sizes(total: int, ratio: tuple[float, float, float]) -> tuple[int, int, int]:
    """Divide ``total`` images of a class by ``ratio``.

    CoOp's rounding (train and val rounded, test the rest); an empty part gets one image from the
    largest: test first, then train, then val.
    """
    # round() goes to the even neighbour at .5; another rounding would change own splits.
    sizes = [round(total * ratio[0]), round(total * ratio[1])]
    sizes.append(total - sum(sizes))
    for part in (2, 0, 1):
        if ratio[part] > 0 and sizes[part] < 1 and max(sizes) > 1:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[part] += 1
    return (sizes[0], sizes[1], sizes[2])


def split_three_ways(
    groups: Sequence[Sequence[T]], ratio: tuple[float, float, float], seed: int
) -> tuple[list[T], list[T], list[T]]:
    """Shuffle each class's images and divide them by ``ratio``; equal inputs give equal splits.

    ``groups`` has one sequence per class, in label order, itself in a reproducible order.
    """
    generator = random.Random(seed)
    train: list[T] = []
    val: list[T] = []
    test: list[T] = []
    for group in groups:
        if len(group) < 2:  # train or test would lack the class
            raise ValueError(
                f"{len(group)} image(s) cannot be split into train and test: {list(group)}"
            )
        shuffled = list(group)
        generator.shuffle(shuffled)
        n_train, n_val, _ = part_sizes(len(shuffled), ratio)
        train += shuffled[:n_train]
        val += shuffled[n_train : n_train + n_val]
        test += shuffled[n_train + n_val :]
    return train, val, test


def split_off_val(
    groups: Sequence[Sequence[T]], share: float, seed: int
) -> tuple[list[T], list[T]]:
    """Take a share of each class's images for validation, at least one if the class has two.

    A share of 0 leaves val empty. ``groups`` as for :func:`split_three_ways`.
    """
    generator = random.Random(seed)
    train: list[T] = []
    val: list[T] = []
    for group in groups:
        shuffled = list(group)
        generator.shuffle(shuffled)
        n_val = min(max(round(len(shuffled) * share), 1), len(shuffled) - 1) if share > 0 else 0
        val += shuffled[:n_val]
        train += shuffled[n_val:]
    return train, val
