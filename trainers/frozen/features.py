"""Features of whole splits, for what is fitted at once: from the feature cache, or from pictures.

Notation: V views, N images, D embedding width.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip

from clip.text import at_least_single
from dassl.data.data_manager import build_data_loader
from dassl.data.features.cache import FeatureCache
from trainers.base.features import FeatureLoader, FrozenEncoder
from trainers.base.given_features import GivenFeatureLoader


class SplitFeatures:
    """Features of a trainer's splits, as the encoder gives them, on the trainer's device.

    They are those of the feature cache, to the last bit: without one (``--feature-cache``) they are
    made in the same way, in a temporary folder that goes with this object.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._loaders: dict[str, FeatureLoader] = {}

    def views(self, count: int) -> tuple[Tensor, Tensor]:
        """Training images in so many augmentations: features (V, N, D), labels (N,).

        View v is what the plain loop shows in epoch v. A dataset of features may have fewer.
        """
        loader = self._loader("train", self.trainer.train_loader_x)
        if isinstance(loader, GivenFeatureLoader):
            # Repeated, each row would count several times.
            count = min(count, loader.views)
        found = [self._rows(loader, view) for view in range(count)]
        return torch.stack([features for features, _ in found]), found[0][1]

    def of_split(self, split: str) -> tuple[Tensor, Tensor]:
        """Images of val or test: features (N, D), labels (N,)."""
        plain = {"val": self.trainer.val_loader, "test": self.trainer.test_loader}[split]
        return self._rows(self._loader(split, plain), 0)

    def unaugmented(self, mirrored: bool = False) -> tuple[Tensor, Tensor]:
        """Training images as test images are seen: features (N, D), labels (N,).

        Of a dataset of features it is the first view, which nobody can mirror.
        """
        given = self.trainer.train_loader_x
        if isinstance(given, GivenFeatureLoader):
            return self._rows(given, 0)
        name = "mirrored" if mirrored else "unaugmented"
        if name not in self._loaders:
            cfg, dm = self.trainer.cfg, self.trainer.dm
            flip = [RandomHorizontalFlip(p=1.0)] if mirrored else []
            plain = build_data_loader(
                cfg,
                data_source=dm.dataset.train_x,
                batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
                tfm=Compose([*flip, dm.tfm_test]),
                is_train=False,
            )
            # Kept under the name of the split whose transform it is, which has no views.
            self._loaders[name] = self._from_pictures(plain, "test")
        return self._rows(self._loaders[name], 0)

    def _loader(self, split: str, loader: Any) -> FeatureLoader:
        if isinstance(loader, FeatureLoader):
            return loader
        if split not in self._loaders:
            self._loaders[split] = self._from_pictures(loader, split)
        return self._loaders[split]

    def _from_pictures(self, plain: Any, split: str) -> FeatureLoader:
        cfg = self.trainer.cfg.FEATURE_CACHE
        directory = cfg.DIR
        if not cfg.ENABLED:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="features-")
            directory = self._folder.name
        encoder = FrozenEncoder(self.trainer, FeatureCache(directory))
        # As many views as epochs: views that take turns are the feature cache's matter.
        views = max(1, self.trainer.max_epoch)
        return FeatureLoader(encoder, plain, split, views, self.trainer.device)

    def _rows(self, loader: FeatureLoader, view: int) -> tuple[Tensor, Tensor]:
        """Features and labels of one view, without the images that cannot be read."""
        features, missing = loader.features(view)
        label = torch.tensor([item.label for item in loader.dataset.data_source])
        kept = [row for row in range(len(label)) if row not in missing]
        device = self.trainer.device
        return at_least_single(features[kept]).to(device), label[kept].to(device)
