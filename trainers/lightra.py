"""LightRA: residual attention in both towers, trained with self-distillation.

"Lightweight Residual Attention for Adaptation of Vision-Language Models", IEEE TMM 2026,
doi:10.1109/TMM.2026.3676654.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip import adapters_disabled, attach_residual_attention, freeze_except
from dassl.config.schema import Option, count
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import MANY, depth, precision, weight
from trainers.losses import cosine_distance


class LightRACLIP(PromptedCLIP):
    """CLIP with residual attention, and the frozen features its training is held to."""

    teacher_text: Tensor | None = None
    prompt_generator: torch.Generator

    def student_and_teacher(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features f (B, D), h (K, D), f0, h0; h and h0 of one prompt per class, drawn anew."""
        index = self.bank.sample(self.prompt_generator)
        f0, h0 = self.frozen_image(image), self.frozen_text()[index]
        return self.image_features(image), self.bank.encode(self.backbone, index), f0, h0

    def frozen_text(self) -> Tensor:
        """``h0``: the pre-trained model's features of all prompts, (P, D); computed once."""
        if self.teacher_text is None:
            with adapters_disabled(self.backbone):
                self.teacher_text = self.bank.encode_all(self.backbone)
        return self.teacher_text


def lightra_loss(
    f: Tensor, h: Tensor, f0: Tensor, h0: Tensor, label: Tensor, scale: Tensor, c: float, w: float
) -> StepOutput:
    """Cross entropy on mixed logits plus the distances to the frozen features.

    CE(s (c f h^T + f0 h^T + f h0^T) / (c + 2), y)
        + w [(1 - mean cos(h, h0)) + (1 - mean cos(f, f0))]

    Args:
        f: Image features, unit norm, (B, D).
        h: Text features of one prompt per class, unit norm, (K, D).
        f0: Image features of the frozen model.
        h0: Text features of the frozen model.
        label: (B,).
        scale: s.
        c: COS_WEIGHT.
        w: LOSS_WEIGHT.
    """
    # f (c h + h0)^T + f0 h^T: two products instead of three
    logits = scale * (f @ (c * h + h0).T + f0 @ h.T) / (c + 2)
    ce = F.cross_entropy(logits, label)
    text, vision = cosine_distance(h, h0), cosine_distance(f, f0)
    return StepOutput(ce + w * (text + vision), logits, {"ce": ce, "text": text, "vision": vision})


def lightra_clip(
    trainer: CLIPTrainer, head: Callable[[int], nn.Module] | None = None
) -> LightRACLIP:
    """What ``trainer``'s config describes: residual attention on a frozen backbone, and prompts.

    Args:
        trainer: Has the options of :class:`LightRA`.
        head: Makes a head that trains, of the embedding width; by default CLIP's cosine.
    """
    options = trainer.options
    backbone = trainer.load_backbone()
    attach_residual_attention(
        backbone,
        n_ctx_vision=options.N_CTX_VISION,
        n_ctx_text=options.N_CTX_TEXT,
        vision_depth=options.VISION_DEPTH,
        text_depth=options.TEXT_DEPTH,
    )
    freeze_except(backbone)
    model = LightRACLIP(
        backbone,
        trainer.prompts(),
        renormalize=options.RENORM_TEXT,
        head=head(backbone.embed_dim) if head else None,
    )
    model.prompt_generator = trainer.register_generator("prompts")
    return model


@TRAINER_REGISTRY.register()
class LightRA(CLIPTrainer):
    """LightRA: residual attention and self-distillation; see :func:`lightra_loss`.

    Each step draws one prompt per class.

    Config, ``TRAINER.LightRA``: N_CTX_VISION and N_CTX_TEXT learned keys per head; VISION_DEPTH and
    TEXT_DEPTH adapted layers, 0 for none (the released code adapts one more than its DEPTH says);
    COS_WEIGHT c; LOSS_WEIGHT w; PREC. RENORM_TEXT False leaves the mean over a class's prompts
    unnormalised in evaluation, as in the released code, which normalises another variable and made
    the published numbers so; the formula of the paper reads like True.
    """

    needs_transformers = True
    model_name = "ResidualAttention"  # the released checkpoints' folder
    defaults = {
        "N_CTX_VISION": Option(4, count(1, MANY), "learned keys per head of the vision tower"),
        "N_CTX_TEXT": Option(4, count(1, MANY), "learned keys per head of the text tower"),
        "VISION_DEPTH": depth(12, "adapted layers of the vision tower"),
        "TEXT_DEPTH": depth(12, "adapted layers of the text tower"),
        "COS_WEIGHT": weight(3.5, "the mixed logits, c"),
        "LOSS_WEIGHT": weight(9.0, "the distances to the frozen features, w"),
        "PREC": precision("amp"),
        "RENORM_TEXT": Option(False, None, "normalise the mean of a class's prompts"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with residual attention attached, and the prompts."""
        return lightra_clip(self)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        model, options = self.model, self.options
        f, h, f0, h0 = model.student_and_teacher(image)
        return lightra_loss(
            f, h, f0, h0, label, model.scale, options.COS_WEIGHT, options.LOSS_WEIGHT
        )

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout: per layer one ``prefix_pool`` (2, N, W), keys then values."""
        converted: dict[str, Tensor] = {}
        transformers = {
            "visual": self.model.backbone.vision_transformer,
            "text": self.model.backbone.text_transformer,
        }
        prefixes = {
            "visual": "backbone.model.visual.transformer",
            "text": "backbone.model.transformer",
        }
        for name, tensor in state_dict.items():
            match = re.search(r"(visual|text)ResidualAttention\.(\d+)\.prefix_pool$", name)
            if not match:
                converted[name] = tensor
                continue
            tower, layer = match[1], int(match[2])
            blocks = transformers[tower].resblocks
            heads = blocks[min(layer, len(blocks) - 1)].attn.num_heads
            for part, values in zip(("key", "value"), tensor.unbind(0), strict=True):
                per_head = values.unflatten(-1, (heads, -1)).transpose(0, 1)  # (N, W) -> (H, N, Dh)
                converted[f"{prefixes[tower]}.resblocks.{layer}.attn.residual.{part}"] = (
                    per_head.contiguous()
                )
        return converted
