"""Zero-shot accuracy of public features and cosines, against what is known of them.

Notation: N images, K classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.real_data.arrays import half_of, read_needed

TOLERANCE = 0.01  # percent


@dataclass(frozen=True)
class Comparison:
    """One number that is compared; ``found`` is None if a problem stands in its way."""

    file: str
    images: str
    classes: str
    expected: float
    found: float | None
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Whether both are the same number, as far as it was written down."""
        # Expected values have two digits: half of the last one is rounding.
        return self.found is not None and abs(self.found - self.expected) < TOLERANCE


def compare(root: Path, rows: list[dict[str, Any]]) -> Iterator[Comparison]:
    """Compare each row of ``zero_shot`` in the expected values with the file below ``root``."""
    for row in rows:
        found: Mapping[str, float] = {}
        problem = ""
        try:
            found = accuracies(root, row)
        except (OSError, ValueError) as error:
            problem = str(error)
        for classes, expected in row["accuracy"].items():
            accuracy = found.get(classes)
            yield Comparison(row["file"], row["images"], classes, expected, accuracy, problem)


def accuracies(root: Path, row: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy in percent of a row's images, by the classes among which is decided."""
    names = [row[key] for key in ("images", "labels", "text") if key in row]
    arrays = read_needed(root / row["file"], names)
    images, counted = arrays[row["images"]], row.get("classes", "all")
    if "text" in row:
        text = arrays[row["text"]]
        _require(images.ndim == 2 and images.shape[1:] == text.shape[1:], row, images, text)
        # As they lie: texts have unit norm to half precision, and to scale them again would decide
        # a few images otherwise. The images' lengths decide nothing.
        images = images.astype(np.float64) @ text.astype(np.float64).T  # (N, K)
    if "labels" in row:
        label = arrays[row["labels"]].astype(np.int64)
    else:
        label = np.repeat(np.arange(images.shape[1]), len(images) // images.shape[1])
    _require(images.ndim == 2 and len(label) == len(images), row, images, label)
    # Labels of a half count from 0; the columns are those of all classes.
    label = label + (half_of(images.shape[1], counted).start or 0)
    return {half: _accuracy(images, label, half) for half in row["accuracy"]}


def _accuracy(scores: np.ndarray, label: np.ndarray, half: str) -> float:
    """Accuracy among the classes of a half, of its own images: scores (N, K), labels (N,)."""
    classes = np.arange(scores.shape[1])[half_of(scores.shape[1], half)]
    own = np.isin(label, classes)
    if not own.any():
        raise ValueError(f"no image is of the {half} classes")
    decided = classes[scores[own][:, classes].argmax(1)]
    return 100 * float((decided == label[own]).mean())


def _require(fits: bool, row: Mapping[str, Any], images: np.ndarray, other: np.ndarray) -> None:
    if not fits:
        raise ValueError(
            f"{row['file']}: {row['images']} {images.shape} does not fit "
            f"{row.get('labels', row.get('text'))} {other.shape}"
        )
