"""The views of a test image: the image as every method sees it, and random crops of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor

from dassl.data.samplers.epochs import mix_seed
from dassl.data.transforms import random_resized_crop_step
from dassl.data.wrapper import preserved_randomness, seed_randomness


class Views:
    """An image -> (V, 3, H, W) bytes: the test transform's crop, then V - 1 augmented views.

    Random crops of a share ``scale`` of the area, flipped half the time (TPT, arXiv:2209.07511, for
    ImageNet and its shifts). Bytes are a quarter of what a worker process would hand over as
    floats; :func:`finish` makes of them what the test transform would have made.

    They are drawn from the run's seed and the image's own pixels, so that they do not depend on
    its place among others, the number of workers or where the file lies.

    Args:
        clean: The part of the test transform that works on images, see :func:`split_transform`.
        size: Height and width.
        number: V.
        scale: Least and largest share of the area.
        seed: The run's.
        fast: Resize by PyTorch's kernels, see :mod:`dassl.data.transforms.resizing`.
    """

    def __init__(
        self,
        clean: Any,
        size: Sequence[int],
        number: int,
        scale: Sequence[float],
        seed: int,
        fast: bool = False,
    ) -> None:
        self.clean, self.number, self.seed = clean, number, seed
        # TPT's are bilinear, whatever the backbone's own transform is.
        mode = InterpolationMode.BILINEAR
        crop = random_resized_crop_step(fast, tuple(size), tuple(scale), mode)
        self.augment = T.Compose([crop, T.RandomHorizontalFlip()])

    def __call__(self, image: Image.Image) -> Tensor:
        """The views, (V, 3, H, W), uint8."""
        # Pixels alone do not tell a wide image from a high one of the same bytes.
        identity = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        with preserved_randomness():  # so that the loader's own draws stay as without views
            seed_randomness(mix_seed(self.seed, "views", identity))
            images = [self.clean(image), *(self.augment(image) for _ in range(self.number - 1))]
        return torch.stack([pil_to_tensor(image) for image in images])

    def __repr__(self) -> str:
        """Show what is drawn."""
        return f"Views(number={self.number}, clean={self.clean}, augment={self.augment})"


def split_transform(transform: Any) -> tuple[T.Compose, list[Any]]:
    """The test transform's steps before and after it turns the image into a tensor.

    Args:
        transform: A composition with one ``ToTensor``, as ``build_transform`` makes it.

    Raises:
        ValueError: There is no transform, or no ``ToTensor`` in it.
    """
    steps = list(getattr(transform, "transforms", []))
    while len(steps) == 2 and isinstance(steps[1], T.Compose):  # a border is cut off first
        steps = [steps[0], *steps[1].transforms]
    places = [i for i, step in enumerate(steps) if isinstance(step, T.ToTensor)]
    if len(places) != 1:
        raise ValueError(
            "Views of test images are made from the test transform up to its ToTensor, which "
            f"{transform!r} does not have; set INPUT.NO_TRANSFORM to False"
        )
    return T.Compose(steps[: places[0]]), steps[places[0] + 1 :]


def finish(views: Tensor, steps: Sequence[Any]) -> Tensor:
    """What ``ToTensor`` and the steps after it make of bytes, (B, 3, H, W) -> the same, floats."""
    images = views.float().div(255)
    for step in steps:
        images = step(images)
    return images
