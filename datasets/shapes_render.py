"""Vectorised drawing of coloured, textured shapes with signed distance functions.

Notation: N images of S x S pixels, up to C objects in an image. Object coordinates (x, y) have the
object's radius as unit, y upwards. A signed distance is negative inside. Colours are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Range = tuple[float, float]

IMAGE_SIZE = 48
# Images drawn at a time, so that their arrays stay near the size of the CPU's caches. The pixels
# of larger sets depend on it, since chunks draw from one generator in turn.
CHUNK = 256

COLOURS: dict[str, float] = {  # name -> hue in degrees
    "red": 0,
    "orange": 30,
    "yellow": 57,
    "green": 120,
    "cyan": 180,
    "blue": 225,
    "purple": 272,
    "pink": 322,
}


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.9


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.76


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(0.866 * np.abs(x) + 0.5 * y, -y) - 0.5


def _star(x: Array, y: Array) -> Array:
    sector = np.abs(np.mod(np.arctan2(x, y) * 5 / (2 * np.pi) + 0.5, 1) - 0.5) * 2
    return np.hypot(x, y) - (1.0 - 0.58 * sector)


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.92, y - 0.32), np.maximum(x - 0.32, y - 0.92))


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.68) - 0.24


def _heart(x: Array, y: Array) -> Array:
    lobes = np.hypot(np.abs(x) - 0.44, y - 0.36) - 0.5
    wedge = np.maximum(0.791 * np.abs(x) - 0.611 * y - 0.58, y - 0.3)
    return np.minimum(lobes, wedge)


def _moon(x: Array, y: Array) -> Array:
    return np.maximum(np.hypot(x, y) - 0.92, 0.78 - np.hypot(x - 0.48, y))


FORMS: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
}

_PERIOD = 0.46  # of every pattern, in object radii


def _wave(t: Array) -> Array:
    return np.sin(t * (2 * np.pi / _PERIOD))


TEXTURES: dict[str, Callable[[Array, Array], Array]] = {  # > 0 where the main colour shows
    "solid": lambda x, y: np.ones_like(x),
    "striped": lambda x, y: _wave(y),
    "dotted": lambda x, y: 0.55 - _wave(x / 1.25) * _wave(y / 1.25) * 2,
    "checkered": lambda x, y: _wave(x / 1.5) * _wave(y / 1.5),
    "ringed": lambda x, y: _wave(np.hypot(x, y)),
    "hatched": lambda x, y: np.minimum(_wave(x + y) + 0.62, _wave(x - y) + 0.62),
}


@dataclass(frozen=True)
class Style:
    """How images look, apart from what they show. Pairs are ranges of a uniform draw each."""

    hue_shift: float = 0.0
    hue_jitter: float = 8.0
    saturation: Range = (0.75, 1.0)
    brightness: Range = (0.75, 1.0)
    second_tone: Range = (0.0, 1.0)  # lightness of a pattern's other tone, 0 near black
    background: Range = (0.1, 0.9)
    background_saturation: float = 0.25
    background_texture: Range = (0.0, 0.15)
    size: Range = (0.62, 0.95)
    rotation: float = 25.0
    noise: Range = (0.0, 0.05)
    contrast: Range = (0.9, 1.0)
    outline: bool = False  # draw ink lines on paper instead of filled areas
    levels: int = 0  # number of tones that a channel is reduced to; 0 keeps all
    block: int = 1  # side in pixels of the squares that the image is averaged over
    clutter: int = 0  # stray strokes over the background and, thinly, over the object


@dataclass(frozen=True)
class Objects:
    """What N images show, by index into FORMS, COLOURS and TEXTURES; all of shape (N,)."""

    form: NDArray[np.intp]
    colour: NDArray[np.intp]
    texture: NDArray[np.intp]
    count: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.form)

    def part(self, rows: slice | NDArray[np.intp]) -> Objects:
        """Some of the images."""
        return Objects(self.form[rows], self.colour[rows], self.texture[rows], self.count[rows])


def render(
    objects: Objects, style: Style, rng: np.random.Generator, size: int = IMAGE_SIZE
) -> NDArray[np.uint8]:
    """Draw RGB images, (N, S, S, 3); equal objects, style and generator state give equal pixels."""
    parts = [
        _render_chunk(objects.part(slice(i, i + CHUNK)), style, rng, size)
        for i in range(0, len(objects), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, size, size, 3), np.uint8)


def _render_chunk(
    objects: Objects, style: Style, rng: np.random.Generator, size: int
) -> NDArray[np.uint8]:
    n = len(objects)
    picture = _background(n, style, rng, size)
    if style.clutter:
        picture = _strokes(picture, style.clutter, 0.08, rng)
    centres, radii = _layout(objects.count, style, rng)  # (N, C, 2), (N,)
    hue = style.hue_shift + rng.uniform(-style.hue_jitter, style.hue_jitter, n)
    hue += np.array(list(COLOURS.values()))[objects.colour]
    main = hsv_to_rgb(hue, rng.uniform(*style.saturation, n), rng.uniform(*style.brightness, n))
    tone = rng.uniform(*style.second_tone, n)[:, None].astype(np.float32)
    # (N, 3), mostly grey, so that it shows no other colour's name.
    second = main * 0.25 + (0.05 + 0.9 * tone) * 0.75
    angle = np.deg2rad(rng.uniform(-style.rotation, style.rotation, (n, centres.shape[1])))
    for slot in range(centres.shape[1]):
        rows = np.flatnonzero(objects.count > slot)
        if len(rows):
            x, y = _object_coordinates(centres[rows, slot], radii[rows], angle[rows, slot], size)
            shown, tones = objects.part(rows), (main[rows], second[rows])
            picture[rows] = _paint(picture[rows], shown, x, y, radii[rows], tones, style)
    if style.clutter:
        picture = _strokes(picture, style.clutter // 3, 0.03, rng)
    return _finish(picture, style, rng)


def hsv_to_rgb(hue: NDArray, saturation: NDArray, value: NDArray) -> Array:
    """Hue in degrees, the others in [0, 1], each (N,) -> (N, 3)."""
    k = np.mod(np.array([5.0, 3.0, 1.0]) + hue[:, None] / 60, 6)
    chroma = (value * saturation)[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1)
    return (value[:, None] - chroma).astype(np.float32)


def _background(n: int, style: Style, rng: np.random.Generator, size: int) -> Array:
    if style.outline:
        paper = rng.uniform(0.9, 1.0, (n, 1, 1, 1))
        return np.broadcast_to(paper, (n, size, size, 3)).astype(np.float32)
    base = hsv_to_rgb(
        rng.uniform(0, 360, n),
        rng.uniform(0, style.background_saturation, n),
        rng.uniform(*style.background, n),
    )
    # Smooth stains rather than pixel noise, which a small encoder would average away.
    coarse = rng.standard_normal((n, 5, 5, 3)).astype(np.float32)
    strength = rng.uniform(*style.background_texture, n).astype(np.float32)
    return base[:, None, None] + strength[:, None, None, None] * _enlarge(coarse, size)


def _enlarge(grid: Array, size: int) -> Array:
    """Bilinear enlargement of (N, G, G, 3) to (N, size, size, 3)."""
    cells = grid.shape[1] - 1
    at = np.linspace(0, cells, size, dtype=np.float32)
    low = np.minimum(at.astype(int), cells - 1)
    part = at - low
    matrix = np.zeros((size, cells + 1), np.float32)
    matrix[np.arange(size), low] = 1 - part
    matrix[np.arange(size), low + 1] += part
    return np.einsum("sg,nghc,th->nstc", matrix, grid, matrix, optimize=True)  # (N, S, S, 3)


def _layout(count: NDArray[np.intp], style: Style, rng: np.random.Generator) -> tuple[Array, Array]:
    """Centres (N, C, 2) and radii (N,) in half image widths; objects never overlap."""
    n, most = len(count), int(count.max())
    radii = rng.uniform(*style.size, n) * np.where(count == 1, 1.0, 0.46)
    # One object in the middle, several in quarters of the image: counting needs them apart.
    cells = np.array([[-0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [0.5, -0.5]])
    order = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)
    centres = np.where((count == 1)[:, None, None], 0.0, cells[order])[:, :most]
    room = np.where(count == 1, 1.0, 0.5) - radii
    centres = centres + rng.uniform(-1, 1, centres.shape) * np.maximum(room, 0)[:, None, None]
    return centres.astype(np.float32), radii.astype(np.float32)


def _object_coordinates(
    centre: Array, radius: Array, angle: NDArray, size: int
) -> tuple[Array, Array]:
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    dx = (axis[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    dy = (-axis[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return cos * dx + sin * dy, cos * dy - sin * dx


def _select(functions: list, which: NDArray[np.intp], x: Array, y: Array) -> Array:
    out = np.empty_like(x)
    for i in np.unique(which):
        rows = which == i
        out[rows] = functions[i](x[rows], y[rows])
    return out


def _paint(
    picture: Array,
    objects: Objects,
    x: Array,
    y: Array,
    radius: Array,
    tones: tuple[Array, Array],
    style: Style,
) -> Array:
    """Draw one object into each image (N, S, S, 3), in two ``tones`` of (N, 3)."""
    main, second = tones
    pixels = (radius * picture.shape[1] / 2)[:, None, None]  # (N, 1, 1), per object unit
    distance = _select(list(FORMS.values()), objects.form, x, y) * pixels  # (N, S, S)
    pattern = _select(list(TEXTURES.values()), objects.texture, x, y)  # (N, S, S)
    # Edges are one pixel soft: hard ones would jump with the pixel grid.
    inside = np.clip(0.5 - distance, 0, 1)
    shade = np.clip(0.5 + pattern * pixels * (_PERIOD / 5), 0, 1)
    if style.outline:
        line = np.clip(1.6 - np.abs(distance), 0, 1)
        solid = (objects.texture == 0)[:, None, None]
        inside = np.maximum(line, inside * np.where(solid, 0.25, (1 - shade) * 0.8))
        colour = main[:, None, None]
    else:
        colour = (
            shade[..., None] * main[:, None, None] + (1 - shade)[..., None] * second[:, None, None]
        )
    return picture + inside[..., None] * (colour - picture)


def _strokes(picture: Array, number: int, width: float, rng: np.random.Generator) -> Array:
    n, size = len(picture), picture.shape[1]
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    for _ in range(number):
        angle = rng.uniform(0, np.pi, n).astype(np.float32)[:, None, None]
        offset = rng.uniform(-1, 1, n).astype(np.float32)[:, None, None]
        colour = rng.uniform(0, 1, (n, 1, 1, 3)).astype(np.float32)
        across = np.cos(angle) * axis[None, None] + np.sin(angle) * axis[None, :, None] - offset
        along = np.sin(angle) * axis[None, None] - np.cos(angle) * axis[None, :, None]
        start = rng.uniform(-1, 0.6, n).astype(np.float32)[:, None, None]
        on = (np.abs(across) < width) & (along > start) & (along < start + 0.6)
        picture = np.where(on[..., None], colour, picture)
    return picture


def _finish(picture: Array, style: Style, rng: np.random.Generator) -> NDArray[np.uint8]:
    n, size = len(picture), picture.shape[1]
    if style.block > 1:
        cells = size // style.block
        # (N, cells, block, cells, block, 3) -> (N, cells, cells, 3)
        blocks = picture.reshape(n, cells, style.block, cells, style.block, 3).mean((2, 4))
        picture = blocks.repeat(style.block, 1).repeat(style.block, 2)
    contrast = rng.uniform(*style.contrast, n).astype(np.float32)[:, None, None, None]
    picture = 0.5 + (picture - 0.5) * contrast
    noise = rng.uniform(*style.noise, n).astype(np.float32)[:, None, None, None]
    picture = picture + noise * rng.standard_normal(picture.shape, dtype=np.float32)
    picture = np.clip(picture, 0, 1)
    if style.levels:
        picture = np.round(picture * (style.levels - 1)) / (style.levels - 1)
    return np.round(picture * 255).astype(np.uint8)
