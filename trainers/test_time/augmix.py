"""AugMix of one image, as TPT uses it on fine-grained datasets.

"AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", ICLR 2020,
arXiv:1912.02781; its nine operations that are not among ImageNet-C's corruptions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torchvision.transforms as T
from PIL import Image, ImageOps

CHAINS, LONGEST_CHAIN = 3, 3
_Op = Callable[[Image.Image, float], Image.Image]


def _signed(value: float) -> float:
    return -value if np.random.uniform() > 0.5 else value  # noqa: NPY002 - seeded per image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
    )


def _rotate(image: Image.Image, level: float) -> Image.Image:
    return image.rotate(_signed(int(3 * level)), resample=Image.Resampling.BILINEAR)


def _translate_x(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, 1, 0, _signed(int(level * image.width / 30)), 0, 1, 0)


def _translate_y(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _signed(int(level * image.height / 30)))


# Level 10 would be 4 bits, 30 degrees, all values, a shear of 0.3 and a third of the side.
OPERATIONS: dict[str, _Op] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 4 - int(0.4 * level)),
    "rotate": _rotate,
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - int(25.6 * level)),
    "shear_x": lambda image, level: _affine(image, 1, _signed(0.03 * level), 0, 0, 1, 0),
    "shear_y": lambda image, level: _affine(image, 1, 0, 0, _signed(0.03 * level), 1, 0),
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


class AugMix:
    """An image -> its mixture with three chains of one to three operations.

    ``m x + (1 - m) sum_i w_i chain_i(x)`` with w from Dirichlet(1, 1, 1), m from Beta(1, 1) and
    levels uniform in [0.1, severity]. TPT mixes normalised tensors, which is the same, as the
    weights sum to 1, but for the rounding to bytes here.

    It draws from NumPy's global generator, as the authors' does.

    Args:
        severity: Highest level, up to 10.
    """

    def __init__(self, severity: float = 1.0) -> None:
        self.severity = severity

    def __call__(self, image: Image.Image) -> Image.Image:
        """Augment an RGB image."""
        random: Any = np.random
        weights, keep = random.dirichlet([1.0] * CHAINS), random.beta(1.0, 1.0)
        operations = list(OPERATIONS.values())
        mixed = keep * np.asarray(image, dtype=np.float64)
        for weight in weights:
            chain = image
            for _ in range(random.randint(1, LONGEST_CHAIN + 1)):
                operation = operations[random.randint(len(operations))]
                chain = operation(chain, random.uniform(0.1, self.severity))
            mixed += (1 - keep) * weight * np.asarray(chain, dtype=np.float64)
        return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))

    def __repr__(self) -> str:
        """Show the severity."""
        return f"AugMix(severity={self.severity})"


def add_augmix(views: Any) -> None:
    """Let views but the first go through AugMix behind crop and flip.

    Args:
        views: :class:`trainers.test_time.views.Views`.
    """
    views.augment = T.Compose([views.augment, AugMix()])
