"""Test-time training: each test image adapts the model to itself, unlabelled, and is forgotten.

Notation: N images, V views of each (view 0 is the image as it is), S of them selected, K classes, D
embedding width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from yacs.config import CfgNode

from clip.text import unit_norm
from dassl.config.schema import Option, count, names_of, number
from dassl.data.transforms import crop_border_first
from dassl.data.wrapper import ImageLoader
from dassl.engine import StepOutput
from trainers.base import CLIPTrainer
from trainers.base.options import context_words, share
from trainers.test_time.views import Views, finish, split_transform

EPISODE_DEFAULTS: dict[str, Any] = {
    "VIEWS": Option(64, count(2, 65_536), "views of a test image, itself among them"),
    "SELECT": share(0.1, "the views that are kept, the most confident"),
    "STEPS": Option(1, count(1, 1_000_000), "steps per image"),
    "LR": Option(1e-3, number(above=0), "learning rate of the steps"),
    "WEIGHT_DECAY": Option(0.01, number(0), "weight decay of the steps"),
    "ENTROPY": Option("marginal", names_of(lambda: ENTROPIES), "entropy that falls"),
    "BATCH": Option(16, count(1), "images that are adapted side by side"),
    # Twice as many are no faster, and a ViT-B/16 would need 2 GiB more for what it computes.
    "ENCODER_BATCH": Option(128, count(1), "views in one call of the image encoder"),
    "CTX_INIT": context_words("a photo of a", "words before the class name"),
}


def view_entropy(logits: Tensor) -> Tensor:
    """Entropy of each view's prediction: (..., K) -> (...)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the views' mean prediction: (..., S, K) -> (...). TPT, arXiv:2209.07511."""
    log_mean = logits.log_softmax(-1).logsumexp(-2) - math.log(logits.shape[-2])
    # exp(-inf) * -inf would be NaN; a probability of 0 adds nothing.
    log_mean = log_mean.clamp(min=torch.finfo(log_mean.dtype).min)
    return -(log_mean.exp() * log_mean).sum(-1)


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean of the views' entropies: (..., S, K) -> (...). Tent, arXiv:2006.10726."""
    return view_entropy(logits).mean(-1)


ENTROPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "marginal": marginal_entropy,
    "mean": mean_entropy,
}


def most_confident(logits: Tensor, count: int) -> Tensor:
    """Numbers of the ``count`` views of least entropy: (N, V, K) -> (N, count).

    Of equal ones the first are taken.
    """
    return view_entropy(logits).argsort(dim=-1, stable=True)[:, :count]


def take_views(features: Tensor, views: Tensor) -> Tensor:
    """Features of some views: (N, V, D), (N, S) -> (N, S, D)."""
    return features.gather(1, views[..., None].expand(-1, -1, features.shape[-1]))


def selected_views(options: CfgNode, section: str) -> int:
    """How many views an episode learns from: int(VIEWS * SELECT).

    Raises:
        ValueError: There are fewer than two views, or none or more than all would be kept.
    """
    if options.VIEWS < 2:
        raise ValueError(
            f"TRAINER.{section}.VIEWS must be at least 2 (the image and one augmented view), got "
            f"{options.VIEWS}; the paper's is 64"
        )
    if not 0 < options.SELECT <= 1:
        raise ValueError(
            f"TRAINER.{section}.SELECT is the share of views that is kept, above 0 and at most 1, "
            f"got {options.SELECT}; the paper's is 0.1"
        )
    count = int(options.VIEWS * options.SELECT)
    if count < 1:
        raise ValueError(
            f"TRAINER.{section}.SELECT {options.SELECT} of {options.VIEWS} views keeps none: "
            f"int({options.VIEWS} * {options.SELECT}) is 0. SELECT must be at least "
            f"{1 / options.VIEWS:.3g}, or VIEWS at least {math.ceil(1 / options.SELECT)}"
        )
    return count


