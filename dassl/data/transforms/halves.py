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

from dassl.data.transforms.resizing import FastRandomResizedCrop

__all__ = [
    "batch_steps",
    "crop_and_flip",
    "finish",
    "split_transform",
    "takes_pixels",
    "to_bytes",
    "to_floats",
]

_CROPS = (T.RandomResizedCrop, FastRandomResizedCrop)  # which draw the same boxes


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


def crop_and_flip(transform: Any) -> tuple[Any, Any] | None:
    """A transform's random resized crop, and its flip or None; None if it does more than these."""
    halves = split_transform(transform)
    steps = halves[0].transforms if halves and batch_steps(transform) is not None else []
    if not 1 <= len(steps) <= 2 or type(steps[0]) not in _CROPS:
        return None
    if len(steps) == 1:
        return steps[0], None
    return (steps[0], steps[1]) if type(steps[1]) is T.RandomHorizontalFlip else None


def takes_pixels(transform: Any) -> bool:
    """Whether the steps before ``ToTensor`` do the same to bytes, (3, H, W), as to an image."""
    steps = crop_and_flip(transform)
    return steps is not None and type(steps[0]) is FastRandomResizedCrop


def to_bytes(transform: Any, image: Image.Image | Tensor) -> Tensor:
    """What a transform with :func:`batch_steps` makes of an image before those: bytes, (3, H, W).

    Of an image that is not RGB by then, it is what the whole transform makes, floats. An image may
    be given as bytes, (3, H, W), where the transform :func:`takes_pixels`.
    """
    first, rest = split_transform(transform) or (transform, [])
    picture = first(image)
    if isinstance(picture, Tensor):
        return picture
    if picture.mode == "RGB":
        return pil_to_tensor(picture)
    return T.Compose([T.ToTensor(), *rest])(picture)


def to_floats(transform: Any, pixels: Tensor) -> Tensor:
    """All that a transform which :func:`takes_pixels` makes of an image's bytes, (3, H, W)."""
    return finish(to_bytes(transform, pixels)[None], batch_steps(transform) or [])[0]


def finish(images: Tensor, steps: Sequence[Any]) -> Tensor:
    """What ``ToTensor`` and the steps after it make of bytes, (B, 3, H, W) -> the same, floats.

    The operations are torchvision's, in their order, so that the floats are the same to the bit.
    """
    # A number would be multiplied by 1/255 on a GPU, which rounds differently. In place, once there
    # is a copy: memory for the floats costs as much time as the arithmetic.
    images = images.to(torch.float32, copy=True).div_(_constant((255.0,), images.device))
    for step in steps:
        if type(step) is T.Normalize:
            values = (tuple(map(float, v)) for v in (step.mean, step.std))
            mean, std = (_constant(v, images.device) for v in values)
            images = images.sub_(mean).div_(std)
        else:
            images = step(images)
    return images


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers of each channel, (C, 1, 1), kept on the device: copying them would wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
