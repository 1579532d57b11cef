"""The two ways of resizing an image: Pillow's, and with INPUT.FAST_RESIZE PyTorch's.

Pillow's pixels are those that published numbers were made with. PyTorch's kernels for bytes take a
quarter to a half of the time. Theirs differ by one of the 255 levels at few places; by more only at
hard edges of images much higher than wide, whose height Pillow reduces before the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

__all__ = ["FastRandomResizedCrop", "FastResize", "random_resized_crop_step", "resize_step"]


class FastResize(T.Resize):
    """``torchvision.transforms.Resize`` of an RGB image, by PyTorch's kernels."""

    def forward(self, image: Image.Image) -> Image.Image:
        """Resize to ``size``: (height, width), or the length of the shorter side."""
        return _resize(image, _sides(image, self.size), self.interpolation)


class FastRandomResizedCrop(T.RandomResizedCrop):
    """``torchvision.transforms.RandomResizedCrop`` of an RGB image: the same crops, as fast."""

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Crop at random and resize to ``size``; bytes, (3, H, W), give bytes, (3, *size)."""
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        if isinstance(image, Tensor):
            part = image[:, top : top + height, left : left + width]
            return _resize_bytes(part, self.size, self.interpolation)
        cut = image.crop((left, top, left + width, top + height))
        return _resize(cut, self.size, self.interpolation)


def resize_step(fast: bool, size: int | Sequence[int], mode: InterpolationMode) -> T.Resize:
    """The step that resizes images; ``fast`` is INPUT.FAST_RESIZE."""
    return (FastResize if _has_kernel(fast, mode) else T.Resize)(size, interpolation=mode)


def random_resized_crop_step(
    fast: bool, size: Sequence[int], scale: Sequence[float], mode: InterpolationMode
) -> T.RandomResizedCrop:
    """The step that crops a share ``scale`` of the area; ``fast`` is INPUT.FAST_RESIZE."""
    step = FastRandomResizedCrop if _has_kernel(fast, mode) else T.RandomResizedCrop
    return step(size, scale=scale, interpolation=mode)


def _has_kernel(fast: bool, mode: InterpolationMode) -> bool:
    # Taking the nearest pixel needs no arithmetic that could be faster.
    return fast and mode != InterpolationMode.NEAREST


def _sides(image: Image.Image, size: Any) -> tuple[int, int]:
    """Height and width that torchvision resizes to."""
    if not isinstance(size, int):
        height, width = size
        return height, width
    shorter, longer = sorted(image.size)
    other = int(size * longer / shorter)  # rounded down, as torchvision does
    return (other, size) if image.height > image.width else (size, other)


def _resize(image: Image.Image, size: Sequence[int], mode: InterpolationMode) -> Image.Image:
    # A view with the channels last in memory, as Pillow has them: the kernels take it as it is.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
    resized = _resize_bytes(pixels, size, mode)
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())


def _resize_bytes(pixels: Tensor, size: Sequence[int], mode: InterpolationMode) -> Tensor:
    """(3, H, W) -> (3, *size)."""
    # Antialiased, as Pillow always does and PyTorch only if asked.
    return F.interpolate(pixels[None], tuple(size), mode=mode.value, antialias=True)[0]
