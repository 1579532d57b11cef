"""A transform in two halves: from image to bytes, and from bytes to the normalised floats.

Loader processes need only do the first half: bytes are a quarter of what floats are to hand over,
and to copy to a GPU, which does the second half for a batch in no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

__all__ = ["batch_steps", "finish", "split_transform", "to_bytes"]


def split_transform(transform: Any) -> tuple[T.Compose, list[Any]] | None:
    """A transform's steps before and after it turns the image into a tensor.

    None unless it is a composition with one ``ToTensor``, as ``build_transform`` makes it.
    """
    steps = list(getattr(transform, "transforms", []))
    while len(steps) == 2 and isinstance(steps[1], T.Compose):  # a border is cut off first
        steps = [steps[0], *steps[1].transforms]
    places = [i for i, step in enumerate(steps) if isinstance(step, T.ToTensor)]
    if len(places) != 1:
        return None
    return T.Compose(steps[: places[0]]), steps[places[0] + 1 :]


def batch_steps(transform: Any) -> list[Any] | None:
    """The steps after ``ToTensor``, if they do the same to a batch as to each image; else None.

    Normalisation does. What draws at random does not, and of other steps it is not known.
    """
    halves = split_transform(transform)
    if halves is None or not all(type(step) is T.Normalize for step in halves[1]):
        return None
    return halves[1]


def to_bytes(transform: Any, image: Image.Image) -> Tensor:
    """What a transform with :func:`batch_steps` makes of an image before those: bytes, (3, H, W).

    Of an image that is not RGB by then, it is what the whole transform makes, floats.
    """
    first, rest = split_transform(transform) or (transform, [])
    picture = first(image)
    if picture.mode == "RGB":
        return pil_to_tensor(picture)
    return T.Compose([T.ToTensor(), *rest])(picture)


def finish(images: Tensor, steps: Sequence[Any]) -> Tensor:
    """What ``ToTensor`` and the steps after it make of bytes, (B, 3, H, W) -> the same, floats.

    The operations are torchvision's, in their order, so that the floats are the same to the bit.
    """
    # A number would be multiplied by 1/255 on a GPU, which rounds differently.
    images = images.float().div(_constant((255.0,), images.device))
    for step in steps:
        if type(step) is T.Normalize:
            values = (tuple(map(float, v)) for v in (step.mean, step.std))
            mean, std = (_constant(v, images.device) for v in values)
            images = images.sub(mean).div_(std)
        else:
            images = step(images)
    return images


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers of each channel, (C, 1, 1), kept on the device: copying them would wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
