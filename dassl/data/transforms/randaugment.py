"""RandAugment in the three forms that Dassl's configs name.

Operations and ranges are Dassl's since 2020, with which published numbers were made: ``posterize``
keeps 4 to 8 bits, ``solarize_add`` brightens before it solarizes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

__all__ = ["RandAugment", "RandAugment2", "RandAugmentFixMatch"]

_Op = Callable[[Image.Image, float], Image.Image]
_GREY = (125, 123, 114)  # the mean colour of CIFAR-10's images


def _signed(value: float) -> float:
    # From Python's generator, which is seeded for every image (`dassl.data.wrapper`).
    return -value if random.random() > 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _levels(image: Image.Image, change: Callable[[int], int]) -> Image.Image:
    return image.point([change(level) for level in range(256)] * 3)


def _solarize_add(image: Image.Image, value: float) -> Image.Image:
    brighter = [int(min(255, level + value)) for level in range(256)]
    return _levels(image, lambda x: brighter[x] if brighter[x] < 128 else 255 - brighter[x])


def _cutout(image: Image.Image, size: float) -> Image.Image:
    width, height = image.size
    x0 = int(max(0, random.uniform(0, width) - size / 2))
    y0 = int(max(0, random.uniform(0, height) - size / 2))
    box = (x0, y0, min(width, x0 + size), min(height, y0 + size))
    image = image.copy()
    ImageDraw.Draw(image).rectangle(box, _GREY)
    return image


_APPLY: dict[str, _Op] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    "color": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    "cutout": _cutout,
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "invert": lambda image, _: ImageOps.invert(image),
    # At least one bit: without any, the image would be black.
    "posterize": lambda image, value: ImageOps.posterize(image, max(1, int(value))),
    "rotate": lambda image, value: image.rotate(_signed(value)),
    "sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    "shear_x": lambda image, value: _affine(image, 1, _signed(value), 0, 0, 1, 0),
    "shear_y": lambda image, value: _affine(image, 1, 0, 0, _signed(value), 1, 0),
    "solarize": lambda image, value: _levels(image, lambda x: x if x < value else 255 - x),
    "solarize_add": _solarize_add,
    # By a share of the side, and by pixels.
    "translate_x": lambda im, value: _affine(im, 1, 0, _signed(value) * im.size[0], 0, 1, 0),
    "translate_y": lambda im, value: _affine(im, 1, 0, 0, 0, 1, _signed(value) * im.size[1]),
    "translate_x_pixels": lambda image, value: _affine(image, 1, 0, _signed(value), 0, 1, 0),
    "translate_y_pixels": lambda image, value: _affine(image, 1, 0, 0, 0, 1, _signed(value)),
}

# Name, value at the least magnitude and at the greatest. Their order is part of a draw.
_Table = Sequence[tuple[str, float, float]]
_OPERATIONS: _Table = (
    ("auto_contrast", 0, 1),
    ("equalize", 0, 1),
    ("invert", 0, 1),
    ("rotate", 0, 30),
    ("posterize", 4, 8),
    ("solarize", 0, 256),
    ("solarize_add", 0, 110),
    ("color", 0.1, 1.9),
    ("contrast", 0.1, 1.9),
    ("brightness", 0.1, 1.9),
    ("sharpness", 0.1, 1.9),
    ("shear_x", 0, 0.3),
    ("shear_y", 0, 0.3),
    ("cutout", 0, 40),
    ("translate_x_pixels", 0, 100),
    ("translate_y_pixels", 0, 100),
)
_FIXMATCH: _Table = (
    ("auto_contrast", 0, 1),
    ("brightness", 0.05, 0.95),
    ("color", 0.05, 0.95),
    ("contrast", 0.05, 0.95),
    ("equalize", 0, 1),
    ("identity", 0, 1),
    ("posterize", 4, 8),
    ("rotate", -30, 30),
    ("sharpness", 0.05, 0.95),
    ("shear_x", -0.3, 0.3),
    ("shear_y", -0.3, 0.3),
    ("solarize", 0, 256),
    ("translate_x", -0.3, 0.3),
    ("translate_y", -0.3, 0.3),
)
_OPERATIONS2: _Table = (
    ("auto_contrast", 0, 1),
    ("brightness", 0.1, 1.9),
    ("color", 0.1, 1.9),
    ("contrast", 0.1, 1.9),
    ("equalize", 0, 1),
    ("identity", 0, 1),
    ("invert", 0, 1),
    ("posterize", 4, 8),
    ("rotate", -30, 30),
    ("sharpness", 0.1, 1.9),
    ("shear_x", -0.3, 0.3),
    ("shear_y", -0.3, 0.3),
    ("solarize", 0, 256),
    ("translate_x", -0.3, 0.3),
    ("translate_y", -0.3, 0.3),
)


class _Drawn:
    """Applies ``n`` operations, drawn with replacement; subclasses say which, and how strongly."""

    table: _Table

    def __init__(self, n: int = 2) -> None:
        if n < 0:
            raise ValueError(f"INPUT.RANDAUGMENT_N must not be negative, got {n}")
        self.n = n

    def value(self, low: float, high: float) -> float | None:
        """Return an operation's value in its range; None leaves the operation out."""
        return low + (high - low) * random.random()

    def __call__(self, image: Image.Image) -> Image.Image:
        """Augment an RGB image."""
        for name, low, high in random.choices(self.table, k=self.n):
            value = self.value(low, high)
            if value is not None:
                image = _APPLY[name](image, value)
        return image

    def __repr__(self) -> str:
        """Show the settings."""
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class RandAugment(_Drawn):
    """Apply ``n`` operations, drawn with replacement, at one fixed magnitude ``m``, 0 to 30.

    RandAugment (arXiv:1909.13719), in the 16-operation form behind the name ``randaugment`` in
    Dassl configs.
    """

    table = _OPERATIONS

    def __init__(self, n: int = 2, m: float = 10) -> None:
        super().__init__(n)
        if not 0 <= m <= 30:
            raise ValueError(f"INPUT.RANDAUGMENT_M must be in [0, 30], got {m}")
        self.m = m

    def value(self, low: float, high: float) -> float:
        """Return the value at the fixed magnitude."""
        return low + (high - low) * self.m / 30


class RandAugment2(_Drawn):
    """Apply each of ``n`` drawn operations with probability ``p``, at a random magnitude."""

    table = _OPERATIONS2

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        super().__init__(n)
        self.p = p

    def value(self, low: float, high: float) -> float | None:
        """Return a random value, or None with probability ``1 - p``."""
        return super().value(low, high) if random.random() <= self.p else None


class RandAugmentFixMatch(_Drawn):
    """Apply ``n`` operations of FixMatch (arXiv:2001.07685), each at a random magnitude."""

    table = _FIXMATCH
