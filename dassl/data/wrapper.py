"""From `Datum` to tensors: reading images, seeded transforms, batches without bad images."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info
from yacs.config import CfgNode

from dassl.data.datasets.base_dataset import Datum
from dassl.data.image_cache import ImageCache
from dassl.data.pixels import to_rgb
from dassl.data.transforms import (
    INTERPOLATION_MODES,
    batch_steps,
    finish,
    resize_step,
    takes_pixels,
    to_bytes,
    to_floats,
)
from dassl.names import check_availability

__all__ = [
    "BadImageError",
    "DatasetWrapper",
    "ImageLoader",
    "collate_good",
    "read_image",
    "preserved_randomness",
    "seed_randomness",
]

BAD_IMAGES = "_bad_images"  # key of a batch: paths and reasons of images that are left out


class BadImageError(OSError):
    """An image file that exists but cannot be decoded."""


class _BadItem:
    """Stands for an item whose image cannot be read (INPUT.ON_BAD_IMAGE skip)."""

    def __init__(self, impath: str, reason: str) -> None:
        self.impath = impath
        self.reason = reason


def read_image(path: str | os.PathLike[str], least: int = 0) -> Image.Image:
    """Read an image as RGB, upright and with 8 bits per channel, see ``pixels.to_rgb``.

    Args:
        path: Of the file.
        least: Unless 0, a JPEG is decoded at a half, quarter or eighth of its size where both sides
            keep at least so many pixels (INPUT.FAST_DECODE).

    Raises:
        FileNotFoundError: No such file.
        BadImageError: Cut off, damaged, not an image, or with values whose range cannot be judged.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'No image at "{path}" (is --root, DATASET.ROOT, right?)')
    try:
        with Image.open(path) as image:
            if least:
                image.draft(None, (least, least))  # does nothing to other formats
            return to_rgb(image)
    except Exception as error:  # decoders raise nearly every type on damaged data
        raise BadImageError(f'Cannot decode the image "{path}": {error}') from error


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Restore Python's, NumPy's and PyTorch's CPU generators after a block."""
    if get_worker_info() is not None:
        yield  # in a worker process nothing else draws from them
        return
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])


