"""CLIP-Adapter, fully fine-tuned: its bottleneck first, then everything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from clip import FeatureAdapter
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer
from trainers.clip_adapter import CLIPAdapter
from trainers.finetuning import recipe
from trainers.finetuning.recipe import FineTuning, classifier_loss
from trainers.finetuning.stages import read_first_stage

DEFAULTS = {**recipe.DEFAULTS, **CLIPAdapter.defaults}


def adapted_clip(trainer: CLIPTrainer, parts: Sequence[str]) -> nn.Module:
    """The model of both stages: a bottleneck on the image feature, the encoder and W."""
    options = trainer.options
    bottleneck = partial(FeatureAdapter, reduction=options.REDUCTION, ratio=options.RATIO)
    return trainer.recipe.linear_clip(parts, adapter=bottleneck)


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

    def build_model(self) -> nn.Module:
        """The encoder, the bottleneck and W."""
        return adapted_clip(self, self.trains)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        return classifier_loss(self.model, image, label)


@TRAINER_REGISTRY.register()
class CLIPAdapterFT(CLIPTrainer):
    """Stage 2: encoder, W and bottleneck train, from a run of :class:`CLIPAdapterFFT`."""

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = DEFAULTS
    trains = ("encoder", "classifier", "adapter")

    def build_model(self) -> nn.Module:
        """The encoder, the bottleneck and W."""
        return adapted_clip(self, self.trains)

    def first_stage(self) -> dict[str, Tensor]:
        """The bottleneck of stage 1."""
        return read_first_stage(self, ("CLIPAdapterFFT",))

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        return classifier_loss(self.model, image, label)
