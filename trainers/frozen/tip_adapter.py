"""Tip-Adapter: a cache of the few shots as keys and values, beside zero-shot CLIP.

"Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
arXiv:2207.09519.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer
from trainers.frozen.cache import (
    DEFAULTS,
    build_cache,
    fill_cache,
    released_cache,
    search_cache,
)
from trainers.frozen.recipe import FittedAtOnce, FittedHead


@TRAINER_REGISTRY.register()
class TipAdapter(CLIPTrainer):
    """Nothing is trained: the cache is filled, alpha and beta are chosen (``VAL.POLICY``).

    Config, ``TRAINER.TipAdapter``: ALPHA and BETA are the release's starting values of each
    dataset, which ``VAL.POLICY none`` takes; the release searches on the whole validation split,
    on ImageNet on the test images. Its caches load, see :func:`released_cache`.
    """

    recipe_type = FittedAtOnce
    frozen_image_encoder = True
    defaults = DEFAULTS
    build_model = build_cache
    fit = fill_cache
    choose = search_cache

    def released_head(self, directory: str) -> Any:
        """See :func:`released_cache`."""
        return released_cache(self, directory, trained=False)


@TRAINER_REGISTRY.register()
class TipAdapterF(CLIPTrainer):
    """The keys of the cache train, CE(logits, y), then alpha and beta are chosen again.

    The release also keeps the best of its epochs on the TEST images, and reports the better of that
    and the searched one; here the last epoch counts, under every ``VAL.POLICY``. As released,
    AdamW's eps is 1e-4, and the last, short batch of an epoch counts (``DROP_LAST`` in the YAML):
    without it a few shots would have half of the steps.

    Config, ``TRAINER.TipAdapterF``: as TipAdapter; training takes ALPHA and BETA.
    """

    recipe_type = FittedHead
    frozen_image_encoder = True
    released_in_half = True
    defaults = DEFAULTS
    build_model = build_cache
    fit = fill_cache
    choose = search_cache

    def param_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The keys, with the release's eps."""
        return [{"params": [module.get_parameter("head.keys")], "eps": 1e-4}]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        logits = self.model(image)
        return StepOutput(F.cross_entropy(logits, label), logits)

    def released_head(self, directory: str) -> Any:
        """See :func:`released_cache`."""
        return released_cache(self, directory, trained=True)