class EpisodicTrainer(CLIPTrainer):
    """Base of test-time training: one episode per test image, nothing kept between two.

    There is nothing to train offline. The loader gives each test image's views; a method says in
    ``predict_episodes`` what it makes of their features. Parameters require no gradient outside of
    an episode, and an episode works on copies: the model is the same after as before.

    Config, ``TRAINER.<name>``: VIEWS V, the image itself included; SELECT, share of the most
    confident views (int(V * SELECT) of them, chosen once per image); STEPS of AdamW with LR and
    WEIGHT_DECAY; ENTROPY ``marginal`` (of the mean prediction) or ``mean`` (of the views'
    entropies); CTX_INIT, words before the class name, for all datasets; BATCH images are loaded,
    encoded and adapted side by side, ENCODER_BATCH views in one call of the image encoder, neither
    of which changes a result. ``INPUT.RRCROP_SCALE`` is the area of the random crops.

    Memory grows with BATCH: a loaded batch has BATCH * V * 3 * S * S bytes (154 MB at 16 images of
    64 views of 224 pixels), and each worker process holds two; what adaptation needs per image is
    said by the method. What the encoder computes on the way grows with ENCODER_BATCH alone.

    Attributes:
        seconds: Spent in the image encoder and in adaptation.
    """

    protocols: ClassVar[tuple[str, ...]] = ("ttt",)

    def __init__(self, cfg: CfgNode) -> None:
        self.seconds = {"encoder": 0.0, "adaptation": 0.0}
        super().__init__(cfg)
        self._finish: list[Any] = []
        for name in ("val_loader", "test_loader"):
            if getattr(self, name) is not None:
                setattr(self, name, self._views_loader(getattr(self, name)))
                setattr(self.dm, name, getattr(self, name))

    def check_cfg(self, cfg: CfgNode) -> None:
        """See :meth:`CLIPTrainer.check_cfg`.

        Raises:
            ValueError: A key of the episodes has a value that cannot be used.
        """
        section = type(self).__name__
        options = cfg.TRAINER[section]
        selected_views(options, section)
        if self.uses_features(cfg):
            raise ValueError(
                f"FEATURE_CACHE.ENABLED (--feature-cache) is True, but {section} needs "
                f"{options.VIEWS} views of each test image, which no other run shares; set it to "
                "False, or FEATURE_CACHE.REQUIRED to False"
            )
        if cfg.TRAIN.GRAD_CHECKPOINTING and self.adapts_towers(cfg):
            raise ValueError(
                f"TRAIN.GRAD_CHECKPOINTING is True, but {section} adapts copies of prompts inside "
                "the towers, and activations made again would be those of the prompts themselves; "
                "set it to False"
            )
        super().check_cfg(cfg)

    def adapts_towers(self, cfg: CfgNode) -> bool:
        """Whether an episode adapts what stands in blocks of the towers, not only their input.

        Args:
            cfg: Configuration.
        """
        return False

    @property
    def selected(self) -> int:
        """S."""
        return selected_views(self.options, type(self).__name__)

    def _views_loader(self, plain: Any) -> ImageLoader:
        """A loader of the same images' views, BATCH images at a time."""
        clean, self._finish = split_transform(plain.dataset.transform)
        options, cfg = self.options, self.cfg.INPUT
        views = Views(clean, cfg.SIZE, options.VIEWS, cfg.RRCROP_SCALE, self.seed)
        border = getattr(self.dm.dataset, "border", 0)
        views.augment = crop_border_first(views.augment, border)
        plain.dataset.transform = views
        loader = ImageLoader(
            plain.dataset,
            batch_size=options.BATCH,
            sampler=plain.sampler,
            num_workers=plain.num_workers,
            collate_fn=plain.collate_fn,
            pin_memory=plain.pin_memory,
            persistent_workers=plain.num_workers > 0,
            generator=plain.generator,
        )
        loader.bad_images = plain.bad_images
        return loader

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """There is no training on labelled images.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} learns from test images alone")

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits of the images as they are, each from a model adapted to it, (N, K).

        Args:
            input: Views (N, V, 3, S, S), bytes; or pictures (N, 3, S, S), which are classified
                without adaptation.
        """
        if input.ndim != 5:
            return super().model_inference(input)
        return torch.cat([self._batch(views) for views in input.split(self.options.BATCH)])

    def _batch(self, views: Tensor) -> Tensor:
        started = time.perf_counter()
        features = self.encode(views)
        self._wait()
        encoded = time.perf_counter()
        logits = self.predict_episodes(features)
        self._wait()
        self.seconds["encoder"] += encoded - started
        self.seconds["adaptation"] += time.perf_counter() - encoded
        return logits

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def encode(self, views: Tensor) -> Tensor:
        """Unit-norm features of all views: (N, V, 3, S, S) bytes -> (N, V, D)."""
        features = [
            self.encode_pictures(finish(part, self._finish))
            for part in views.flatten(0, 1).split(self.options.ENCODER_BATCH)
        ]
        return torch.cat(features).unflatten(0, views.shape[:2])

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Unit-norm features that episodes start from: (B, 3, S, S) -> (B, D)."""
        return unit_norm(self.model.backbone.encode_image(pictures))

    def predict_episodes(self, features: Tensor) -> Tensor:
        """Adapt to each image and classify its view 0.

        Args:
            features: Unit norm, (N, V, D).

        Returns:
            (N, K).
        """
        raise NotImplementedError(f"{type(self).__name__} must define predict_episodes")

    def adapted_parameters(self) -> int:
        """How many numbers an episode adapts."""
        raise NotImplementedError(f"{type(self).__name__} must define adapted_parameters")

    def extra_result(self) -> dict[str, Any]:
        """Add what was adapted, and where the time went."""
        total = sum(self.seconds.values())
        return {
            **super().extra_result(),
            "test_time": {
                "adapted_parameters": self.adapted_parameters(),
                "selected_views": self.selected,
                "seconds": dict(self.seconds),
                "encoder_share": self.seconds["encoder"] / total if total else None,
            },
        }
