"""MaPLe: prompts in both towers, those of the vision tower a function of those of the text tower.

"MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from torch import Tensor, nn
from yacs.config import CfgNode

from clip import attach_coupled_prompts, freeze_except
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import context_words, depth, precision, text_prompts
from trainers.base.prompted_towers import (
    check_sets,
    classification_loss,
    stacked_sets,
    text_context,
)

_MAP = re.compile(r"prompt_learner\.(?:proj|compound_prompt_projections\.(\d+))\.(weight|bias)$")


def maple_clip(
    trainer: CLIPTrainer, options: CfgNode, model: type[PromptedCLIP] = PromptedCLIP, **more: Any
) -> PromptedCLIP:
    """A frozen backbone with coupled prompts, and the classes behind them.

    Args:
        trainer: Loads the backbone and knows the classes.
        options: N_CTX, PROMPT_DEPTH and CTX_INIT, see :class:`MaPLe`.
        model: Class of the result.
        more: Further arguments of that class.
    """
    backbone = trainer.load_backbone()
    init, context = text_context(backbone, options.N_CTX, options.CTX_INIT)
    prompts, _ = attach_coupled_prompts(
        backbone, n_ctx=options.N_CTX, depth=options.PROMPT_DEPTH, init=init
    )
    classifier = model(backbone, trainer.prompts(context, learned=True), renormalize=True, **more)
    freeze_except(classifier)
    prompts.check_texts(classifier.bank.tokens)
    return classifier


def released_prompts(
    state: dict[str, Tensor], model: Any, method: str = "MaPLe"
) -> dict[str, Tensor]:
    """Translate the released layout: text prompts and maps, among a whole CLIP's weights.

    Args:
        state: Of a checkpoint; returned as it is if it has no ``prompt_learner.ctx``.
        model: Gets the weights.
        method: Section of the config, for the message.

    Raises:
        ValueError: It has another number of prompts or sets.
    """
    deeper = "prompt_learner.compound_prompts_text.{}"
    sets = stacked_sets(state, "prompt_learner.ctx", deeper, start=0)
    if sets is None:
        return state
    own = model.backbone.text_prompts.vectors
    check_sets("text", sets, own, f"TRAINER.{method}.PROMPT_DEPTH and N_CTX")
    converted = {"backbone.text_prompts.vectors": sets}
    for name, tensor in state.items():
        if match := _MAP.match(name):
            index = 0 if match[1] is None else int(match[1]) + 1
            converted[f"backbone.vision_prompts.maps.{index}.{match[2]}"] = tensor
    return converted


@TRAINER_REGISTRY.register()
class MaPLe(CLIPTrainer):
    """Coupled prompts (:class:`clip.CoupledPrompts`); the loss is the cross entropy of s f h^T.

    Config, ``TRAINER.MaPLe``, released keys: N_CTX prompts in each tower; PROMPT_DEPTH layers with
    prompts of their own (1 is the input alone); CTX_INIT, the words before the class name that the
    text prompts start from, with 2 prompts "a photo", while "of a" stays; PREC.
    """

    needs_transformers = True
    released_in_half = True
    model_name = "MultiModalPromptLearner"  # the released checkpoints' folder
    protocols: ClassVar[tuple[str, ...]] = ("base2novel", "cross_dataset")
    defaults = {
        "N_CTX": text_prompts(2),
        "PROMPT_DEPTH": depth(9, "layers with prompts of their own"),
        "CTX_INIT": context_words("a photo of a"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with coupled prompts."""
        return maple_clip(self, self.options)

    def forward_loss(self, image: Any, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return classification_loss(self.model.training_output(image), label)

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout, see :func:`released_prompts`."""
        converted = released_prompts(state_dict, self.model, type(self).__name__)
        return super().convert_state_dict(converted)
