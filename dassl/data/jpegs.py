"""JPEGs that the GPU decodes: INPUT.DECODE cuda.

A worker reads the file and draws what the training transform would draw for the image. The main
process decodes a batch with ``torchvision.io.decode_jpeg``, which is nvJPEG on a GPU, and cuts,
resizes and flips there. Pixels differ a little from Pillow's, in decoding and in resizing. What is
not a plain, upright JPEG is decoded by Pillow in the worker, as without the switch.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from dassl.data.pixels import is_upright
from dassl.data.transforms import batch_steps, crop_and_flip, finish, to_bytes
from dassl.data.wrapper import BAD_IMAGES, BadImageError, DatasetWrapper, collate_good, read_image

__all__ = ["Crop", "DrawnJpeg", "JpegBatch", "JpegDataset", "collate_jpegs", "decode"]

_AT_ONCE = 32  # pictures of a batch that are on the device in their full size
_END = bytes((0xFF, 0xD9))  # of a JPEG that is not cut off
_RGB = tuple(b"RGB")  # names of channels of a JPEG that does not store brightness and hues


class Crop(NamedTuple):
    """What a random resized crop and a flip draw for an image."""

    box: tuple[int, int, int, int]  # top, left, height, width
    flipped: bool


class DrawnJpeg(NamedTuple):
    """A file's bytes, (N,), and what was drawn for its image."""

    data: Tensor
    crop: Crop


class JpegBatch(NamedTuple):
    """Images of a batch, in few tensors: each one is a message to the main process, and a file.

    Attributes:
        data: JPEGs one after the other, (N,) bytes.
        sizes: Bytes of each JPEG.
        crops: What was drawn, for each image of the batch; None where Pillow has done it all.
        decoded: Images of those, (P, 3, S, S) bytes.
    """

    data: Tensor
    sizes: list[int]
    crops: list[Crop | None]
    decoded: Tensor


