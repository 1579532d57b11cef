"""LightRAda: LightRA's residual attention with RAda's mask on top. Ours, in neither paper."""

from __future__ import annotations

from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer
from trainers.lightra import lightra_clip, lightra_loss
from trainers.rada import mask_loss, rational_head


@TRAINER_REGISTRY.register()
class LightRAda(CLIPTrainer):
    """Residual attention and mask, trained together; the loss is the sum of both methods' terms.

    LightRA's cross entropy on its mixed logits and its distances to the frozen features
    (:func:`trainers.lightra.lightra_loss`), plus RAda's cross entropy on the masked logits and
    ALPHA times its regulariser (:func:`trainers.rada.mask_loss`). Evaluation uses the masked
    logits.

    Config: no keys of its own. ``TRAINER.LightRA`` for the residual attention, the prompts and PREC
    (:class:`trainers.lightra.LightRA`); ``TRAINER.RADA``, ALPHA and TEMP for the mask
    (:class:`trainers.rada.RAda`).
    """

    needs_transformers = True
    config_section = "LightRA"

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Nothing: the sections are those of the two methods."""

    def build_model(self) -> nn.Module:
        """LightRA's model, with the mask for a head."""
        self.prompt_generator = self.register_generator("prompts")
        model = lightra_clip(self.load_backbone(), self.prompts(), self.options)
        model.head = rational_head(self.cfg, self.cfg.TRAINER.RADA, model.backbone.embed_dim)
        return model

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        model, options = self.model, self.options
        index = model.bank.sample(self.prompt_generator)  # one prompt per class, (K,)
        f, h, f0, h0 = model.step_features(image, index)
        residual = lightra_loss(
            f, h, f0, h0, label, model.scale, options.COS_WEIGHT, options.LOSS_WEIGHT
        )
        masked = mask_loss(model.head(f, h, model.scale), label, self.cfg.ALPHA)
        parts = {**residual.parts, "masked_ce": masked.parts["ce"], "mask": masked.parts["mask"]}
        return StepOutput(residual.loss + masked.loss, masked.logits, parts)
