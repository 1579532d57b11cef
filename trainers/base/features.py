"""Image features of a frozen encoder: computed once, kept on disk, served as batches.

A view is one augmentation of every training image. Epoch e shows view e % VIEWS, and view v holds
what the plain loop would show in epoch v: with VIEWS >= MAX_EPOCH both train on the same images.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.config import to_plain
from dassl.data.features.cache import FeatureCache, FeatureWriter
from dassl.data.features.key import described, hash_files, hash_tensors
from dassl.data.wrapper import ImageLoader
from dassl.errors import TEST_MEMORY, less_memory
from dassl.utils.tools import package_versions

_PINNED_FROM = 64 * 1024  # bytes; less is copied to the GPU without waiting in any case


def check_features(cfg: CfgNode, method: str, frozen: bool) -> None:
    """Refuse a feature cache for a method that changes features, or views that it cannot give."""
    if not frozen:
        raise ValueError(
            f"FEATURE_CACHE.ENABLED (--feature-cache) is True, but {method} changes what the image "
            "encoder computes: its features differ after every step and cannot be kept. Set it to "
            "False, or FEATURE_CACHE.REQUIRED to False; methods with frozen features, such as "
            "ZeroshotCLIP, can use it"
        )
    if cfg.FEATURE_CACHE.VIEWS < 1:
        raise ValueError(f"FEATURE_CACHE.VIEWS must be at least 1, got {cfg.FEATURE_CACHE.VIEWS}")
    loading = cfg.DATALOADER
    if loading.K_TRANSFORMS != 1 or loading.RETURN_IMG0 or cfg.INPUT.NO_TRANSFORM:
        raise ValueError(
            "FEATURE_CACHE.ENABLED needs one tensor per image: set DATALOADER.K_TRANSFORMS 1 (got "
            f"{loading.K_TRANSFORMS}), DATALOADER.RETURN_IMG0 False (got {loading.RETURN_IMG0}) "
            f"and INPUT.NO_TRANSFORM False (got {cfg.INPUT.NO_TRANSFORM})"
        )


def use_features(trainer: Any) -> None:
    """Let a trainer's loaders give features instead of images; nothing is computed yet."""
    cache = trainer.cfg.FEATURE_CACHE
    encoder = FrozenEncoder(trainer, FeatureCache(cache.DIR))
    for name, split, views in (
        ("train_loader_x", "train", cache.VIEWS),
        ("val_loader", "val", 1),
        ("test_loader", "test", 1),
    ):
        loader = getattr(trainer, name)
        if loader is not None:
            features = FeatureLoader(encoder, loader, split, views, trainer.device)
            # In both places, since trainers written for Dassl read either.
            setattr(trainer, name, features)
            setattr(trainer.dm, name, features)


class FrozenEncoder:
    """A trainer's image encoder with a cache of what it computed."""

    def __init__(self, trainer: Any, cache: FeatureCache) -> None:
        self.trainer = trainer
        self.cache = cache
        self._hashed: tuple[list[tuple[int, int]], str] = ([], "")

    @property
    def tower(self) -> nn.Module:
        """The image side of the pre-trained model."""
        model = self.trainer.model.backbone.model
        return getattr(model, "visual", model)

    def weights(self) -> str:
        """Hash of the image encoder; computed again only if something was loaded into it."""
        tower = self.tower
        tensors = dict(sorted([*tower.named_parameters(), *tower.named_buffers()]))
        # PyTorch counts the in-place writes to a tensor; loading a state dict is one.
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors.values()]
        if state != self._hashed[0]:
            self._hashed = state, hash_tensors(tensors, described(tower))
        return self._hashed[1]

    def identity(self) -> dict[str, Any]:
        """Everything but the images that features depend on, as plain data."""
        trainer = self.trainer
        device = trainer.device.type
        autocast = None
        if trainer.precision in ("amp", "bf16"):  # not asked else: MPS may not know autocast
            with trainer.autocast():
                autocast = str(torch.get_autocast_dtype(device))
        versions = package_versions()
        return {
            "backbone": trainer.cfg.MODEL.BACKBONE.NAME,
            "weights": self.weights(),
            "precision": trainer.precision,
            "autocast": autocast,
            "device": device,
            "versions": {name: versions[name] for name in ("torch", "torchvision", "open_clip")}
            | {"pillow": PIL.__version__},
        }

    @less_memory(TEST_MEMORY)
    @torch.no_grad()
    def encode(self, loader: ImageLoader, title: str, writer: FeatureWriter) -> None:
        """Encode all of a loader's images; the writer gets features (N, D), not normalised."""
        trainer = self.trainer
        # Of the tower alone: a method's own modules may be in training mode meanwhile.
        with _evaluating(self.tower):
            for batch in tqdm(loader, desc=title, file=sys.stderr, disable=None):
                image = batch["img"].to(trainer.device, non_blocking=True)
                with trainer.autocast():
                    features = trainer.model.backbone.encode_image(image)  # (B, D)
                if features.dtype == torch.bfloat16:
                    features = features.float()  # exact; NumPy has no bfloat16
                writer.add(batch["index"].tolist(), features.cpu().numpy())


