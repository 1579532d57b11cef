"""Which images a run mistook for what, from its ``predictions.csv.gz``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from dassl.prediction_file import PREDICTIONS_NAME, PredictedImage, read_predictions

SHOWN = 3  # mistaken images of a class


class ClassRow(NamedTuple):
    """A class in a run's result.

    Attributes:
        name: Its name.
        total: Its images.
        correct: Those that were recognised.
        label: Its label.
    """

    name: str
    total: int
    correct: int
    label: int


@dataclass(frozen=True)
class Mistakes:
    """What a run's file tells of the images that were not recognised.

    Attributes:
        examples: By label, the images of a class that the run was surest of, at most `SHOWN`.
        counts: How many images of one label were taken for another, by both.
        why_not: Why nothing is known: a line; "" also if there is no file.
    """

    examples: Mapping[int, Sequence[PredictedImage]] = field(default_factory=dict)
    counts: Mapping[tuple[int, int], int] = field(default_factory=dict)
    why_not: str = ""


def mistakes_of(directory: Path, rows: Sequence[ClassRow]) -> Mistakes:
    """Return the mistakes of a run with these classes; empty if it has no file, or a wrong one."""
    try:
        state = (directory / PREDICTIONS_NAME).stat()
    except OSError:
        return Mistakes()
    # A page that is served is made again with every run that finishes.
    return _read(directory, tuple(rows), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=5000)
def _read(directory: Path, rows: tuple[ClassRow, ...], changed: int, size: int) -> Mistakes:
    try:
        wrong = [image for image in read_predictions(directory) if image.is_wrong]
    except ValueError as error:
        return Mistakes(why_not=str(error))
    by_class = Counter(image.label for image in wrong)
    if by_class != Counter({row.label: row.total - row.correct for row in rows}):
        why = f"{directory / PREDICTIONS_NAME} is not of this result: evaluate the run again"
        return Mistakes(why_not=why)
    examples: dict[int, list[PredictedImage]] = {}
    for image in sorted(wrong, key=lambda one: -one.confidence):
        own = examples.setdefault(image.label, [])
        if len(own) < SHOWN:
            own.append(image)
    return Mistakes(examples, Counter((image.label, image.predicted) for image in wrong))


def confusion_of(mistakes: Mistakes, rows: Sequence[ClassRow], most: int) -> dict[str, Any]:
    """Return the part of a run's confusion matrix that is shown; empty without mistakes.

    Row-normalised: entry (i, j) is the share of class i's images called class j.

    Args:
        mistakes: Of the run.
        rows: Its classes, in label order.
        most: Classes that are shown; of more, those that are confused most.

    Returns:
        ``names`` and ``cells``, percentages of shape (k, k) with k at most ``most``.
    """
    if not mistakes.counts:
        return {}
    by_label = {row.label: row for row in rows if row.total > 0}
    shares = {
        (label, called): number / by_label[label].total
        for (label, called), number in mistakes.counts.items()
        if called in by_label
    }
    confused: defaultdict[int, float] = defaultdict(float)
    for (label, called), share in shares.items():
        confused[label] += share
        confused[called] += share
    # As of the whole matrix: the first of equally confused classes.
    order = sorted(by_label, key=lambda label: -confused[label])[:most]
    shown = sorted(order)
    for label in shown:
        shares[label, label] = by_label[label].correct / by_label[label].total
    return {
        "names": [by_label[label].name for label in shown],
        "cells": [[round(100 * shares.get((i, j), 0.0)) for j in shown] for i in shown],
    }
