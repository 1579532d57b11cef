"""IVLP: independent learned prompts in both towers.

The baseline of "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117, and of
PromptSRC, ICCV 2023, arXiv:2307.06948.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from yacs.config import CfgNode

from clip import Backbone, attach_text_prompts, attach_vision_prompts, freeze_except
from clip.adapters.prompts import text_context
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP, released
from trainers.base.options import context_words, depth, precision, text_prompts, vision_prompts
from trainers.losses import classification_loss

# (words before the name, whether learned prompts stand where they do) -> each class's prompts.
PromptsOf = Callable[[str, bool], list[list[str]]]


def ivlp_clip(
    backbone: Backbone,
    prompts_of: PromptsOf,
    *,
    text: tuple[int, int],
    vision: tuple[int, int],
    words: str,
    kind: type[PromptedCLIP] = PromptedCLIP,
) -> PromptedCLIP:
    """The frozen backbone with prompts of their own in both towers.

    ``text`` and ``vision`` are n and J of each tower; ``prompts_of`` makes the classes' texts, as
    :meth:`trainers.base.CLIPTrainer.prompts` does; ``words`` is CTX_INIT; ``kind`` of model.
    """
    init, words = text_context(backbone, text[0], words)
    attach_vision_prompts(backbone, n_ctx=vision[0], depth=vision[1])
    prompts = attach_text_prompts(backbone, n_ctx=text[0], depth=text[1], init=init)
    freeze_except(backbone)
    texts = prompts_of(words, prompts is not None)
    model = kind(backbone, texts, renormalize=True)
    if prompts is not None:
        prompts.check_texts(model.bank.tokens)
    return model


def both_towers(
    backbone: Backbone,
    prompts_of: PromptsOf,
    options: CfgNode,
    kind: type[PromptedCLIP] = PromptedCLIP,
) -> PromptedCLIP:
    """What the ``options`` of :class:`IVLP` describe, as a ``kind`` of model."""
    return ivlp_clip(
        backbone,
        prompts_of,
        text=(options.N_CTX_TEXT, options.PROMPT_DEPTH_TEXT),
        vision=(options.N_CTX_VISION, options.PROMPT_DEPTH_VISION),
        words=options.CTX_INIT,
        kind=kind,
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

    Two baselines go by this name. The defaults are PromptSRC's, 4 + 4 prompts in 9 layers;
    MaPLe's, 2 + 2 in 12, is in ``maple.yaml``, and its text prompts alone in
    ``deep_language.yaml``. A depth of 1 is the input alone, 0 no prompts.
    """

    needs_transformers = True
    released_in_half = True
    model_name = "VLPromptLearner"  # the released checkpoints' folder
    released_layout = released.ivlp
    protocols: ClassVar[tuple[str, ...]] = ("base2novel", "cross_dataset")
    defaults = PROMPT_DEFAULTS

    def build_model(self) -> nn.Module:
        """The frozen backbone with prompts in both towers."""
        return both_towers(self.load_backbone(), self.prompts, self.options)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [
            "two baselines have this name: PromptSRC's with 4 + 4 prompts in 9 layers (default), "
            "MaPLe's with 2 + 2 in 12 (maple.yaml)"
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return classification_loss(self.model.output(image), label)
