"""IVLP: independent learned prompts in both towers.

The baseline of "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117, and of
PromptSRC, ICCV 2023, arXiv:2307.06948.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from clip import attach_text_prompts, attach_vision_prompts, freeze_except
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import context_words, depth, precision, text_prompts, vision_prompts
from trainers.base.prompted_towers import (
    check_sets,
    classification_loss,
    stacked_sets,
    text_context,
)


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
        words: CTX_INIT, see :func:`trainers.base.prompted_towers.text_context`.
        head: Makes a head that trains, of the embedding width; by default CLIP's cosine.
    """
    backbone = trainer.load_backbone()
    init, context = text_context(backbone, text[0], words)
    attach_vision_prompts(backbone, n_ctx=vision[0], depth=vision[1])
    prompts = attach_text_prompts(backbone, n_ctx=text[0], depth=text[1], init=init)
    freeze_except(backbone)
    model = PromptedCLIP(
        backbone,
        trainer.prompts(context, learned=prompts is not None),
        renormalize=True,
        head=head(backbone.embed_dim) if head else None,
    )
    if prompts is not None:
        prompts.check_texts(model.bank.tokens)
    return model


def released_sets(state: dict[str, Tensor], model: Any, method: str) -> dict[str, Tensor]:
    """Translate the released layout: prompts by layer, among a whole CLIP's weights.

    Args:
        state: Of a checkpoint; returned as it is if it has no such prompts.
        model: Gets the weights.
        method: Section of the config, for the message.

    Raises:
        ValueError: It has another number of prompts or sets.
    """
    converted = {}
    for tower, first in (("text", "prompt_learner.ctx"), ("vision", "image_encoder.VPT")):
        blocks = f"{tower.replace('vision', 'image')}_encoder.transformer.resblocks"
        sets = stacked_sets(state, first, blocks + ".{}.VPT_shallow")
        if sets is not None:
            converted[tower] = sets
    if not converted:
        return state
    for tower in ("text", "vision"):
        own = getattr(model.backbone, f"{tower}_prompts", None)
        end = tower.upper()
        keys = f"TRAINER.{method}.PROMPT_DEPTH_{end} and N_CTX_{end}"
        check_sets(tower, converted.get(tower), None if own is None else own.vectors, keys)
    return {f"backbone.{tower}_prompts.vectors": sets for tower, sets in converted.items()}


def both_towers(trainer: CLIPTrainer) -> PromptedCLIP:
    """What the options of :class:`IVLP` describe."""
    options = trainer.options
    return ivlp_clip(
        trainer,
        text=(options.N_CTX_TEXT, options.PROMPT_DEPTH_TEXT),
        vision=(options.N_CTX_VISION, options.PROMPT_DEPTH_VISION),
        words=options.CTX_INIT,
    )


PROMPT_DEFAULTS: dict[str, Any] = {
    "N_CTX_TEXT": text_prompts(4, least=0),
    "N_CTX_VISION": vision_prompts(4, least=0),
    "PROMPT_DEPTH_TEXT": depth(9, "text layers with prompts of their own"),
    "PROMPT_DEPTH_VISION": depth(9, "vision layers with prompts of their own"),
    "CTX_INIT": context_words("a photo of a"),
    "PREC": precision("amp"),
}


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
    released_in_half = True
    model_name = "VLPromptLearner"  # the released checkpoints' folder
    protocols: ClassVar[tuple[str, ...]] = ("base2novel", "cross_dataset")
    defaults = PROMPT_DEFAULTS

    def build_model(self) -> nn.Module:
        """The frozen backbone with prompts in both towers."""
        return both_towers(self)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [
            "two baselines have this name: PromptSRC's with 4 + 4 prompts in 9 layers (default), "
            "MaPLe's with 2 + 2 in 12 (maple.yaml)"
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return classification_loss(self.model.training_output(image), label)

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout, see :func:`released_sets`."""
        converted = released_sets(state_dict, self.model, type(self).__name__)
        return super().convert_state_dict(converted)
