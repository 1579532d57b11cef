"""CLIP-Adapter: a bottleneck on the frozen image feature.

"CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024, arXiv:2110.04544.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

import clip
from clip import Adapter, freeze_except
from clip.prompts import template_prompts
from clip.text import at_least_single
from dassl.config.schema import Option, count
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, FrozenTextCLIP, released
from trainers.base.options import share
from trainers.base.templates import hand_made


class FeatureAdapter(Adapter):
    """``v' = ratio A(v) + (1 - ratio) v`` of features v (CLIP-Adapter, arXiv:2110.04544).

    A is a bottleneck without biases, with a ReLU behind each of its two layers, so that it can only
    add to a feature's entries. Its weights start as PyTorch's default: v' is near v, not equal.
    Disabled, v' is v.

    Args:
        embed_dim: D.
        reduction: D over the inner width.
        ratio: Share of the adapter in the result.

    Raises:
        ValueError: The inner width would be less than 1, or the ratio is not between 0 and 1.
    """

    def __init__(self, embed_dim: int, reduction: int = 4, ratio: float = 0.2) -> None:
        super().__init__()
        if not 1 <= reduction <= embed_dim:
            raise ValueError(f"REDUCTION must be from 1 to D = {embed_dim}, got {reduction}")
        if not 0 < ratio <= 1:
            raise ValueError(
                f"RATIO, the adapter's share, must be above 0 and at most 1, got {ratio}"
            )
        self.down = nn.Linear(embed_dim, embed_dim // reduction, bias=False)
        self.up = nn.Linear(embed_dim // reduction, embed_dim, bias=False)
        self.ratio = ratio

    def forward(self, features: Tensor) -> Tensor:
        """Adapted features, not normalised: (B, D) -> (B, D)."""
        if not self.enabled:
            return features
        adapted = F.relu(self.up(F.relu(self.down(features))))  # (B, D / reduction) inside
        return self.ratio * adapted + (1 - self.ratio) * features


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
