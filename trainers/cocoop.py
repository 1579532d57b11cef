"""CoCoOp: a context that depends on the image.

"Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import Backbone, attach_context, freeze_except
from clip.text import unit_norm
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer, released
from trainers.base.options import context_words, precision, text_prompts
from trainers.coop import ContextCLIP, context_loss, first_words


class ConditionalCLIP(ContextCLIP):
    """CLIP whose class weights are each image's own."""

    def raw_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image features f' (B, D) and text features h' (B, K, D) given them, not normalised."""
        f = self.raw_image_features(image)  # (B, D)
        context: Any = self.backbone.text_prompts
        return f, context.encode_pairs(self.backbone, self.bank, unit_norm(f))

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits s f_i . h_ik of features (B, D) and (B, K, D): (B, K)."""
        return self.scale * torch.einsum("bd,bkd->bk", unit_norm(image), unit_norm(text))

    def forward(self, image: Tensor) -> Tensor:
        """Logits for evaluation: (B, 3, S, S), or cached features (B, D) -> (B, K)."""
        context: Any = self.backbone.text_prompts
        if not context.enabled:  # the pre-trained model's class weights, the same for all images
            return super().forward(image)
        return self.similarity(*self.raw_features(image))


def cocoop_clip(backbone: Backbone, classnames: list[str], options: CfgNode) -> ConditionalCLIP:
    """What the ``options`` of :class:`CoCoOp` describe."""
    attach_context(backbone, **first_words(options), conditional=True)
    freeze_except(backbone)
    return ConditionalCLIP(backbone, classnames)


@TRAINER_REGISTRY.register()
class CoCoOp(CLIPTrainer):
    """CoCoOp: cross entropy on s f_i . h_ik, where h_ik is of ``[context + meta(f_i)] name_k.``.

    The meta network is Linear(D, D / 16), ReLU, Linear(D / 16, W) on the unit-norm image feature.
    It starts at PyTorch's random values, not at zero, so that training does not start from CLIP.
    Batches of one image are part of the recipe: larger ones mean fewer updates per epoch.

    Config, ``TRAINER.CoCoOp``: the words of CTX_INIT set M by their number.
    """

    model_name = "prompt_learner"  # the released checkpoints' folder
    frozen_image_encoder = True
    needs_text_tower = True
    released_in_half = True
    released_layout = released.coop
    forward_loss = context_loss
    defaults = {
        "N_CTX": text_prompts(4),
        "CTX_INIT": context_words("a photo of a"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with a conditional context, and the class names behind it."""
        return cocoop_clip(self.load_backbone(), self.dm.dataset.classnames, self.options)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        batch = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        return [f"batch size {batch}; the recipe's is 1, to save memory"]
