"""VPT: learned prompts in the vision tower alone.

"Visual Prompt Tuning", ECCV 2022, arXiv:2203.12119, as the baseline for CLIP of "MaPLe:
Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.
"""

from __future__ import annotations

from torch import Tensor, nn

from clip import attach_vision_prompts, freeze_except
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, FrozenTextCLIP, released
from trainers.base.options import context_words, depth, precision, vision_prompts
from trainers.losses import classification_loss


@TRAINER_REGISTRY.register()
class VPT(CLIPTrainer):
    """Deep vision prompts; the loss is the cross entropy of s f h^T with the frozen text features.

    Config, ``TRAINER.VPT``, released keys: N_CTX_VISION is 8, though the released file's name says
    4; PROMPT_DEPTH_VISION 1 is the input alone; CTX_INIT is written into the released code, which
    does not read the key; PREC is fp32, as the release computes whatever its config says.
    """

    needs_transformers = True
    model_name = "prompt_learner"  # the released checkpoints' folder
    released_layout = released.vpt
    protocols = ("base2novel",)
    defaults = {
        "N_CTX_VISION": vision_prompts(8),
        "PROMPT_DEPTH_VISION": depth(12, "layers with prompts of their own"),
        "CTX_INIT": context_words("a photo of a", "words before the class name"),
        "PREC": precision("fp32"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with vision prompts, and the frozen class weights."""
        options = self.options
        backbone = self.load_backbone()
        attach_vision_prompts(
            backbone, n_ctx=options.N_CTX_VISION, depth=options.PROMPT_DEPTH_VISION
        )
        freeze_except(backbone)
        return FrozenTextCLIP(backbone, self.prompts(options.CTX_INIT), renormalize=True)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        count = self.options.N_CTX_VISION
        return [f"{count} prompts; the released config has 8, though its name says 4"]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return classification_loss(self.model.output(image), label)
