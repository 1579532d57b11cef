"""MaPLe: learned text prompts, and vision prompts that are linear maps of them.

"MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from yacs.config import CfgNode

from clip import Backbone, attach_coupled_prompts, freeze_except
from clip.adapters.prompts import text_context
from clip.prompts import template_prompts
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, PromptedCLIP, released
from trainers.base.options import context_words, depth, precision, text_prompts
from trainers.losses import classification_loss


def maple_clip(
    backbone: Backbone,
    classnames: list[str],
    options: CfgNode,
    model: type[PromptedCLIP] = PromptedCLIP,
    **more: Any,
) -> PromptedCLIP:
    """The frozen backbone with coupled prompts, and the classes behind them.

    The options are N_CTX, PROMPT_DEPTH and CTX_INIT, see :class:`MaPLe`. The result is a ``model``,
    a class that may take ``more`` arguments.
    """
    init, words = text_context(backbone, options.N_CTX, options.CTX_INIT)
    prompts, _ = attach_coupled_prompts(
        backbone, n_ctx=options.N_CTX, depth=options.PROMPT_DEPTH, init=init
    )
    # No template of the user's: learned prompts take the place of these very words.
    texts = template_prompts(classnames, f"{words} {{}}.")
    classifier = model(backbone, texts, renormalize=True, **more)
    freeze_except(classifier)
    prompts.check_texts(classifier.bank.tokens)
    return classifier


@TRAINER_REGISTRY.register()
class MaPLe(CLIPTrainer):
    """Coupled prompts (:class:`clip.CoupledPrompts`); the loss is the cross entropy of s f h^T.

    Config, ``TRAINER.MaPLe``, released keys: PROMPT_DEPTH 1 is the input alone; 2 prompts learn the
    first words of CTX_INIT, "a photo", while "of a" stays.
    """

    needs_transformers = True
    released_in_half = True
    model_name = "MultiModalPromptLearner"  # the released checkpoints' folder
    released_layout = released.maple
    protocols: ClassVar[tuple[str, ...]] = ("base2novel", "cross_dataset")
    defaults = {
        "N_CTX": text_prompts(2),
        "PROMPT_DEPTH": depth(9, "layers with prompts of their own"),
        "CTX_INIT": context_words("a photo of a"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with coupled prompts."""
        return maple_clip(self.load_backbone(), self.dm.dataset.classnames, self.options)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        return classification_loss(self.model.output(image), label)
