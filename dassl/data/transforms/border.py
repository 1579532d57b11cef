"""Cutting off the frame that a dataset (ObjectNet) drew around its images."""

from __future__ import annotations

from typing import Any

import torchvision.transforms as T
from PIL import Image

__all__ = ["CropBorder", "crop_border_first"]


class CropBorder:
    """Cut ``width`` pixels off all four sides."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, image: Image.Image) -> Image.Image:
        """Crop an image."""
        width, height = image.size
        return image.crop((self.width, self.width, width - self.width, height - self.width))

    def __repr__(self) -> str:
        """Show the width."""
        return f"CropBorder({self.width})"


def crop_border_first(transform: Any, width: int) -> Any:
    """Let a transform see images without their border of ``width`` pixels; 0 changes nothing.

    The transform is a callable, a list of such, or None, as for `DatasetWrapper`.
    """
    if width == 0:
        return transform
    if isinstance(transform, list | tuple):
        return [crop_border_first(each, width) for each in transform]
    return T.Compose([CropBorder(width), *([] if transform is None else [transform])])
