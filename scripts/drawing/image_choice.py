"""Which images and classes of a trained run's data are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dassl.config import user_path
from dassl.data.datasets import Datum
from dassl.names import nearest

CLASSES_SHOWN = 20  # that many colours can be told apart; --classes may name more
MOST_IMAGES = 12  # of the heat maps: more rows no longer fit a page


class Choice(NamedTuple):
    """What is drawn."""

    items: list[Datum]  # all images of the split
    names: list[str]  # all class names by label
    classes: list[int]  # labels of the classes that are drawn
    rng: np.random.Generator  # draws images and classes at random


def select(trainer: Any, split: str, classes: Sequence[str], seed: int) -> Choice:
    """Return the images and classes of a split (train, val or test) of a finished run.

    ``classes`` are names, in any spelling of case and underscores; if empty, all classes or, of
    more than ``CLASSES_SHOWN``, as many drawn at random.
    """
    data = trainer.dm.dataset
    items = list({"train": data.train_x, "val": data.val, "test": data.test}[split] or ())
    if not items:
        raise ValueError(f"--split {split}: {trainer.cfg.DATASET.NAME} has no images in it")
    names = [trainer.dm.lab2cname[label] for label in sorted(trainer.dm.lab2cname)]
    rng = np.random.default_rng(seed)
    if classes:
        return Choice(items, names, [_label(name, names) for name in classes], rng)
    chosen = list(range(len(names)))
    if len(chosen) > CLASSES_SHOWN:
        chosen = sorted(rng.choice(len(names), CLASSES_SHOWN, replace=False).tolist())
    return Choice(items, names, chosen, rng)


def _label(name: str, names: Sequence[str]) -> int:
    folded = [one.lower().replace("_", " ") for one in names]
    wanted = name.lower().replace("_", " ")
    if wanted not in folded:
        hint = nearest(wanted, folded)
        raise ValueError(f"--classes: {name!r} is none of the run's {len(names)} classes.{hint}")
    return folded.index(wanted)


def by_lot(chosen: Choice, number: int) -> list[Datum]:
    """At most ``number`` images of the selected classes, drawn at random."""
    some = [item for item in chosen.items if item.label in set(chosen.classes)]
    if not some:
        raise ValueError("--classes: the split has no image of these classes")
    order = chosen.rng.permutation(len(some))[:number]
    return [some[place] for place in order]


def choose_images(words: Sequence[str], chosen: Choice) -> list[Datum]:
    """Return the images that ``--images`` asks for.

    The words are one number N for N images at random; or several numbers, or numbers after an
    ``@``, for places in the split; or paths of images, of the split or others.
    """
    if len(words) == 1 and words[0].isdecimal():
        number = int(words[0])
        _check_number(number)
        return by_lot(chosen, number)
    _check_number(len(words))
    return [_find(word, chosen) for word in words]


def _check_number(number: int) -> None:
    if not 1 <= number <= MOST_IMAGES:
        raise ValueError(
            f"--images: from 1 to {MOST_IMAGES} images can be drawn, got {number} (for the one "
            "image at a place, write @ before it)"
        )


def _find(word: str, chosen: Choice) -> Datum:
    place = word.removeprefix("@")
    if place.isdecimal():
        if int(place) >= len(chosen.items):
            raise ValueError(
                f"--images: there is no image {place}; the split has {len(chosen.items)}, "
                f"numbered from 0 to {len(chosen.items) - 1}"
            )
        return chosen.items[int(place)]
    path = Path(user_path(word))
    for item in chosen.items:
        if path.absolute() == Path(item.impath).absolute():
            return item
    if not path.is_file():
        raise FileNotFoundError(
            f"--images: {word} is neither a number, nor a picture of the split, nor a file"
        )
    return Datum(impath=str(path), label=-1)  # the class of a picture from elsewhere is unknown
