"""What a test predicts of every image, kept beside the metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dassl.config import user_path
from dassl.data.datasets.base_dataset import Datum
from dassl.prediction_file import PredictedImage, image_name
from dassl.utils.distributed import gather_objects

__all__ = ["Predictions"]

MOST_WAITING = 100  # batches on a GPU until they become one tensor


class Predictions:
    """Collects the predicted class of every image in a test loop.

    A batch without the ``index`` of its images, or an output that is no (B, K) tensor, as trainers
    written for Dassl may have, makes all of them unknown. On a GPU the numbers wait there.

    Args:
        items: The images of the loader, which a batch's ``index`` counts in; None collects nothing.
    """

    def __init__(self, items: Sequence[Datum] | None) -> None:
        self._items = items or ()
        self._known = items is not None
        self._index: list[int] = []
        self._waiting: list[Tensor] = []  # (2, B) each: predicted class, its confidence

    def add(self, batch: Any, output: Any) -> None:
        """Add a batch of the loader and the model's logits, (B, K)."""
        if not self._known:
            return
        index: Any = batch.get("index") if isinstance(batch, Mapping) else None
        self._known = (
            isinstance(index, Tensor)
            and isinstance(output, Tensor)
            and output.ndim == 2
            and len(index) == len(output)
        )
        if not self._known:
            return
        logits = output.detach().float()
        predicted = output.max(dim=1).indices  # (B, K) -> (B,), ties as in the metrics
        # Infinite logits have no softmax: whether the metrics accept them is not decided here.
        confidence = logits.softmax(dim=1).amax(dim=1).nan_to_num(0.0)  # (B, K) -> (B,)
        self._index += index.tolist()
        self._waiting.append(torch.stack([predicted.float(), confidence]))  # (2, B)
        if len(self._waiting) >= MOST_WAITING:
            self._waiting = [torch.cat(self._waiting, dim=1)]

    def images(
        self, root: str | os.PathLike[str], names: Mapping[int, str]
    ) -> list[PredictedImage] | None:
        """Return what was predicted in all processes, in the images' order; None if unknown.

        Every process has to call it.

        Args:
            root: DATASET.ROOT, below which the images are named.
            names: Class names by label.
        """
        found = torch.cat(self._waiting, dim=1) if self._waiting else torch.empty(2, 0)  # (2, N)
        predicted, confidence = found.tolist()
        own = list(zip(self._index, map(int, predicted), confidence, strict=True))
        parts = gather_objects(own if self._known else None)
        rows = sorted(row for part in parts for row in part or ())
        # A wrapper of a trainer's own may count its images in another list.
        counted = not rows or (rows[0][0] >= 0 and rows[-1][0] < len(self._items))
        if not counted or any(part is None for part in parts):
            return None
        base = os.path.abspath(user_path(root))
        return [
            _predicted_image(self._items[place], base, names, label, confidence)
            for place, label, confidence in rows
        ]


def _predicted_image(
    item: Datum, base: str, names: Mapping[int, str], predicted: int, confidence: float
) -> PredictedImage:
    return PredictedImage(
        image_name(item.impath, base),
        item.label,
        names.get(item.label, item.classname),
        predicted,
        names.get(predicted, str(predicted)),
        confidence,
    )
