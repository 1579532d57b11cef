"""Test-time training: each test image adapts the model to itself, unlabelled, and is forgotten.

Notation: N images, V views of each (view 0 is the image as it is), S of them selected, K classes, D
embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from clip.text import unit_norm
from dassl.config.schema import Option, count, names_of, number
from dassl.data.samplers.sharded import ShardedSampler
from dassl.data.transforms import crop_border_first, finish, split_transform
from dassl.data.wrapper import ImageLoader
from dassl.engine import StepOutput
from dassl.errors import EPISODE_MEMORY, VIEWS_MEMORY, less_memory
from trainers.base.options import context_words, share
from trainers.base.recipe import Recipe
from trainers.test_time.augmix import add_augmix
from trainers.test_time.stopwatch import Stopwatch
from trainers.test_time.views import Views

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
    log_mean = logits.log_softmax(-1).logsumexp(-2) - math.log(logits.shape[-2])  # (..., K)
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
    """Numbers of the ``count`` views of least entropy: (N, V, K) -> (N, count)."""
    # Equal views keep their order, so that the choice does not depend on the device.
    return view_entropy(logits).argsort(dim=-1, stable=True)[:, :count]


def take_views(features: Tensor, views: Tensor) -> Tensor:
    """Features of some views: (N, V, D), (N, S) -> (N, S, D)."""
    return features.gather(1, views[..., None].expand(-1, -1, features.shape[-1]))


def selected_views(options: CfgNode, section: str) -> int:
    """How many views an episode learns from: int(VIEWS * SELECT).

    Raises:
        ValueError: None would be kept.
    """
    count = int(options.VIEWS * options.SELECT)
    if count < 1:
        raise ValueError(
            f"TRAINER.{section}.SELECT {options.SELECT} of {options.VIEWS} views keeps none: "
            f"int({options.VIEWS} * {options.SELECT}) is 0. SELECT must be at least "
            f"{1 / options.VIEWS:.3g}, or VIEWS at least {math.ceil(1 / options.SELECT)}"
        )
    return count


class Episodes(Recipe):
    """Test-time training: one episode per test image, nothing kept between two.

    There is nothing to train offline. The loader gives each test image's views, ``encode`` turns
    them into features, and a method defines two things: ``adapted()``, what an episode changes a
    copy of, and ``predict_episodes(features)``, which keeps the :func:`most_confident` views, takes
    STEPS of AdamW on their ``entropy`` and classifies view 0. Parameters require no gradient
    outside of an episode, and an episode works on copies: the model is the same after as before.

    Config, ``TRAINER.<name>``: VIEWS V, the image itself included; SELECT, share of the most
    confident views (int(V * SELECT) of them, chosen once per image); STEPS of AdamW with LR and
    WEIGHT_DECAY; ENTROPY ``marginal`` (of the mean prediction) or ``mean`` (of the views'
    entropies); CTX_INIT, words before the class name, for all datasets; BATCH images are loaded,
    encoded and adapted side by side, ENCODER_BATCH views in one call of the image encoder, neither
    of which changes a result. ``INPUT.RRCROP_SCALE`` is the area of the random crops.

    Memory grows with BATCH: a loaded batch has BATCH * V * 3 * 224 * 224 bytes (154 MB at 16 images
    of 64 views), and each worker process holds two; a method's docstring says what its adaptation
    needs per image. What the encoder computes on the way grows with ENCODER_BATCH alone.

    Attributes:
        normalize: Steps of the test transform after ``ToTensor``.
    """

    no_graph = "each test image trains the model by steps of its own, which no fixed graph does"

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.normalize: list[Any] = []

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Of the time spent in the image encoder and in adaptation."""
        return Stopwatch(self.trainer.device, "encoder", "adaptation")

    def prepare(self) -> None:
        """Let the loaders of images to test on give views."""
        trainer = self.trainer
        for name in ("val_loader", "test_loader"):
            if getattr(trainer, name) is not None:
                setattr(trainer, name, self._views_loader(getattr(trainer, name)))
                setattr(trainer.dm, name, getattr(trainer, name))

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what leaves an episode without views.

        Raises:
            ValueError: A key of the episodes has a value that cannot be used.
        """
        section = self.method
        options = cfg.TRAINER[section]
        selected_views(options, section)
        if self.trainer.uses_features(cfg):
            raise ValueError(
                f"FEATURE_CACHE.ENABLED (--feature-cache) is True, but {section} needs "
                f"{options.VIEWS} views of each test image, which no other run shares; set it to "
                "False, or FEATURE_CACHE.REQUIRED to False"
            )
        if cfg.INPUT.DECODE != "pillow":
            raise ValueError(
                f"INPUT.DECODE is {cfg.INPUT.DECODE}, which is for training images, but {section} "
                "learns from views of test images, which Pillow decodes; set INPUT.DECODE pillow"
            )

    @property
    def options(self) -> CfgNode:
        """The method's section of the config."""
        return self.trainer.options

    @property
    def selected(self) -> int:
        """S, the number of views that an episode learns from."""
        return selected_views(self.options, self.method)

    @property
    def entropy(self) -> Callable[[Tensor], Tensor]:
        """What an episode minimises: logits (..., S, K) -> (...)."""
        return ENTROPIES[self.options.ENTROPY]

    @property
    def adamw(self) -> dict[str, float]:
        """Settings of the optimiser of an episode."""
        return {"lr": self.options.LR, "weight_decay": self.options.WEIGHT_DECAY}

    def _views_loader(self, plain: Any) -> ImageLoader:
        """A loader of the same images' views, BATCH images at a time."""
        transform = plain.dataset.transform
        halves = split_transform(transform)
        if halves is None:
            raise ValueError(
                "Views of test images are made from the test transform up to its ToTensor, which "
                f"{transform!r} does not have; set INPUT.NO_TRANSFORM to False"
            )
        clean, self.normalize = halves
        trainer, options, cfg = self.trainer, self.options, self.trainer.cfg.INPUT
        views = Views(
            clean, cfg.SIZE, options.VIEWS, cfg.RRCROP_SCALE, trainer.seed, cfg.FAST_RESIZE
        )
        border = getattr(trainer.dm.dataset, "border", 0)
        views.augment = crop_border_first(views.augment, border)
        if options.get("AUGMIX"):
            add_augmix(views)
        plain.dataset.transform = views
        loader = ImageLoader(
            plain.dataset,
            batch_size=options.BATCH,
            sampler=_in_turns(plain.sampler, options.BATCH),
            num_workers=plain.num_workers,
            collate_fn=plain.collate_fn,
            pin_memory=plain.pin_memory,
            persistent_workers=plain.num_workers > 0,
            generator=plain.generator,
        )
        loader.bad_images = plain.bad_images
        return loader

    def logits(self, input: Tensor) -> Tensor:
        """Logits of the images as they are, each from a model adapted to it, (N, K).

        Args:
            input: Views (N, V, 3, H, W), bytes; or images (N, 3, H, W), which are classified
                without adaptation.
        """
        if input.ndim != 5:
            return super().logits(input)
        return torch.cat([self._batch(views) for views in input.split(self.options.BATCH)])

    @less_memory(EPISODE_MEMORY)
    def _batch(self, views: Tensor) -> Tensor:
        self.stopwatch.start()
        features = self.encode(views)
        self.stopwatch.lap("encoder")
        logits = self.predict_episodes(features)
        self.stopwatch.lap("adaptation")
        return logits

    @less_memory(VIEWS_MEMORY)
    @torch.no_grad()
    def encode(self, views: Tensor) -> Tensor:
        """Unit-norm features of all views: (N, V, 3, H, W) bytes -> (N, V, D)."""
        features = [  # each (ENCODER_BATCH, D)
            self.encode_images(finish(part, self.normalize))
            for part in views.flatten(0, 1).split(self.options.ENCODER_BATCH)  # of (N * V, ...)
        ]
        return torch.cat(features).unflatten(0, views.shape[:2])

    def encode_images(self, images: Tensor) -> Tensor:
        """Unit-norm features that episodes start from: (B, 3, H, W) -> (B, D)."""
        return unit_norm(self.trainer.model.backbone.encode_image(images))

    def predict_episodes(self, features: Tensor) -> Tensor:
        """Adapt to each image, classify its view 0, and forget it: (N, K).

        Args:
            features: What :meth:`encode` returns, (N, V, D).
        """
        return self.trainer.predict_episodes(features)

    def adapted(self) -> Mapping[str, Tensor]:
        """What an episode adapts a copy of, by name in the model."""
        return self.trainer.adapted()

    def adapted_parameters(self) -> int:
        """How many numbers an episode adapts."""
        return sum(value.numel() for value in self.adapted().values())

    def extra_result(self) -> dict[str, Any]:
        """Add what was adapted, and where the time went."""
        seconds = self.stopwatch.seconds()
        total = sum(seconds.values())
        return {
            "test_time": {
                "adapted_parameters": self.adapted_parameters(),
                "selected_views": self.selected,
                "seconds": seconds,
                "encoder_share": seconds["encoder"] / total if total else None,
            },
        }


def _in_turns(sampler: Any, images: int) -> Any:
    """Let several processes take batches of so many images in turn, the same as one would have."""
    if not isinstance(sampler, ShardedSampler):
        return sampler
    return ShardedSampler(sampler.whole, images, sampler.rank, sampler.world_size, divide=False)


def no_training(trainer: Any, image: Tensor, label: Tensor) -> StepOutput:
    """The ``forward_loss`` of the methods here: there is no training on labelled images.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(f"{type(trainer).__name__} learns from test images alone")
