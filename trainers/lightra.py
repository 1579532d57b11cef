"""LightRA: residual attention in both towers, trained with self-distillation.

"Lightweight Residual Attention for Adaptation of Vision-Language Models", IEEE TMM 2026,
doi:10.1109/TMM.2026.3676654.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Backbone, adapters_disabled, attach_residual_attention, freeze_except
from clip.text import take_rows
from dassl.config.schema import Option, count
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP, released
from trainers.base.options import MANY, depth, precision, weight
from trainers.losses import cosine_distance


class LightRACLIP(PromptedCLIP):
    """CLIP with residual attention, and the frozen text features its training is held to."""

    _frozen_text: Tensor | None = None

    def frozen_text_features(self) -> Tensor:
        """The pre-trained model's features of all prompts, unit norm, (P, D); computed once."""
        if self._frozen_text is None:
            with adapters_disabled(self.backbone):
                self._frozen_text = self.bank.encode_all(self.backbone)
        return self._frozen_text

    def step_features(self, image: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features f, h, f0, h0 of a step with the prompts numbered ``index``, one per class."""
        f0, f = self.frozen_image_features(image), self.image_features(image)  # (B, D)
        h = self.bank.encode(self.backbone, index)  # (K, D)
        return f, h, f0, take_rows(self.frozen_text_features(), index)


def lightra_loss(
    f: Tensor, h: Tensor, f0: Tensor, h0: Tensor, label: Tensor, scale: Tensor, c: float, w: float
) -> StepOutput:
    """Cross entropy on mixed logits plus the distances to the frozen features.

    CE(s (c f h^T + f0 h^T + f h0^T) / (c + 2), y)
        + w [(1 - mean cos(h, h0)) + (1 - mean cos(f, f0))]

    ``f`` (B, D) and ``h`` (K, D) are image features and text features of one prompt per class, unit
    norm; ``f0`` and ``h0`` the frozen model's; ``label`` is (B,), c COS_WEIGHT, w LOSS_WEIGHT.
    """
    # c f h^T + f h0^T = f (c h + h0)^T, so that two products do instead of three.
    logits = scale * (f @ (c * h + h0).T + f0 @ h.T) / (c + 2)  # (B, K)
    ce = F.cross_entropy(logits, label)
    text, vision = cosine_distance(h, h0), cosine_distance(f, f0)
    return StepOutput(ce + w * (text + vision), logits, {"ce": ce, "text": text, "vision": vision})


def lightra_clip(backbone: Backbone, prompts: list[list[str]], options: CfgNode) -> LightRACLIP:
    """The frozen backbone with residual attention as the ``options`` of :class:`LightRA` say."""
    attach_residual_attention(
        backbone,
        n_ctx_vision=options.N_CTX_VISION,
        n_ctx_text=options.N_CTX_TEXT,
        vision_depth=options.VISION_DEPTH,
        text_depth=options.TEXT_DEPTH,
    )
    freeze_except(backbone)
    return LightRACLIP(backbone, prompts, renormalize=options.RENORM_TEXT)


@TRAINER_REGISTRY.register()
class LightRA(CLIPTrainer):
    """LightRA: residual attention and self-distillation; see :func:`lightra_loss`.

    Each step draws one prompt per class.

    Config, ``TRAINER.LightRA``: a depth of 0 adapts no layer (the released code adapts one more
    than its DEPTH says). RENORM_TEXT False leaves the mean over a class's prompts unnormalised in
    evaluation, as in the released code, which normalises another variable and made the published
    numbers so; the formula of the paper reads like True.
    """

    needs_transformers = True
    model_name = "ResidualAttention"  # the released checkpoints' folder
    released_layout = released.lightra
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
        self.prompt_generator = self.register_generator("prompts")
        return lightra_clip(self.load_backbone(), self.prompts(), self.options)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        model, options = self.model, self.options
        index = model.bank.sample(self.prompt_generator)  # one prompt per class, (K,)
        f, h, f0, h0 = model.step_features(image, index)
        return lightra_loss(
            f, h, f0, h0, label, model.scale, options.COS_WEIGHT, options.LOSS_WEIGHT
        )
