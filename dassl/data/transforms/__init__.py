"""Image transforms."""

from dassl.data.transforms.border import CropBorder, crop_border_first
from dassl.data.transforms.resizing import random_resized_crop_step, resize_step
from dassl.data.transforms.transforms import (
    AVAILABLE_TRANSFORMS,
    INTERPOLATION_MODES,
    build_transform,
)

__all__ = [
    "AVAILABLE_TRANSFORMS",
    "INTERPOLATION_MODES",
    "CropBorder",
    "build_transform",
    "crop_border_first",
    "random_resized_crop_step",
    "resize_step",
]
