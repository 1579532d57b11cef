"""What a picture file becomes: upright, eight bits, or refused; ordinary ones as ever."""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from dassl.data import read_image
from dassl.data.wrapper import BadImageError

ORIENTATION = 0x0112
# How a camera stores what is seen upright.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
GREY = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5  # 0 to 235
COLOURS = np.stack([GREY, GREY[:, ::-1], GREY[::-1]], axis=-1)


def grey_of(path: Path) -> np.ndarray:
    """One channel of what is read, which must be grey."""
    pixels = np.asarray(read_image(path))
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "mpo"])
@pytest.mark.parametrize("orientation", STORED)
def test_photos_are_turned_as_they_are_shown(tmp_path: Path, suffix: str, orientation: int) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    picture = Image.fromarray(np.repeat(np.repeat(COLOURS, 8, 0), 8, 1))
    method = STORED[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{suffix}"
    stored = picture if method is None else picture.transpose(method)
    options: dict[str, Any] = {"quality": 100} if suffix in ("jpg", "avif", "mpo") else {}
    stored.save(path, exif=exif, **options, **({"lossless": True} if suffix == "webp" else {}))
    read = read_image(path)
    assert (read.mode, read.size) == ("RGB", picture.size)
    assert np.abs(np.asarray(read).astype(int) - np.asarray(picture)).mean() < 8


def test_an_orientation_in_xmp_alone_counts(tmp_path: Path) -> None:
    stored = Image.fromarray(COLOURS).transpose(STORED[6])
    path = tmp_path / "photo.webp"
    stored.save(path, lossless=True, xmp=b'<x tiff:Orientation="6"/>')
    assert np.array_equal(np.asarray(read_image(path)), COLOURS)


def test_damaged_or_missing_orientation_leaves_the_picture(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOURS)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "photo.jpg"
    picture.save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"Exif\0\0") + 6
    path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
    assert read_image(path).size == (8, 6)
    for value in (0, 9, 60000):
        exif[ORIENTATION] = value
        picture.save(path, exif=exif)
        assert read_image(path).size == (8, 6)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big.tif", "lzw.tif", "a.pgm", "a.jp2"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = GREY.astype(">u2" if name == "big.tif" else "<u2") * 257
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    Image.fromarray(values).save(tmp_path / name, **options)
    assert np.array_equal(grey_of(tmp_path / name), GREY)


def test_sixteen_bits_are_rounded(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 129, 386, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert grey_of(tmp_path / "a.png").tolist() == [[0, 0, 1, 2, 255]]


def test_white_may_be_zero(tmp_path: Path) -> None:
    values = GREY.astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.array_equal(grey_of(tmp_path / "a.tif"), 255 - GREY)


@pytest.mark.parametrize(("top", "bits"), [(1023, 10), (4095, 12), (16383, 14)])
def test_a_tiff_may_tell_how_many_bits_are_used(tmp_path: Path, top: int, bits: int) -> None:
    values = np.rint(GREY * (top / 255)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={281: top})
    assert np.abs(grey_of(tmp_path / "a.tif").astype(int) - GREY).max() <= 1, f"{bits} bits"


def test_a_maximum_of_one_picture_stretches_nothing(tmp_path: Path) -> None:
    """MaxSampleValue is statistics where it is not the largest value of some depth."""
    values = GREY.astype(np.uint16) * 257
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={281: int(values.max())})
    assert np.array_equal(grey_of(tmp_path / "a.tif"), GREY)


def test_twelve_bits_of_a_tiff_of_twelve(tmp_path: Path) -> None:
    """Packed, as Pillow reads but does not write it: two pixels in three bytes."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    path = tmp_path / "a.tif"
    path.write_bytes(header.ljust(122, b"\0") + bytes([0xFF, 0xF8, 0x08]))
    assert grey_of(path).tolist() == [[255, 128]]


@pytest.mark.parametrize("name", ["a.tif", "a.pfm"])
def test_floats_from_0_to_1_are_scaled(tmp_path: Path, name: str) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / name)
    assert np.array_equal(grey_of(tmp_path / name), GREY)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_eight_bits_in_a_wider_type_are_left(tmp_path: Path, kind: type) -> None:
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "a.tif")
    assert np.array_equal(grey_of(tmp_path / "a.tif"), GREY)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (GREY.astype(np.float32) / 100, "mode F (TIFF) with values from 0 to 2.35"),
        (GREY.astype(np.float32) - 1, "values from -1 to 234"),
        (np.where(GREY == 5, np.nan, GREY / 255).astype(np.float32), "values from nan to nan"),
        (np.where(GREY == 5, np.inf, GREY / 255).astype(np.float32), "to inf"),
        (GREY.astype(np.float32) * 257, "to 60395"),
        (GREY.astype(np.int32) * 257, "mode I (TIFF) with values from 0 to 60395"),
        (GREY.astype(np.int32) - 1, "values from -1 to 234"),
        (GREY.astype(np.uint16) * 17, "values from 0 to 3995"),  # 12 bits, or nearly black?
    ],
)
def test_values_of_no_known_range_are_refused(tmp_path: Path, values: Any, said: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(BadImageError, match=re.escape(said)) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "save it with 8 bits per channel" in str(error.value)


@pytest.mark.parametrize("told", [4095, 65535])
def test_colours_of_fewer_bits_than_their_container_are_refused(tmp_path: Path, told: int) -> None:
    """Pillow keeps the upper 8 of 16 bits: of 12-bit colours 4 would be left."""
    # Three values of two bytes each do not fit into an entry: those of 258 and 281 lie behind.
    tags = [(256, 1, 1), (257, 1, 1), (258, 3, 140), (259, 1, 1), (262, 1, 2), (273, 1, 160),
            (277, 1, 3), (278, 1, 1), (279, 1, 6), (281, 3, 146)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 3, count, value) for tag, count, value in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    behind = struct.pack("<6H", 16, 16, 16, told, told, told)
    path = tmp_path / "a.tif"
    pixels = struct.pack("<3H", 4095, 2048, 0)
    path.write_bytes((header.ljust(140, b"\0") + behind).ljust(160, b"\0") + pixels)
    if told == 65535:
        assert read_image(path).getpixel((0, 0)) == (15, 8, 0)
        return
    with pytest.raises(BadImageError, match="12-bit colours in 16 bits per channel"):
        read_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "bmp", "webp"])
def test_ordinary_pictures_read_as_ever(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    try:
        Image.fromarray(COLOURS).convert(mode).save(path)
    except (OSError, ValueError):
        pytest.skip(f"no {mode} in {suffix}")
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_alpha_is_dropped_as_everywhere_in_the_field(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(COLOURS).convert("P" if mode == "PA" else mode[:-1])
    expected = np.asarray(picture.convert("RGB"))
    picture = picture.convert(mode)
    picture.putalpha(Image.fromarray(GREY))
    picture.save(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tif")), expected)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp"])
def test_the_first_of_several_frames_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert read_image(tmp_path / f"a.{suffix}").getpixel((0, 0)) == (255, 0, 0)


def test_an_ordinary_jpeg_is_decoded_once_and_not_copied(tmp_path: Path, monkeypatch) -> None:
    """The hot path: no conversion, no transposition, no look at metadata that is not there."""
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg")
    for name in ("convert", "transpose", "getexif", "copy"):
        monkeypatch.setattr(Image.Image, name, lambda *args: pytest.fail("not needed"))
    assert read_image(tmp_path / "a.jpg").format == "JPEG"


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError, match=r"a\.png.*900 pixels.*exceeds limit"):
        read_image(tmp_path / "a.png")
