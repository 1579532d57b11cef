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
    floats; ``finish`` of :mod:`dassl.data.transforms.halves` makes of them what the test transform
    would have made.

    They are drawn from the run's seed and the image's own pixels, so that they do not depend on
    its place among others, the number of workers or where the file lies.

    Args:
        clean: The part of the test transform that works on images, see ``split_transform`` there.
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
