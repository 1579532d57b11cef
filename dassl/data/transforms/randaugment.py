"""RandAugment in the three forms that Dassl's configs name.

The operations and their ranges are those of Dassl since 2020, which published numbers were made
with: ``posterize`` keeps 4 to 8 bits, ``solarize_add`` brightens before it solarizes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

__all__ = ["RandAugment", "RandAugment2", "RandAugmentFixMatch"]

_Op = Callable[[Image.Image, float], Image.Image]
_Range = tuple[_Op, float, float]
_GREY = (125, 123, 114)


def _signed(value: float) -> float:
    return -value if random.random() > 0.5 else value


def _affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> (
    Image.Image
):  # fmt: skip
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f))


def _solarize_add(image: Image.Image, value: float) -> Image.Image:
    brighter = [int(min(255, level + value)) for level in range(256)]
    return image.point([level if level < 128 else 255 - level for level in brighter] * 3)


def _cutout(image: Image.Image, size: float) -> Image.Image:
    width, height = image.size
    x0 = int(max(0, random.uniform(0, width) - size / 2))
    y0 = int(max(0, random.uniform(0, height) - size / 2))
    box = (x0, y0, min(width, x0 + size), min(height, y0 + size))
    image = image.copy()
    ImageDraw.Draw(image).rectangle(box, _GREY)
    return image


def _auto_contrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.invert(image)


def _identity(image: Image.Image, _: float) -> Image.Image:
    return image


def _rotate(image: Image.Image, value: float) -> Image.Image:
    return image.rotate(_signed(value))


def _posterize(image: Image.Image, value: float) -> Image.Image:
    return ImageOps.posterize(image, max(1, int(value)))


def _solarize(image: Image.Image, value: float) -> Image.Image:
    return image.point([level if level < value else 255 - level for level in range(256)] * 3)


def _color(image: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(value)


def _contrast(image: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(value)


def _brightness(image: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(value)


def _sharpness(image: Image.Image, value: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(value)


def _shear_x(image: Image.Image, value: float) -> Image.Image:
    return _affine(image, 1, _signed(value), 0, 0, 1, 0)


def _shear_y(image: Image.Image, value: float) -> Image.Image:
    return _affine(image, 1, 0, 0, _signed(value), 1, 0)


def _translate_x(image: Image.Image, value: float) -> Image.Image:
    return _affine(image, 1, 0, _signed(value) * image.size[0], 0, 1, 0)


def _translate_y(image: Image.Image, value: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _signed(value) * image.size[1])


def _translate_x_pixels(image: Image.Image, value: float) -> Image.Image:
    return _affine(image, 1, 0, _signed(value), 0, 1, 0)


def _translate_y_pixels(image: Image.Image, value: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _signed(value))


# operation, value at magnitude 0, value at magnitude 30
_OPERATIONS: list[_Range] = [
    (_auto_contrast, 0, 1),
    (_equalize, 0, 1),
    (_invert, 0, 1),
    (_rotate, 0, 30),
    (_posterize, 4, 8),
    (_solarize, 0, 256),
    (_solarize_add, 0, 110),
    (_color, 0.1, 1.9),
    (_contrast, 0.1, 1.9),
    (_brightness, 0.1, 1.9),
    (_sharpness, 0.1, 1.9),
    (_shear_x, 0, 0.3),
    (_shear_y, 0, 0.3),
    (_cutout, 0, 40),
    (_translate_x_pixels, 0, 100),
    (_translate_y_pixels, 0, 100),
]
_FIXMATCH: list[_Range] = [
    (_auto_contrast, 0, 1),
    (_brightness, 0.05, 0.95),
    (_color, 0.05, 0.95),
    (_contrast, 0.05, 0.95),
    (_equalize, 0, 1),
    (_identity, 0, 1),
    (_posterize, 4, 8),
    (_rotate, -30, 30),
    (_sharpness, 0.05, 0.95),
    (_shear_x, -0.3, 0.3),
    (_shear_y, -0.3, 0.3),
    (_solarize, 0, 256),
    (_translate_x, -0.3, 0.3),
    (_translate_y, -0.3, 0.3),
]
_OPERATIONS2: list[_Range] = [
    (_auto_contrast, 0, 1),
    (_brightness, 0.1, 1.9),
    (_color, 0.1, 1.9),
    (_contrast, 0.1, 1.9),
    (_equalize, 0, 1),
    (_identity, 0, 1),
    (_invert, 0, 1),
    (_posterize, 4, 8),
    (_rotate, -30, 30),
    (_sharpness, 0.1, 1.9),
    (_shear_x, -0.3, 0.3),
    (_shear_y, -0.3, 0.3),
    (_solarize, 0, 256),
    (_translate_x, -0.3, 0.3),
    (_translate_y, -0.3, 0.3),
]


def _check_n(n: int) -> None:
    if n < 0:
        raise ValueError(f"INPUT.RANDAUGMENT_N must not be negative, got {n}")


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
        _check_n(n)
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


class RandAugment2:
    """Apply each of ``n`` drawn operations with probability ``p``, at a random magnitude."""

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        """Check and keep the settings.

        Args:
            n: Operations per image.
            p: Probability of each.

        Raises:
            ValueError: Out of range.
        """
        _check_n(n)
        self.n = n
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        """Augment an RGB image."""
        for operation, low, high in random.choices(_OPERATIONS2, k=self.n):
            if random.random() <= self.p:
                image = operation(image, low + (high - low) * random.random())
        return image

    def __repr__(self) -> str:
        """Show the settings."""
        return f"RandAugment2(n={self.n}, p={self.p})"


class RandAugmentFixMatch:
    """Apply ``n`` operations of FixMatch (arXiv:2001.07685), each at a random magnitude."""

    def __init__(self, n: int = 2) -> None:
        """Check and keep the setting.

        Args:
            n: Operations per image.

        Raises:
            ValueError: Out of range.
        """
        _check_n(n)
        self.n = n

    def __call__(self, image: Image.Image) -> Image.Image:
        """Augment an RGB image."""
        for operation, low, high in random.choices(_FIXMATCH, k=self.n):
            image = operation(image, low + (high - low) * random.random())
        return image

    def __repr__(self) -> str:
        """Show the setting."""
        return f"RandAugmentFixMatch(n={self.n})"
