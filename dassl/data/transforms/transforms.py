"""Image transforms by the names that ``INPUT.TRANSFORMS`` lists."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from dassl.data.transforms.autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from dassl.data.transforms.randaugment import RandAugment, RandAugment2, RandAugmentFixMatch
from dassl.data.transforms.resizing import random_resized_crop_step, resize_step
from dassl.names import check_availability

__all__ = ["AVAILABLE_TRANSFORMS", "AVAI_CHOICES", "INTERPOLATION_MODES", "build_transform"]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

_Factory = Callable[[CfgNode, tuple[int, int], InterpolationMode], Any]


class Random2DTranslation:
    """Enlarge by an eighth and crop at random, with probability ``p``; else only resize.

    Either way the result has ``height`` and ``width``.
    """

    def __init__(
        self,
        height: int,
        width: int,
        p: float = 0.5,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ) -> None:
        self.size = (height, width)
        self.p = p
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """Translate an image."""
        if random.random() > self.p:
            return T.functional.resize(image, list(self.size), self.interpolation)
        enlarged = [round(side * 1.125) for side in self.size]
        image = T.functional.resize(image, enlarged, self.interpolation)
        left = round(random.uniform(0, enlarged[1] - self.size[1]))
        top = round(random.uniform(0, enlarged[0] - self.size[0]))
        return T.functional.crop(image, top, left, *self.size)


class Cutout:
    """Set ``n`` squares, ``length`` pixels wide, at random places to 0."""

    def __init__(self, n: int = 1, length: int = 16) -> None:
        self.n = n
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        """Cut holes into an image (3, height, width)."""
        height, width = image.shape[-2:]
        image = image.clone()
        for _ in range(self.n):
            y, x = random.randrange(height), random.randrange(width)
            # As in Dassl, a square may reach over the border and is then smaller.
            half = self.length // 2
            image[..., max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return image


class GaussianNoise:
    """Add Gaussian noise with probability ``p``."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, image: Tensor) -> Tensor:
        """Add noise to an image (3, height, width)."""
        if random.random() > self.p:
            return image
        return image + torch.randn_like(image) * self.std + self.mean


class InstanceNormalization:
    """Normalise each channel of an image by its own mean and deviation."""

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise an image (3, height, width)."""
        # (3, height, width) -> (3, 1, 1)
        mean = image.mean(dim=(-2, -1), keepdim=True)
        return (image - mean) / (image.std(dim=(-2, -1), keepdim=True) + 1e-8)


# Applied in this order, whatever the order in INPUT.TRANSFORMS, as in Dassl.
_ON_IMAGE: dict[str, _Factory] = {
    "random_translation": lambda cfg, size, mode: Random2DTranslation(*size),  # always bilinear
    "random_crop": lambda cfg, size, mode: T.RandomCrop(size, padding=cfg.CROP_PADDING),
    "random_resized_crop": lambda cfg, size, mode: random_resized_crop_step(
        cfg.FAST_RESIZE, size, tuple(cfg.RRCROP_SCALE), mode
    ),
    "random_flip": lambda cfg, size, mode: T.RandomHorizontalFlip(),
    "imagenet_policy": lambda cfg, size, mode: ImageNetPolicy(),
    "cifar10_policy": lambda cfg, size, mode: CIFAR10Policy(),
    "svhn_policy": lambda cfg, size, mode: SVHNPolicy(),
    "randaugment": lambda cfg, size, mode: RandAugment(cfg.RANDAUGMENT_N, cfg.RANDAUGMENT_M),
    "randaugment_fixmatch": lambda cfg, size, mode: RandAugmentFixMatch(cfg.RANDAUGMENT_N),
    "randaugment2": lambda cfg, size, mode: RandAugment2(cfg.RANDAUGMENT_N),
    "colorjitter": lambda cfg, size, mode: T.ColorJitter(
        brightness=cfg.COLORJITTER_B,
        contrast=cfg.COLORJITTER_C,
        saturation=cfg.COLORJITTER_S,
        hue=cfg.COLORJITTER_H,
    ),
    "randomgrayscale": lambda cfg, size, mode: T.RandomGrayscale(p=cfg.RGS_P),
    "gaussian_blur": lambda cfg, size, mode: T.RandomApply([T.GaussianBlur(cfg.GB_K)], p=cfg.GB_P),
}
_ON_TENSOR: dict[str, _Factory] = {
    "cutout": lambda cfg, size, mode: Cutout(cfg.CUTOUT_N, cfg.CUTOUT_LEN),
    "normalize": lambda cfg, size, mode: T.Normalize(
        cfg.PIXEL_MEAN,
        cfg.PIXEL_STD,
        inplace=True,  # ToTensor has just made the tensor: nobody else uses it
    ),
    "gaussian_noise": lambda cfg, size, mode: GaussianNoise(cfg.GN_MEAN, cfg.GN_STD),
    "instance_norm": lambda cfg, size, mode: InstanceNormalization(),
}
_CROPS = ("random_crop", "random_resized_crop")
_AT_TEST = ("normalize", "instance_norm")

AVAILABLE_TRANSFORMS = [*_ON_IMAGE, *_ON_TENSOR, "center_crop"]
AVAI_CHOICES = AVAILABLE_TRANSFORMS  # Dassl's name


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> T.Compose | None:
    """Build the transform from image to tensor.

    Training: the chosen augmentations; without a random crop the image is first resized to
    INPUT.SIZE, ignoring its shape; center_crop changes nothing, as in Dassl. Test: the shorter side
    is resized to the larger of INPUT.SIZE, then the centre is cropped; of the choices only
    normalisation applies.

    Args:
        cfg: Configuration.
        is_train: Training or test transform.
        choices: Names; by default ``cfg.INPUT.TRANSFORMS``.

    Returns:
        The transform, or None with INPUT.NO_TRANSFORM.

    Raises:
        ValueError: Unknown name or interpolation.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    names = list(cfg.INPUT.TRANSFORMS if choices is None else choices)
    for name in names:
        check_availability(name, AVAILABLE_TRANSFORMS)
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)
    size = tuple(cfg.INPUT.SIZE)
    if len(size) != 2:
        raise ValueError(f"INPUT.SIZE must be (height, width), got {cfg.INPUT.SIZE!r}")
    steps = _train_steps(cfg, size, names) if is_train else _test_steps(cfg, size, names)
    transform = T.Compose(steps)
    if cfg.VERBOSE:
        print(f"Transform for {'training' if is_train else 'testing'}: {transform}")
    return transform


def _train_steps(cfg: CfgNode, size: Any, names: Sequence[str]) -> list[Any]:
    mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    steps: list[Any] = []
    # A random crop resizes by itself.
    if not any(name in names for name in _CROPS):
        steps.append(resize_step(cfg.INPUT.FAST_RESIZE, size, mode))
    steps += [make(cfg.INPUT, size, mode) for name, make in _ON_IMAGE.items() if name in names]
    steps.append(T.ToTensor())
    steps += [make(cfg.INPUT, size, mode) for name, make in _ON_TENSOR.items() if name in names]
    return steps


def _test_steps(cfg: CfgNode, size: Any, names: Sequence[str]) -> list[Any]:
    mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    resize = resize_step(cfg.INPUT.FAST_RESIZE, max(size), mode)
    steps = [resize, T.CenterCrop(size), T.ToTensor()]
    return steps + [_ON_TENSOR[n](cfg.INPUT, size, mode) for n in _AT_TEST if n in names]
