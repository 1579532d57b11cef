"""A classifier over all of ImageNet's classes on a dataset that has other, or fewer, classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def masked_logits(logits: Tensor, imagenet_labels: Sequence[Sequence[int]]) -> Tensor:
    """Score each class of a dataset by the best of the ImageNet classes that it stands for.

    ImageNet-A and -R select 200 of the 1000 columns. A class of ObjectNet may stand for several
    ("Alarm clock" for both analog and digital clock); the maximum makes a prediction right if any
    of them wins over all that other classes stand for. Columns of no class are left out.

    Args:
        logits: Of a classifier over the C classes of ImageNet, (B, C).
        imagenet_labels: For each of the K classes its columns, at least one: a dataset's
            ``imagenet_labels``.

    Returns:
        Logits over the dataset's own classes, (B, K).

    Raises:
        ValueError: A class has no column, or one that the logits lack.
    """
    empty = [label for label, columns in enumerate(imagenet_labels) if not columns]
    if empty or not imagenet_labels:
        raise ValueError(f"every class must stand for a class of ImageNet; none for {empty}")
    used = [column for columns in imagenet_labels for column in columns]
    if min(used) < 0 or max(used) >= logits.shape[1]:
        raise ValueError(
            f"classes stand for ImageNet's {min(used)} to {max(used)}, but the classifier has "
            f"{logits.shape[1]} outputs; it must have been built over all classes of ImageNet"
        )
    widest = max(map(len, imagenet_labels))
    # The first column once more changes no maximum.
    filled = [[*columns, *[columns[0]] * (widest - len(columns))] for columns in imagenet_labels]
    index = torch.tensor(filled, device=logits.device)  # (K, G)
    return logits[:, index].amax(-1)  # (B, K, G) -> (B, K)
