"""CLIP-Adapter, fully fine-tuned: its bottleneck first, then everything."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from clip import FeatureAdapter
from dassl.engine import TRAINER_REGISTRY
from trainers.clip_adapter import CLIPAdapter
from trainers.finetuning.ft import FineTuner


class AdapterFineTuner(FineTuner):
    """Base of both stages: a bottleneck on the image feature, :class:`clip.FeatureAdapter`."""

    defaults: ClassVar[dict[str, Any]] = {**FineTuner.defaults, **CLIPAdapter.defaults}

    def build_adapter(self, embed_dim: int) -> nn.Module:
        """The bottleneck."""
        return FeatureAdapter(embed_dim, self.options.REDUCTION, self.options.RATIO)


@TRAINER_REGISTRY.register()
class CLIPAdapterFFT(AdapterFineTuner):
    """Stage 1: a bottleneck on the image feature trains; encoder and W do not.

    Config, ``TRAINER.CLIPAdapterFFT``: REDUCTION and RATIO are :class:`clip.FeatureAdapter`'s.
    """

    trains: ClassVar[tuple[str, ...]] = ("adapter",)
    frozen_image_encoder = True


@TRAINER_REGISTRY.register()
class CLIPAdapterFT(AdapterFineTuner):
    """Stage 2: encoder, W and bottleneck train, from a run of :class:`CLIPAdapterFFT`."""

    trains: ClassVar[tuple[str, ...]] = ("encoder", "classifier", "adapter")
    first_stages = ("CLIPAdapterFFT",)
