"""RandAugment with the 16 operations that this family of repositories uses."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

__all__ = ["RandAugment"]

_Op = Callable[[Image.Image, float], Image.Image]
_GREY = (125, 123, 114)


def _signed(value: float) -> float:
    return -value if random.random() > 0.5 else value


def _affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> (
    Image.Image
):  # fmt: skip
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f))


def _solarize_add(image: Image.Image, value: float) -> Image.Image:
    return image.point([min(255, i + int(value)) if i < 128 else i for i in range(256)] * 3)


def _cutout(image: Image.Image, size: float) -> Image.Image:
    width, height = image.size
    x0 = int(max(0, random.uniform(0, width) - size / 2))
    y0 = int(max(0, random.uniform(0, height) - size / 2))
    box = (x0, y0, min(width, x0 + size), min(height, y0 + size))
    image = image.copy()
    ImageDraw.Draw(image).rectangle(box, _GREY)
    return image


# operation, value at magnitude 0, value at magnitude 30
_OPERATIONS: list[tuple[_Op, float, float]] = [
    (lambda image, _: ImageOps.autocontrast(image), 0, 1),
    (lambda image, _: ImageOps.equalize(image), 0, 1),
    (lambda image, _: ImageOps.invert(image), 0, 1),
    (lambda image, v: image.rotate(_signed(v)), 0, 30),
    (lambda image, v: ImageOps.posterize(image, max(1, int(v))), 0, 4),
    (lambda image, v: ImageOps.solarize(image, int(v)), 0, 256),
    (_solarize_add, 0, 110),
    (lambda image, v: ImageEnhance.Color(image).enhance(v), 0.1, 1.9),
    (lambda image, v: ImageEnhance.Contrast(image).enhance(v), 0.1, 1.9),
    (lambda image, v: ImageEnhance.Brightness(image).enhance(v), 0.1, 1.9),
    (lambda image, v: ImageEnhance.Sharpness(image).enhance(v), 0.1, 1.9),
    (lambda image, v: _affine(image, 1, _signed(v), 0, 0, 1, 0), 0, 0.3),
    (lambda image, v: _affine(image, 1, 0, 0, _signed(v), 1, 0), 0, 0.3),
    (_cutout, 0, 40),
    (lambda image, v: _affine(image, 1, 0, _signed(v), 0, 1, 0), 0, 100),
    (lambda image, v: _affine(image, 1, 0, 0, 0, 1, _signed(v)), 0, 100),
]


class RandAugment:
    """Apply ``n`` operations, drawn with replacement, at one fixed magnitude.

    RandAugment (arXiv:1909.13719), in the 16-operation form behind the name ``randaugment`` in
    Dassl configs.
    """

    def __init__(self, n: int = 2, m: float = 10) -> None:
        """Check and keep the settings.

        Args:
            n: Operations per image.
            m: Magnitude, 0 to 30.

        Raises:
            ValueError: Out of range.
        """
        if n < 0:
            raise ValueError(f"INPUT.RANDAUGMENT_N must not be negative, got {n}")
        if not 0 <= m <= 30:
            raise ValueError(f"INPUT.RANDAUGMENT_M must be in [0, 30], got {m}")
        self.n = n
        self.m = m

    def __call__(self, image: Image.Image) -> Image.Image:
        """Augment an RGB image."""
        for operation, low, high in random.choices(_OPERATIONS, k=self.n):
            image = operation(image, low + (high - low) * self.m / 30)
        return image

    def __repr__(self) -> str:
        """Show the settings."""
        return f"RandAugment(n={self.n}, m={self.m})"
