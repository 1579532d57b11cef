"""Image transforms."""

from dassl.data.transforms.transforms import (
    AVAILABLE_TRANSFORMS,
    INTERPOLATION_MODES,
    build_transform,
)

__all__ = ["AVAILABLE_TRANSFORMS", "INTERPOLATION_MODES", "build_transform"]
