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

from clip import Backbone, adapters_disabled, attach_context, freeze_except
from clip.prompts import template_prompts
from clip.text import unit_norm
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, released
from trainers.base.options import context_words, precision, text_prompts, weight
from trainers.base.templates import DEFAULT, KGCOOP
from trainers.coop import ContextCLIP, first_words
from trainers.losses import cosine_distance


class TaughtCLIP(ContextCLIP):
    """CLIP with a learned context, and the frozen class weights of a template.

    Args:
        backbone: With a context attached.
        classnames: K names.
        template: The teacher's, with ``{}`` for the name.
    """

    _teacher: Tensor | None = None

    def __init__(self, backbone: Backbone, classnames: list[str], template: str) -> None:
        super().__init__(backbone, classnames)
        prompts = template_prompts(classnames, template)
        self.teacher_bank = backbone.text_bank(prompts)

    @torch.no_grad()
    def teacher_weights(self) -> Tensor:
        """h0: the pre-trained model's unit-norm features of the template, (K, D); made once."""
        if self._teacher is None:
            with adapters_disabled(self.backbone):
                self._teacher = self.teacher_bank.encode_all(self.backbone)
        return self._teacher


def taught_clip(
    backbone: Backbone, classnames: list[str], template: str, **context: Any
) -> TaughtCLIP:
    """The same, with ``context`` as :func:`clip.attach_context` takes it."""
    attach_context(backbone, **context)
    freeze_except(backbone)
    return TaughtCLIP(backbone, classnames, template)


def kgcoop_clip(
    backbone: Backbone, classnames: list[str], options: CfgNode, template: str
) -> TaughtCLIP:
    """What the ``options`` of :class:`KgCoOp` describe, with the teacher's template."""
    return taught_clip(backbone, classnames, template, **first_words(options))


def knowledge_distance(model: TaughtCLIP, text: Tensor) -> Tensor:
    """1 - mean cos(h, h0) of a step's text features h' (K, D)."""
    return cosine_distance(unit_norm(text), model.teacher_weights())


@TRAINER_REGISTRY.register()
class KgCoOp(CLIPTrainer):
    """KgCoOp: CE(s f h^T, y) + W (1 - mean cos(h, h0)), h of the context, h0 of CoOp's templates.

    Only the describable textures have another template, "a photo of a {}, a type of texture.". A
    template that the user chose for the dataset (``DATASET.PROMPT_TEMPLATE``) is the reference's.

    Config, ``TRAINER.KgCoOp``: CTX_INIT sets M by the number of its words; W is 8 in the released
    scripts, 1 in the code. Until August 2023 the release stepped two schedulers on one optimiser,
    which squares the cosine; the schedule here is its present one. There the reference features
    always come from a CLIP in fp16, here from one of the run's precision.
    """

    model_name = "prompt_learner"  # the released checkpoints' folder
    frozen_image_encoder = True
    needs_text_tower = True
    released_in_half = True
    released_layout = released.kgcoop
    defaults = {
        "N_CTX": text_prompts(4),
        "CTX_INIT": context_words("a photo of a"),
        "W": weight(8.0, "the distance to the frozen text features"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with a context, and the reference."""
        backbone = self.load_backbone()
        template = self.template(KGCOOP.get(self.cfg.DATASET.NAME, DEFAULT))
        return kgcoop_clip(backbone, self.dm.dataset.classnames, self.options, template)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return [
            f"W {self.options.W}; the released scripts have 8, the released code 1",
            "one scheduler steps, as released since August 2023; before, two squared the cosine",
        ]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        f, h = self.model.raw_features(image)  # (B, D), (K, D)
        logits = self.model.similarity(f, h)
        ce = F.cross_entropy(logits, label)
        distance = knowledge_distance(self.model, h)
        return StepOutput(ce + self.options.W * distance, logits, {"ce": ce, "knowledge": distance})
