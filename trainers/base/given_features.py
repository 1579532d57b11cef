"""Methods on data that arrives as features: their loaders, and a stand-in for the backbone.

``DATASET.NAME Features`` gives image features; where ``DATASET.FEATURES.TEXT`` gives those of the
classes' texts as well, no weights are loaded at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

import clip
from dassl.engine import TRAINER_REGISTRY
from trainers.base.features import FeatureLoader
from trainers.base.prompt_texts import PromptTexts


def gives_features(cfg: CfgNode) -> bool:
    """Whether the dataset gives image features instead of images."""
    return cfg.DATASET.NAME == "Features"


def gives_texts(cfg: CfgNode) -> bool:
    """Whether it gives the classes' text features too, so that there is no backbone."""
    return gives_features(cfg) and bool(cfg.DATASET.FEATURES.TEXT)


def check_given(cfg: CfgNode, keeps_features: bool, needs_text_tower: bool) -> None:
    """Refuse a method that needs what given features do not have; nothing is loaded yet."""
    if not gives_features(cfg):
        return
    method = cfg.TRAINER.NAME
    if not keeps_features:
        raise ValueError(
            f"DATASET.NAME Features gives image features, but {method} changes what the image "
            f"encoder computes, so it needs images. Methods that need none: {_working(cfg)}"
        )
    if gives_texts(cfg) and needs_text_tower:
        raise ValueError(
            f"DATASET.FEATURES.TEXT gives the classes' text features, so that no text encoder is "
            f"loaded, but {method} learns what goes into one. Leave TEXT out (MODEL.BACKBONE.NAME "
            f"is loaded then), or take one of {_working(cfg)}"
        )
    loading = cfg.DATALOADER
    if loading.K_TRANSFORMS != 1 or loading.RETURN_IMG0:
        raise ValueError(
            "DATASET.NAME Features has no images to transform: set DATALOADER.K_TRANSFORMS 1 (got "
            f"{loading.K_TRANSFORMS}) and DATALOADER.RETURN_IMG0 False (got {loading.RETURN_IMG0})"
        )


def _working(cfg: CfgNode) -> str:
    """Names of the methods that run on these features."""
    kinds = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    # Those of other people may need whatever their authors did not say.
    texts = gives_texts(cfg)
    return ", ".join(
        name
        for name, kind in kinds.items()
        if getattr(kind, "frozen_image_encoder", False)
        and kind.__module__.startswith("trainers.")
        and not (texts and kind.needs_text_tower)
    )


def use_given_features(trainer: Any) -> None:
    """Let a trainer's loaders give the dataset's features."""
    for name, part in (("train_loader_x", "train"), ("val_loader", "val"), ("test_loader", "test")):
        loader = getattr(trainer, name)
        if loader is not None:
            given = trainer.dm.dataset.features[part]
            features = GivenFeatureLoader(loader, part, given, trainer.device)
            # In both places, since trainers written for Dassl read either.
            setattr(trainer, name, features)
            setattr(trainer.dm, name, features)
    # With fewer views than epochs pictures come back unchanged: the result says so.
    views = getattr(trainer.train_loader_x, "views", 1)
    if 1 < views < trainer.max_epoch:
        trainer.notes.add(
            f"{views} views of each training image take turns in {trainer.max_epoch} epochs"
        )


class GivenFeatureLoader(FeatureLoader):
    """Gives a loader's batches with rows of the dataset's features; several views take turns."""

    def __init__(self, loader: Any, part: str, features: np.ndarray, device: torch.device) -> None:
        encoder: Any = None  # nothing is computed
        super().__init__(encoder, loader, part, 1, device)
        rows = [item.row for item in loader.dataset.data_source]
        # Of a whole part no copy is made: it may be as large as the memory allows.
        whole = rows == list(range(len(features)))
        self._given = torch.from_numpy(features if whole else features[rows])  # (N, [V,] D)
        self.views = self._given.shape[1] if self._given.ndim == 3 else 1

    def _state(self, view: int) -> tuple[int, str]:
        return view, ""

    def features(self, view: int) -> tuple[Tensor, set[int]]:
        """Features of all rows in one view, (N, D); none is missing."""
        return (self._given[:, view] if self._given.ndim == 3 else self._given), set()

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The features (B, D) and labels (B,) of some rows, in the first view."""
        index = torch.tensor([int(row) for row in rows])
        return {"img": self.features(0)[0][index], "label": self._label[index]}


def given_backbone(trainer: Any) -> clip.Backbone | None:
    """The stand-in for a backbone where the dataset gives text features; None where it does not."""
    if not gives_texts(trainer.cfg):
        return None
    texts = trainer.dm.dataset.class_texts
    print(f"No backbone is loaded: image and text features are given ({texts.file})")
    rows = [torch.from_numpy(own) for own in texts.rows]  # (P, D) each
    return clip.FeatureBackbone(rows, texts.logit_scale, texts.file).requires_grad_(False).eval()


def check_width(trainer: Any, backbone: clip.Backbone) -> None:
    """Refuse a backbone whose texts do not fit the given image features."""
    if not gives_features(trainer.cfg):
        return
    for part, features in trainer.dm.dataset.features.items():
        if features.shape[-1] != backbone.embed_dim:
            raise ValueError(
                f"DATASET.FEATURES.{part.upper()} has features of width {features.shape[-1]}, but "
                f"the texts of backbone {backbone.name!r} have {backbone.embed_dim}; set "
                "MODEL.BACKBONE.NAME (--backbone) to the model that made the features, or give "
                "text features (DATASET.FEATURES.TEXT)"
            )


class GivenTexts(PromptTexts):
    """Takes the prompts' place where texts are features already: one word for each class."""

    @property
    def unused_template(self) -> str:
        """None: the dataset's notes say that a template has no effect."""
        return ""

    def template(self, own: str) -> str:
        """The method's own, which nobody encodes."""
        return own

    def ensemble(self, classnames: list[str], size: int, own: str = "") -> list[list[str]]:
        """See :meth:`prompts`."""
        return [[name] for name in classnames]

    def prompts(self, context: str = "", learned: bool = False) -> list[list[str]]:
        """The class names, which only say how many classes there are."""
        return [[name] for name in self.classnames]


def given_texts_line(bank: clip.FeatureBank) -> str:
    """What the log says of text features in place of the first prompt."""
    return (
        f"Class texts: {len(bank)} text features of {bank.num_classes} classes, of {bank.source}; "
        "prompts and templates have no effect"
    )