def decode(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Decode JPEGs, (N,) bytes each, to RGB on a device, (3, H, W) bytes each."""
    # Not above: torchvision has announced that a version to come will be without it.
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(list(files), ImageReadMode.RGB, device)


def _read_jpeg(path: str) -> tuple[Tensor, Image.Image] | None:
    """Bytes of a file, (N,), and its image before decoding; None if the GPU may not decode it."""
    try:
        data = np.fromfile(path, np.uint8)
        image = Image.open(io.BytesIO(data.data))
    except Exception:  # Pillow's decoding of the whole file says what is wrong with it
        return None
    whole = data[-2:].tobytes() == _END
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or not whole:
        return None
    # Not every decoder knows colours that are stored as they are, and nvJPEG does not turn photos.
    channels = tuple(layer[0] for layer in getattr(image, "layer", ()))
    plain = channels != _RGB and image.info.get("adobe_transform") != 0
    return (torch.from_numpy(data), image) if plain and is_upright(image) else None


class JpegDataset(DatasetWrapper):
    """Training images for a loader whose ``collate_fn`` is :func:`collate_jpegs`.

    An item has a `DrawnJpeg` in the image's place, of which only ``finish`` makes the image.
    """

    device: torch.device

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create like a `DatasetWrapper`, with a transform that `check_decoding` lets pass."""
        super().__init__(*args, **kwargs)
        self._crop_and_flip: Any = crop_and_flip(self.transform)
        self._told = False

    def _read(self, path: str) -> Any:
        return _read_jpeg(path) or super()._read(path)

    def _images(self, image: Any) -> dict[str, Any]:
        if isinstance(image, Image.Image):
            return {"img": to_bytes(self.transform, image)}  # (3, S, S)
        data, opened = image
        crop, flip = self._crop_and_flip
        box = crop.get_params(opened, crop.scale, crop.ratio)
        # As torchvision's flip draws, so that a seed gives the same images either way.
        flipped = flip is not None and bool(torch.rand(1) < flip.p)
        return {"img": DrawnJpeg(data, Crop(box, flipped))}

    def finish(self, batch: dict[str, Any]) -> None:
        """Replace a `JpegBatch` by the transform's floats, (B, 3, S, S), on ``device``.

        Raises:
            BadImageError: Neither the device nor Pillow can decode an image.
        """
        jpegs: JpegBatch = batch["img"]
        paths, crops = batch["impath"], jpegs.crops
        if None in crops and not self._told:
            self._told = True
            print(f'* Pillow decodes what is no plain JPEG, as "{paths[crops.index(None)]}"')
        files = jpegs.data.split(jpegs.sizes)
        names = [path for path, crop in zip(paths, crops, strict=True) if crop]
        pictures = self._pictures(files, names)
        ready = iter(jpegs.decoded.to(self.device, non_blocking=True))
        batch["img"] = [self._cut(next(pictures), crop) if crop else next(ready) for crop in crops]
        _leave_out_bad(batch)
        if "img" in batch:
            batch["img"] = finish(torch.stack(batch["img"]), batch_steps(self.transform) or [])

    def _pictures(self, files: Sequence[Tensor], paths: Sequence[str]) -> Iterator[Any]:
        """Yield each JPEG decoded, (3, H, W) bytes, or the error of one that is to be skipped."""
        for start in range(0, len(files), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            try:
                found: list[Any] = decode(files[some], self.device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # of one of them, which is not said
                pairs = zip(files[some], paths[some], strict=True)
                found = [self._alone(data, path) for data, path in pairs]
            yield from found

    def _alone(self, data: Tensor, path: str) -> Any:
        try:
            return decode([data], self.device)[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # damaged, or of a kind that nvJPEG does not know
            try:
                return TF.pil_to_tensor(read_image(path)).to(self.device)
            except BadImageError as error:
                if not self.skip_bad:
                    raise
                return error

    def _cut(self, picture: Any, crop: Crop) -> Any:
        """Crop, resize and flip, (3, H, W) -> (3, S, S), bytes; an error stays what it is."""
        if isinstance(picture, BadImageError):
            return picture
        step, _ = self._crop_and_flip
        mode = step.interpolation
        # As Pillow takes the nearest pixel, by the middles of pixels.
        mode = InterpolationMode.NEAREST_EXACT if mode == InterpolationMode.NEAREST else mode
        image = TF.resized_crop(picture, *crop.box, step.size, mode, antialias=True)
        return TF.hflip(image) if crop.flipped else image


def collate_jpegs(items: Sequence[Any]) -> dict[str, Any]:
    """Collate items of a `JpegDataset`, as `collate_good` does, with a `JpegBatch` under img."""
    images = [item.pop("img") for item in items if isinstance(item, dict)]
    batch = collate_good(items)
    if images:
        files = [image.data for image in images if isinstance(image, DrawnJpeg)]
        decoded = [image for image in images if isinstance(image, Tensor)]
        batch["img"] = JpegBatch(
            torch.cat(files) if files else torch.empty(0, dtype=torch.uint8),  # (N,)
            [len(file) for file in files],
            [image.crop if isinstance(image, DrawnJpeg) else None for image in images],
            torch.stack(decoded) if decoded else torch.empty(0),  # (P, 3, S, S)
        )
    return batch


def _leave_out_bad(batch: dict[str, Any]) -> None:
    """Move images that could not be decoded to where `ImageLoader` looks for their reasons."""
    images, paths = batch["img"], batch["impath"]
    kept = [i for i, image in enumerate(images) if isinstance(image, Tensor)]
    if len(kept) == len(images):
        return
    bad = [(paths[i], str(images[i])) for i in range(len(images)) if i not in kept]
    bad += batch.pop(BAD_IMAGES)
    for key, values in list(batch.items()):
        batch[key] = values[kept] if isinstance(values, Tensor) else [values[i] for i in kept]
    if not kept:
        batch.clear()
    batch[BAD_IMAGES] = bad
