"""KgCoOp: a context whose class weights stay near those of hand-made prompts.

"Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR 2023,
arXiv:2303.13283.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from clip import Backbone, TextBank, adapters_disabled
from clip.prompts import template_prompts
from clip.text import unit_norm
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer
from trainers.base.options import context_words, precision, text_prompts, weight
from trainers.base.templates import DEFAULT, KGCOOP
from trainers.coop import (
    ContextCLIP,
    ContextTrainer,
    context_backbone,
    first_words,
    released_context,
)
from trainers.losses import cosine_distance

_UNUSED = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")


class TaughtCLIP(ContextCLIP):
    """CLIP with a learned context, and the frozen class weights of a template.

    Args:
        backbone: With a context attached.
        classnames: K names.
        template: With ``{}`` for the name.
    """

    _teacher: Tensor | None = None

    def __init__(self, backbone: Backbone, classnames: list[str], template: str) -> None:
        super().__init__(backbone, classnames)
        prompts = template_prompts(classnames, template)
        self.teacher_bank = TextBank(prompts, backbone.tokenize, backbone.end_of_text())

    @torch.no_grad()
    def teacher_weights(self) -> Tensor:
        """h0: the pre-trained model's unit-norm features of the template, (K, D); made once."""
        if self._teacher is None:
            with adapters_disabled(self.backbone):
                self._teacher = self.teacher_bank.encode_all(self.backbone)
        return self._teacher


def taught_clip(trainer: CLIPTrainer, template: str, **context: Any) -> TaughtCLIP:
    """A backbone with a context, and its teacher.

    Args:
        trainer: Knows backbone, dataset and classes.
        template: The teacher's, with ``{}`` for the name.
        context: Arguments of :func:`clip.attach_context`.
    """
    backbone = context_backbone(trainer, **context)
    return TaughtCLIP(backbone, trainer.dm.dataset.classnames, template)


def kgcoop_clip(trainer: CLIPTrainer, options: CfgNode) -> TaughtCLIP:
    """What the ``options`` of :class:`KgCoOp` describe."""
    template = trainer.template(KGCOOP.get(trainer.cfg.DATASET.NAME, DEFAULT))
    return taught_clip(trainer, template, **first_words(options))


def knowledge_distance(model: TaughtCLIP, text: Tensor) -> Tensor:
    """1 - mean cos(h, h0) of a step's text features h' (K, D)."""
    return cosine_distance(unit_norm(text), model.teacher_weights())


def released_kgcoop(state: dict[str, Tensor], model: nn.Module, method: str) -> dict[str, Tensor]:
    """:func:`trainers.coop.released_context` for its release, with weights that nothing used."""
    return released_context(state, model, method, ignored=_UNUSED)


@TRAINER_REGISTRY.register()
class KgCoOp(ContextTrainer):
    """KgCoOp: CE(s f h^T, y) + W (1 - mean cos(h, h0)), h of the context, h0 of CoOp's templates.

    Only the describable textures have another template, "a photo of a {}, a type of texture.". A
    template that the user chose for the dataset (``DATASET.PROMPT_TEMPLATE``) is the reference's.

    Config, ``TRAINER.KgCoOp``: N_CTX, M; CTX_INIT, words to start from, which set M; W (8 in the
    released scripts, 1 in the code); PREC. Until August 2023 the release stepped two schedulers on
    one optimiser, which squares the cosine; the schedule here is its present one. There the
    reference features always come from a CLIP in fp16, here from one of the run's precision.
    """

    defaults = {
        "N_CTX": text_prompts(4),
        "CTX_INIT": context_words("a photo of a"),
        "W": weight(8.0, "the distance to the frozen text features"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with a context, and the reference."""
        return kgcoop_clip(self, self.options)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [
            f"W {self.options.W}; the released scripts have 8, the released code 1",
            "one scheduler steps, as released since August 2023; before, two squared the cosine",
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        f, h = self.model.features(image)
        logits = self.model.similarity(f, h)
        ce = F.cross_entropy(logits, label)
        distance = knowledge_distance(self.model, h)
        return StepOutput(ce + self.options.W * distance, logits, {"ce": ce, "knowledge": distance})

    def convert_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the released layout, see :func:`released_kgcoop`."""
        return released_kgcoop(state_dict, self.model, type(self).__name__)
