"""CLIP-Adapter, fully fine-tuned: its bottleneck first, then everything."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from clip import FeatureAdapter
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer
from trainers.clip_adapter import CLIPAdapter
from trainers.finetuning import recipe
from trainers.finetuning.linear_clip import LinearCLIP
from trainers.finetuning.recipe import FineTuning, classifier_loss
from trainers.finetuning.stages import read_first_stage

DEFAULTS = {**recipe.DEFAULTS, **CLIPAdapter.defaults}


def adapted_clip(trainer: Any) -> LinearCLIP:
    """The ``build_model`` of both stages: the encoder, a bottleneck on its feature, and W."""
    options = trainer.options
    bottleneck = partial(FeatureAdapter, reduction=options.REDUCTION, ratio=options.RATIO)
    return trainer.recipe.linear_clip(trainer.trains, adapter=bottleneck)


@TRAINER_REGISTRY.register()
class CLIPAdapterFFT(CLIPTrainer):
    """Stage 1: a bottleneck on the image feature trains; encoder and W do not.

    Config, ``TRAINER.CLIPAdapterFFT``: REDUCTION and RATIO are :class:`clip.FeatureAdapter`'s.
    """

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = DEFAULTS
    trains = ("adapter",)
    frozen_image_encoder = True
    build_model = adapted_clip
    forward_loss = classifier_loss


@TRAINER_REGISTRY.register()
class CLIPAdapterFT(CLIPTrainer):
    """Stage 2: encoder, W and bottleneck train, from a run of :class:`CLIPAdapterFFT`."""

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = DEFAULTS
    trains = ("encoder", "classifier", "adapter")
    build_model = adapted_clip
    forward_loss = classifier_loss

    def first_stage(self) -> dict[str, Tensor]:
        """The bottleneck of stage 1."""
        return read_first_stage(self, ("CLIPAdapterFFT",))
