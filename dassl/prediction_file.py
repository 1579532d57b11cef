"""A run's ``predictions.csv.gz``: what it took each test image for.

A table that ``pandas.read_csv`` and ``zcat`` read. Nothing imports PyTorch, as reports read it.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dassl.config.identity import path_below
from dassl.utils.files import atomic_write

__all__ = [
    "PREDICTIONS_NAME",
    "PredictedImage",
    "image_name",
    "read_predictions",
    "write_predictions",
]

PREDICTIONS_NAME = "predictions.csv.gz"
MOST_ROWS = 100_000  # ImageNet's 50,000 take 0.5 MB
# Unpacked: a small file from elsewhere may become larger than the memory.
_MOST_BYTES = 64_000_000
_TEXT = ("utf-8", "surrogateescape")  # names in another encoding are read back as they were


class PredictedImage(NamedTuple):
    """A test image and the class with the largest logit.

    Attributes:
        image: Path below DATASET.ROOT, with ``/``; of a row of features ``<file>#<row>``.
        label: The true class.
        class_name: Its name.
        predicted: The predicted class.
        predicted_name: Its name.
        confidence: The softmax of its logit, in [0, 1].
    """

    image: str
    label: int
    class_name: str
    predicted: int
    predicted_name: str
    confidence: float

    @property
    def is_wrong(self) -> bool:
        """Whether the image was mistaken for another class."""
        return self.predicted != self.label


def image_name(path: str, base: str) -> str:
    """Return how an image is called in the file: its path below ``base``, an absolute path."""
    return path_below(path, base).replace(os.sep, "/")


def write_predictions(directory: str | os.PathLike[str], images: Iterable[PredictedImage]) -> Path:
    """Write the file, atomically; of more than `MOST_ROWS` images only mistaken ones, the first."""
    kept = list(images)
    if len(kept) > MOST_ROWS:
        kept = [image for image in kept if image.is_wrong][:MOST_ROWS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PredictedImage._fields)
    writer.writerows((*image[:-1], f"{image.confidence:.4f}") for image in kept)
    path = Path(directory) / PREDICTIONS_NAME
    content = text.getvalue().encode(*_TEXT)
    with atomic_write(path, "wb") as file:
        # Without a time, so that equal predictions are equal files.
        file.write(gzip.compress(content, compresslevel=6, mtime=0))
    return path


def read_predictions(directory: str | os.PathLike[str]) -> list[PredictedImage]:
    """Read a run's file; empty where there is none.

    Raises:
        ValueError: It is damaged, or not such a file; the message names file and reason.
    """
    path = Path(directory) / PREDICTIONS_NAME
    if not path.is_file():
        return []
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError("it is larger than such files are")
        header, *rows = csv.reader(io.StringIO(content.decode(*_TEXT), newline=""))
        if tuple(header) != PredictedImage._fields:
            raise ValueError(f"its columns are not {', '.join(PredictedImage._fields)}")
        return [_parsed(row) for row in rows]
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}); evaluate the run again") from None


def _parsed(row: list[str]) -> PredictedImage:
    image, label, name, predicted, predicted_name, confidence = row
    share = float(confidence)
    if not 0 <= share <= 1:
        raise ValueError(f"the confidence {confidence} is not between 0 and 1")
    return PredictedImage(image, int(label), name, int(predicted), predicted_name, share)