class FeatureLoader:
    """Gives a loader's batches, in its order, with features (B, D) in place of the images.

    Features are computed when they are first needed. ``views`` is the number of augmentations of
    each image, which take turns by epoch; ``device`` is where the batches will be needed.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        loader: Any,
        split: str,
        views: int,
        device: torch.device,
    ) -> None:
        self.encoder = encoder
        self.loader = loader
        self.dataset = loader.dataset
        self.batch_sampler = loader.batch_sampler
        self.split = split
        self.views = views
        self.device = device
        self.bad_images: dict[str, str] = {}  # reason by path, of every image skipped so far
        self._epoch = 0
        self._images = ""
        self._served: dict[tuple[int, str], tuple[Tensor, set[int]]] = {}
        self._tables: dict[tuple[int, str], list[Tensor]] = {}  # see `_on_device`
        items = self.dataset.data_source
        self._label = torch.tensor([item.label for item in items])
        self._domain = torch.tensor([item.domain for item in items])
        self._paths = [item.impath for item in items]

    @property
    def sampler(self) -> FeatureLoader:
        """This loader: the engine calls ``sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the view of an epoch, from 0."""
        self._epoch = epoch
        self.loader.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches: ``img`` (B, D), not normalised; ``label, domain, impath, index``.

        As in the plain loop, images that cannot be read are left out, and batches without any.
        """
        view = self._epoch % self.views
        features, missing = self.features(view)
        tables = self._on_device(view, features)
        pin = self.loader.pin_memory and torch.cuda.is_available() and tables[0] is features
        for batch in self.batch_sampler:
            rows = [row for row in batch if row not in missing] if missing else batch
            if not rows:
                continue
            index = torch.from_numpy(np.array(rows, dtype=np.int64))
            place = index.to(tables[0].device, non_blocking=True)
            image, label, domain = (table.index_select(0, place) for table in tables)  # (B, D), ...
            if pin and image.nbytes >= _PINNED_FROM:
                image = image.pin_memory()
            yield {
                "img": image,
                "label": label,
                "domain": domain,
                "impath": [self._paths[row] for row in rows],
                "index": index,
            }

    def _on_device(self, view: int, features: Tensor) -> list[Tensor]:
        """Features of a view (N, D), labels and domains (N,), on the trainer's device if they fit.

        Then a batch is three look-ups there, and nothing is copied to it but the batch's rows.
        """
        device, key = self.device, self._state(view)
        whole = [features, self._label, self._domain]
        if key not in self._tables:
            if features.nbytes > room_for_features(device):
                return whole
            if not self._tables:
                size = features.nbytes / 2**20
                print(f"Features of {self.split} images, {size:.1f} MiB a view, stay on {device}")
            self._tables[key] = [table.to(device) for table in whole]
        return self._tables[key]

    def _state(self, view: int) -> tuple[int, str]:
        """Return what the features of a view depend on in this process."""
        # On the weights too: `load_model` may replace them between two evaluations.
        return view, self.encoder.weights()

    def features(self, view: int) -> tuple[Tensor, set[int]]:
        """Features of all images (N, D) in one view, and the rows that have none."""
        served = self._state(view)
        if served not in self._served:
            self._note_views()
            batches = self.draw(view)

            def make(writer: FeatureWriter) -> None:
                self._extract(batches, writer)

            key = self._key(view, batches)
            entry, features = self.encoder.cache.fetch(key, len(self.dataset), make)
            for row, reason in entry.missing.items():
                if self._paths[row] not in self.bad_images:
                    print(f"Skipping an image: {reason}")
                    self.bad_images[self._paths[row]] = reason
            self._served[served] = features, set(entry.missing)
        return self._served[served]

    def draw(self, view: int) -> list[list[int]]:
        """Return the batches to encode for a view: that epoch's pass, then the images it lacks.

        A pass may lack some: group samplers leave images out, and other epochs may show them.
        """
        sampler = copy.copy(whole_sampler(self.loader))
        sampler.set_epoch(view)
        order = list(sampler)
        order += sorted(set(range(len(self.dataset))).difference(order))
        size = self.encoder.trainer.cfg.DATALOADER.TEST.BATCH_SIZE
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _extract(self, batches: Sequence[Sequence[int]], writer: FeatureWriter) -> None:
        loader = loader_like(self.loader, batches)
        loader.bad_images = self.bad_images
        name = self.encoder.trainer.cfg.DATASET.NAME
        self.encoder.encode(loader, f"Features of {name} ({self.split})", writer)
        for row in writer.unwritten():
            # A row missing for any other reason is an error, which `finish` raises.
            if self._paths[row] in self.bad_images:
                writer.missing[row] = self.bad_images[self._paths[row]]

    def _key(self, view: int, batches: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return all that the features depend on.

        Order and size of the batches are part of it: the batch that an image is encoded in may
        change the last bits of its features.
        """
        cfg, sampler = self.encoder.trainer.cfg, whole_sampler(self.loader)
        # Once per loader: asking the file system for a million images takes a while.
        self._images = self._images or hash_files(
            self._paths, cfg.DATASET.ROOT, cfg.DATASET.HASH_IMAGES
        )
        key = {
            "dataset": cfg.DATASET.NAME,
            "split": self.split,
            **self.encoder.identity(),
            "transform": described(self.dataset.transform),
            "input": to_plain(cfg.INPUT),
            "images": len(self.dataset),
            "files": self._images,
            "batch_size": cfg.DATALOADER.TEST.BATCH_SIZE,
        }
        order: list[Any] = [int(index) for batch in batches for index in batch]
        if self.split == "train":
            order = [(int(i), getattr(i, "seed", None)) for batch in batches for i in batch]
            key |= {"view": view, "seed": sampler.seed, "sampler": type(sampler).__name__}
        return {**key, "order": hashlib.sha256(repr(order).encode()).hexdigest()}

    def _note_views(self) -> None:
        trainer = self.encoder.trainer
        if self.split == "train" and self.views < trainer.max_epoch:
            trainer.notes.add(
                f"feature cache: {self.views} augmentations of each training image take turns in "
                f"{trainer.max_epoch} epochs (FEATURE_CACHE.VIEWS)"
            )


def room_for_features(device: torch.device) -> int:
    """Bytes of a GPU's free memory that features may take; 0 on a CPU, which has them already."""
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0


def loader_like(plain: Any, batches: Sequence[Sequence[int]]) -> ImageLoader:
    """Load batches of images, by index, in the way that another loader loads its own."""
    return ImageLoader(
        plain.dataset,
        batch_sampler=batches,
        num_workers=plain.num_workers,
        collate_fn=plain.collate_fn,
        pin_memory=plain.pin_memory,
        generator=torch.Generator(),  # else it would draw from the global one
    )


def whole_sampler(loader: Any) -> Any:
    """A loader's sampler; if it is this process's share of one, the common one."""
    return getattr(loader.sampler, "whole", loader.sampler)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a block; then every submodule is as it was."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
