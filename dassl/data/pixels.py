"""Convert any decoded image to upright RGB of eight bits per channel.

Pillow's ``convert("RGB")`` alone leaves photos rotated as the camera was held, and clips deep greys
at 255: 16-bit images turn white, floats in [0, 1] black.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["is_upright", "to_rgb"]

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF tags.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE = 258, 262, 281
_WHITE_IS_ZERO = 0
# These formats tell their depth, and Pillow scales anything above eight bits to sixteen.
_FULL_RANGE_FORMATS = ("PPM", "JPEG2000")
_TWELVE_BITS = 4095


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image and convert it to upright RGB of eight bits per channel.

    An upright RGB image is returned unchanged. Colours are converted as Pillow does, without colour
    profiles; an alpha channel is dropped, as everywhere in the field; of several frames the first
    is taken.

    Raises:
        ValueError: Which value stands for white, and so the brightness, cannot be told.
    """
    image.load()
    turn = _TURNS.get(_orientation(image))
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    else:
        _check_depth(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def is_upright(image: Image.Image) -> bool:
    """Whether an opened image is stored as it is to be seen, so that `to_rgb` does not turn it."""
    return _orientation(image) not in _TURNS


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow's reader applies it itself
    if not image.info.keys() & {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}:
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata of an intact image: nearly every type of error
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    top = _top(image, values)
    if not top or values.max(initial=0) > top:
        raise ValueError(
            f"mode {image.mode} ({image.format}) with values from {values.min():g} to "
            f"{values.max():g}, whose range cannot be judged; save it with 8 bits per channel, or "
            "scaled to 16-bit grey (0 to 65535), or as floats from 0 to 1"
        )
    scaled = np.rint(values.astype(np.float64) * (255 / top))
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:  # applied by Pillow to eight bits only
        scaled = 255 - scaled
    return Image.fromarray(scaled.astype(np.uint8))


def _top(image: Image.Image, values: NDArray[np.generic]) -> float:
    """Return the value that stands for white in a deep grey image; 0 if it cannot be told."""
    highest = values.max(initial=0)
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        return 0
    if image.format in _FULL_RANGE_FORMATS and image.mode != "F":
        return 65535
    told = _told_top(image)
    if told:
        return told
    if image.mode == "F" and highest <= 1:
        return 1
    # Radiance is hardly ever whole; eight bits that were stored in a wider type always are.
    if highest <= 255 and (values == np.rint(values)).all():
        return 255
    sixteen = image.mode.startswith("I;16") or image.format == "PNG"
    # FITS is signed, with an offset that Pillow does not apply. If all values fit into 12 bits, a
    # 12-bit camera is more likely than an image that is nearly black throughout.
    return 65535 if sixteen and image.format != "FITS" and highest > _TWELVE_BITS else 0


def _told_top(image: Image.Image) -> int:
    """Return the largest value of the bit depth by a TIFF's tags; 0 if they do not tell.

    MaxSampleValue tells the depth if it is the largest value of one (2**n - 1). Otherwise it is
    only this image's own maximum, and scaling by it would stretch each image's contrast
    differently.
    """
    top, bits = _tag(image, _MAX_SAMPLE_VALUE, 0), _tag(image, _BITS_PER_SAMPLE, 8)
    if top >= 255 and top & (top + 1) == 0:
        return top
    return 2**bits - 1 if 8 < bits < 16 else 0


def _check_depth(image: Image.Image) -> None:
    """Refuse colours with fewer bits than their container: Pillow keeps the container's top 8."""
    bits, told = _tag(image, _BITS_PER_SAMPLE, 8), _told_top(image)
    if bits > 8 and 0 < told < 2**bits - 1:
        raise ValueError(
            f"{told.bit_length()}-bit colours in {bits} bits per channel (TIFF MaxSampleValue "
            f"{told}) would turn dark; save it with 8 bits per channel"
        )


def _tag(image: Image.Image, number: int, default: int) -> int:
    """Return the first value of a TIFF tag; ``default`` if there is none."""
    value = getattr(image, "tag_v2", {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default
