"""AutoAugment's policies (arXiv:1805.09501) under Dassl's names, built on torchvision's.

As in Dassl, areas uncovered by shearing, moving and turning are grey.
"""

from __future__ import annotations

from collections.abc import Sequence

import torchvision.transforms as T

__all__ = ["CIFAR10Policy", "ImageNetPolicy", "SVHNPolicy"]

_GREY = (128, 128, 128)


class _Policy(T.AutoAugment):
    """One of the policies; a subclass says which."""

    which: T.AutoAugmentPolicy

    def __init__(self, fillcolor: Sequence[int] = _GREY) -> None:
        super().__init__(self.which, fill=list(fillcolor))


class ImageNetPolicy(_Policy):
    """The policy found on ImageNet."""

    which = T.AutoAugmentPolicy.IMAGENET


class CIFAR10Policy(_Policy):
    """The policy found on CIFAR-10."""

    which = T.AutoAugmentPolicy.CIFAR10


class SVHNPolicy(_Policy):
    """The policy found on SVHN."""

    which = T.AutoAugmentPolicy.SVHN
