"""Image transforms."""

from dassl.data.transforms.border import CropBorder, crop_border_first
from dassl.data.transforms.halves import batch_steps, finish, split_transform, to_bytes
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
    "crop_border_first",
    "finish",
    "random_resized_crop_step",
    "resize_step",
    "split_transform",
    "to_bytes",
]
