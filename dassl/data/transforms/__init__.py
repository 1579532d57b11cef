"""Image transforms."""

from dassl.data.transforms.border import CropBorder, crop_border_first
from dassl.data.transforms.halves import (
    batch_steps,
    crop_and_flip,
    finish,
    split_transform,
    takes_pixels,
    to_bytes,
    to_floats,
)
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
    "batch_steps",
    "build_transform",
    "crop_and_flip",
    "crop_border_first",
    "finish",
    "random_resized_crop_step",
    "resize_step",
    "split_transform",
    "takes_pixels",
    "to_bytes",
    "to_floats",
]