def seed_randomness(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's CPU generators with a number in [0, 2**32)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU too


class DatasetWrapper(Dataset[Any]):
    """Turns `Datum` items into dicts with ``img, label, domain, impath, index``.

    Attributes:
        cache: Keeps decoded images; None decodes an image whenever it is asked for.
        device: GPU on which an `ImageLoader` makes floats of the bytes that its workers hand over;
            None lets the workers make them.
        as_bytes: Give bytes where the floats can be made later, see `transforms.batch_steps`.
    """

    cache: ImageCache | None = None
    device: torch.device | None = None
    as_bytes = False

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Any = None,
        is_train: bool = False,
    ) -> None:
        """Store images and transform.

        Args:
            cfg: Configuration.
            data_source: Images.
            transform: From PIL image to tensor, or a list of such, whose results are named ``img,
                img2, img3``...; None gives the PIL image.
            is_train: Apply DATALOADER.K_TRANSFORMS.

        Raises:
            ValueError: K_TRANSFORMS without a transform, or an unknown ON_BAD_IMAGE.
        """
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        check_availability(cfg.INPUT.ON_BAD_IMAGE, ["error", "skip"])
        self.skip_bad = cfg.INPUT.ON_BAD_IMAGE == "skip"
        self.least = max(cfg.INPUT.SIZE) if cfg.INPUT.FAST_DECODE else 0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to repeat "
                "(INPUT.NO_TRANSFORM)"
            )
        # Built even without RETURN_IMG0, since subclasses written for Dassl apply it themselves.
        self.to_tensor = self._plain_transform()

    def _plain_transform(self) -> T.Compose:
        """Return the transform of img0: no augmentation, normalised if training images are."""
        cfg = self.cfg.INPUT
        mode = INTERPOLATION_MODES[cfg.INTERPOLATION]
        steps: list[Any] = [resize_step(cfg.FAST_RESIZE, tuple(cfg.SIZE), mode), T.ToTensor()]
        if "normalize" in cfg.TRANSFORMS:
            steps.append(T.Normalize(mean=cfg.PIXEL_MEAN, std=cfg.PIXEL_STD))
        return T.Compose(steps)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data_source)

    def __getitem__(self, idx: int) -> Any:
        """Read and transform one image; a `SeededIndex` fixes the outcome of random transforms.

        Raises:
            FileNotFoundError: The file is missing.
            BadImageError: The file cannot be decoded.
        """
        if getattr(idx, "seed", None) is None:
            return self._item(idx)
        with preserved_randomness():
            return self._item(idx)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read and transform a batch, saving and restoring the generators only once."""
        # A subclass that overrides `__getitem__` alone must be asked for every item.
        overridden = type(self).__getitem__ is not DatasetWrapper.__getitem__
        if overridden or not all(hasattr(idx, "seed") for idx in indices):
            return [self[idx] for idx in indices]
        with preserved_randomness():
            return [self._item(idx) for idx in indices]

    def _item(self, idx: int) -> Any:
        item = self.data_source[idx]
        try:
            image = self._read(item.impath)
        except OSError as error:  # FileNotFoundError or BadImageError
            if not self.skip_bad:
                raise
            return _BadItem(item.impath, str(error))
        output: dict[str, Any] = {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": int(idx),
        }
        seed = getattr(idx, "seed", None)
        if seed is not None:
            seed_randomness(seed)
        output.update(self._images(image))
        return output

    def _read(self, path: str) -> Image.Image | Tensor:
        """An image; its bytes, (3, H, W), where the transform works on those as well."""
        # A subclass may work on the image itself.
        if type(self) is DatasetWrapper and takes_pixels(self.transform) and not self.return_img0:
            # Kept bytes are not copied: most of them may be cut off.
            pixels = None if self.cache is None else self.cache.pixels(path)
            pixels = np.array(self._decoded(path)) if pixels is None else pixels
            return torch.from_numpy(pixels).permute(2, 0, 1)
        kept = None if self.cache is None else self.cache.get(path)
        return self._decoded(path) if kept is None else kept

    def _decoded(self, path: str) -> Image.Image:
        image = read_image(path, self.least)
        if self.cache is not None:
            self.cache.put(path, image)
        return image

    def _transforms(self) -> Iterator[tuple[str, Any]]:
        """Yield each transform after the key of its result."""
        several = isinstance(self.transform, list | tuple)
        for number, transform in enumerate(self.transform if several else [self.transform], 1):
            yield "img" if number == 1 else f"img{number}", transform

    def _images(self, image: Any) -> dict[str, Any]:
        output: dict[str, Any] = {}
        for key, transform in self._transforms():
            output[key] = image if transform is None else self._transform_image(transform, image)
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _transform_image(self, transform: Any, image: Any) -> Any:
        if self.as_bytes and batch_steps(transform) is not None:
            transform = partial(to_bytes, transform)
        elif isinstance(image, Tensor):
            transform = partial(to_floats, transform)
        results = [transform(image) for _ in range(self.k_tfm)]
        return results[0] if len(results) == 1 else results

    def finish(self, batch: dict[str, Any]) -> None:
        """Replace a batch's bytes, (B, 3, H, W), by the transforms' floats, on ``device``."""
        for key, transform in self._transforms():
            steps = batch_steps(transform)
            if steps is not None:  # else they are none that `as_bytes` has asked for
                views = batch[key] if isinstance(batch[key], list) else [batch[key]]
                done = [self._finished(images, steps) for images in views]
                batch[key] = done if isinstance(batch[key], list) else done[0]

    def _finished(self, images: Tensor, steps: Sequence[Any]) -> Tensor:
        if images.dtype != torch.uint8:  # floats already: of the main process, or of odd modes
            return images
        return finish(images.to(self.device, non_blocking=True), steps)


def collate_good(items: Sequence[Any]) -> dict[str, Any]:
    """Collate the items whose image could be read.

    Paths and reasons of the others are under a private key of the batch, which `ImageLoader`
    removes; it is the only key if no image could be read.
    """
    good = [item for item in items if not isinstance(item, _BadItem)]
    batch = default_collate(good) if good else {}
    batch[BAD_IMAGES] = [(item.impath, item.reason) for item in items if isinstance(item, _BadItem)]
    return batch


class ImageLoader(DataLoader[Any]):
    """A DataLoader that reports skipped images and never yields an empty batch.

    Where its dataset has a ``device``, worker processes hand over bytes, and the batches that it
    yields have the images as floats on that device.

    Attributes:
        bad_images: Reason by path, of every image skipped so far.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create like a DataLoader."""
        self.bad_images: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def __iter__(self) -> Any:
        """Yield batches of good images."""
        dataset: Any = self.dataset
        on_device = getattr(dataset, "device", None) is not None
        for batch in self._started(as_bytes=on_device):
            if isinstance(batch, dict):
                if on_device and "img" in batch:
                    dataset.finish(batch)  # first, since it may find more that cannot be read
                for path, reason in batch.pop(BAD_IMAGES, ()):
                    if path not in self.bad_images:
                        print(f"Skipping an image: {reason}")
                    self.bad_images[path] = reason
            if batch:
                yield batch
        cache = getattr(dataset, "cache", None)
        if cache is not None:
            cache.report()

    def _started(self, as_bytes: bool) -> Iterator[Any]:
        """Start a pass; workers that start with it have a dataset that gives bytes, if wanted.

        This process's dataset goes on to give floats: others may read it without such a loader.
        """
        dataset: Any = self.dataset
        if not as_bytes:
            return super().__iter__()
        dataset.as_bytes = True
        try:
            return super().__iter__()
        finally:
            dataset.as_bytes = False
