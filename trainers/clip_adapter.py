"""CLIP-Adapter: a bottleneck on the frozen image feature.

"CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024, arXiv:2110.04544.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

import clip
from clip import FeatureAdapter, freeze_except
from clip.prompts import template_prompts
from clip.text import at_least_single
from dassl.config.schema import Option, count
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, FrozenTextCLIP, released
from trainers.base.options import share
from trainers.base.templates import hand_made


class AdaptedFeatureCLIP(FrozenTextCLIP):
    """CLIP whose image feature goes through an adapter before it is normalised."""

    def __init__(
        self, backbone: clip.Backbone, prompts: list[list[str]], adapter: FeatureAdapter
    ) -> None:
        super().__init__(backbone, prompts, renormalize=True)
        self.adapter = adapter

    def raw_image_features(self, image: Tensor) -> Tensor:
        """Adapted image features, not normalised: images or cached features -> (B, D)."""
        # The adapter is in single precision, whatever the encoder's weights are.
        return self.adapter(at_least_single(super().raw_image_features(image)))


@TRAINER_REGISTRY.register()
class CLIPAdapter(CLIPTrainer):
    """The image-side adapter of the released code; CE(s f h^T, y), both encoders frozen.

    h are the features of the dataset's hand-made template, or of the one that the user chose
    (``DATASET.PROMPT_TEMPLATE``), encoded once (the release encodes them at every step); features
    can be kept (``--feature-cache``).

    Config, ``TRAINER.CLIPAdapter``: RATIO is 0.2 as released, where the paper searches it per
    dataset; PREC fp32 as released.
    """

    frozen_image_encoder = True
    model_name = "clip_adapter"  # the released checkpoints' folder
    released_layout = released.clip_adapter
    defaults = {
        "REDUCTION": Option(4, count(1, 4096), "width of the features over the adapter's"),
        "RATIO": share(0.2, "the adapter in the feature"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone and the adapter, the only part that trains."""
        backbone = self.load_backbone()
        freeze_except(backbone)
        template = self.template(hand_made(self.cfg.DATASET.NAME))
        prompts = template_prompts(self.dm.dataset.classnames, template)
        adapter = FeatureAdapter(backbone.embed_dim, self.options.REDUCTION, self.options.RATIO)
        return AdaptedFeatureCLIP(backbone, prompts, adapter)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [f"RATIO {self.options.RATIO}; 0.2 as released, the paper searches it per dataset"]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        logits = self.model(image)
        return StepOutput(F.cross_entropy(logits, label), logits)
