"""IVLP: independent learned prompts in both towers.

The baseline of "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117, and of
PromptSRC, ICCV 2023, arXiv:2307.06948.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from clip import attach_text_prompts, attach_vision_prompts, freeze_except
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.prompted import check_sets, classification_loss, stacked_sets, text_context


def ivlp_clip(
    trainer: CLIPTrainer,
    *,
    text: tuple[int, int],
    vision: tuple[int, int],
    words: str,
    head: Callable[[int], nn.Module] | None = None,
) -> PromptedCLIP:
    """A frozen backbone with prompts of their own in both towers.

    Args:
        trainer: Loads the backbone and knows the classes.
        text: n and J of the text tower.
        vision: n and J of the vision tower.
        words: CTX_INIT, see :func:`trainers.prompted.text_context`.
        head: Makes a head that trains, of the embedding width; by default CLIP's cosine.
    """
    backbone = trainer.load_backbone()
    init, context = text_context(backbone, text[0], words)
    attach_vision_prompts(backbone, n_ctx=vision[0], depth=vision[1])
    prompts = attach_text_prompts(backbone, n_ctx=text[0], depth=text[1], init=init)
    freeze_except(backbone)
    model = PromptedCLIP(
        backbone,
        trainer.prompts(context),
        renormalize=True,
        head=head(backbone.embed_dim) if head else None,
    )
    if prompts is not None:
        prompts.check_texts(model.bank.tokens)
    return model


@TRAINER_REGISTRY.register()
class IVLP(CLIPTrainer):
    """Deep prompts in both towers, without coupling; the loss is the cross entropy of s f h^T.

    Config, ``TRAINER.IVLP``, released keys: N_CTX_TEXT and N_CTX_VISION prompts;
    PROMPT_DEPTH_TEXT and PROMPT_DEPTH_VISION layers with prompts of their own (1 is the input
    alone, 0 none); CTX_INIT, the words before the class name that the text prompts start from;
    PREC.

    Two baselines go by this name. The defaults are PromptSRC's, 4 + 4 prompts in 9 layers;
    MaPLe's, 2 + 2 in 12, is in ``maple.yaml``, and its text prompts alone in
    ``deep_language.yaml``.
    """

    needs_transformers = True
    model_name = "VLPromptLearner"  # the released checkpoints' folder
    protocols: ClassVar[tuple[str, ...]] = ("base2novel", "cross_dataset")
    defaults = {
        "N_CTX_TEXT": 4,
        "N_CTX_VISION": 4,
        "PROMPT_DEPTH_TEXT": 9,
        "PROMPT_DEPTH_VISION": 9,
        "CTX_INIT": "a photo of a",
        "PREC": "amp",
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with prompts in both towers."""
        options = self.options
        return ivlp_clip(
            self,
            text=(options.N_CTX_TEXT, options.PROMPT_DEPTH_TEXT),
            vision=(options.N_CTX_VISION, options.PROMPT_DEPTH_VISION),
            words=options.CTX_INIT,
        )

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return classification_loss(self.model.training_output(image), label)

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout: prompts by layer, among a whole CLIP's weights."""
        converted = {}
        for tower, first in (("text", "prompt_learner.ctx"), ("vision", "image_encoder.VPT")):
            blocks = f"{tower.replace('vision', 'image')}_encoder.transformer.resblocks"
            sets = stacked_sets(state_dict, first, blocks + ".{}.VPT_shallow")
            if sets is not None:
                converted[f"{tower}_prompts"] = sets
        if not converted:
            return super().convert_state_dict(state_dict)
        for tower in ("text", "vision"):
            own = getattr(self.model.backbone, f"{tower}_prompts", None)
            section, end = f"TRAINER.{type(self).__name__}", tower.upper()
            keys = f"{section}.PROMPT_DEPTH_{end} and N_CTX_{end}"
            found = converted.get(f"{tower}_prompts")
            check_sets(tower, found, None if own is None else own.vectors, keys)
        return {f"backbone.{name}.vectors": sets for name, sets in converted.items()}
