"""RAda + Prompt: learned prompts in both towers, trained together with the mask.

"One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv:2507.15480.
"""

from __future__ import annotations

from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer
from trainers.base.options import context_words, depth, text_prompts
from trainers.ivlp import ivlp_clip
from trainers.rada import MASK_DEFAULTS, mask_loss, rational_head


@TRAINER_REGISTRY.register()
class RAdaPrompt(CLIPTrainer):
    """Independent prompts in both towers (IVLP's form) below RAda's mask.

    The loss is RAda's: cross entropy plus ALPHA times the regulariser of the mask.

    Config, ``TRAINER.RAdaPrompt``: PROMPT_DEPTH counts as IVLP's, 1 is the input alone; CTX_INIT ""
    starts the text prompts at random; the mask's keys are :class:`trainers.rada.RAda`'s.
    """

    needs_transformers = True
    defaults = {
        **MASK_DEFAULTS,
        "N_CTX": text_prompts(2),
        "PROMPT_DEPTH": depth(9, "layers with prompts of their own"),
        "CTX_INIT": context_words("a photo of a"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with prompts in both towers, and the mask."""
        options = self.options
        sets = (options.N_CTX, options.PROMPT_DEPTH)  # one pair of keys serves both towers
        model = ivlp_clip(
            self.load_backbone(), self.prompts, text=sets, vision=sets, words=options.CTX_INIT
        )
        model.head = rational_head(self.cfg, options, model.backbone.embed_dim)
        return model

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return mask_loss(self.model.output(image), label, self.cfg.ALPHA)
