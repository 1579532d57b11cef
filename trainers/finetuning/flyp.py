"""FLYP: fine-tuning as the model was pre-trained, by contrast of images and captions.

"Finetune like you pretrain", Goyal et al., CVPR 2023, arXiv:2212.00638. Notation: B images and
their captions, D embedding width, s the scale of the logits.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.config.schema import Option, one_of
from dassl.engine import TRAINER_REGISTRY, StepOutput
from dassl.engine.distributed import gather_features
from dassl.utils.distributed import first_row
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base.options import templates
from trainers.finetuning.recipe import refuse_half_weights

POSITIVES = ("pair", "class", "mask")


def contrastive_loss(f: Tensor, h: Tensor, label: Tensor, scale: Tensor, positives: str) -> Tensor:
    """Cross entropy of s f h^T over captions and over images, averaged.

    Args:
        f: Image features, unit norm, (B, D).
        h: Features of one caption per image, unit norm, (B, D).
        label: Classes of the images, (B,).
        scale: s.
        positives: What the captions of other images of the same class are: ``pair``, negatives,
            as in CLIP's own loss; ``class``, positives with equal shares of the target; ``mask``,
            neither, so that they are left out of the denominator.
    """
    logits = scale * f @ h.T  # (B, B)
    same = label[:, None] == label  # (B, B)
    own = torch.eye(len(label), dtype=torch.bool, device=label.device)
    if positives == "mask":
        logits = logits.masked_fill(same & ~own, float("-inf"))
    if positives == "class":
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    index = torch.arange(len(label), device=label.device)
    return (F.cross_entropy(logits, index) + F.cross_entropy(logits.T, index)) / 2


class CaptionedCLIP(PromptedCLIP):
    """Both encoders, with a classifier that is rebuilt from the text encoder to evaluate."""

    def caption_features(self, prompts: Tensor) -> Tensor:
        """Unit-norm features of the prompts numbered so, each encoded once: (B,) -> (B, D)."""
        distinct, place = prompts.unique(return_inverse=True)
        return self.bank.encode(self.backbone, distinct)[place.to(self.bank.tokens.device)]


@TRAINER_REGISTRY.register()
class FLYP(CLIPTrainer):
    """Each image against a caption of its label; both encoders and the scale s train.

    A caption is one of the class's ``TEMPLATES`` prompts (80 or 7, open_clip's ImageNet ensembles,
    and a template that the user chose for the dataset), drawn at each step; class weights for
    evaluation are their mean. Config, ``TRAINER.FLYP``: TEMPLATES; POSITIVES, what a class's
    further captions in a batch count as, see :func:`contrastive_loss`.
    """

    protocols = ("fft",)
    compares_images = True
    defaults: ClassVar[dict[str, Any]] = {
        "TEMPLATES": templates(80),
        "POSITIVES": Option("pair", one_of(*POSITIVES), "captions of a class in a batch"),
    }

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what the method cannot work with."""
        super().check_cfg(cfg)
        refuse_half_weights(cfg, "FLYP", True)

    def build_model(self) -> nn.Module:
        """Both encoders, all of which trains."""
        prompts = self.ensemble(self.dm.dataset.classnames, self.options.TEMPLATES)
        self.captions = self.register_generator("captions")
        model = CaptionedCLIP(self.load_backbone(), prompts, renormalize=True)
        return model.requires_grad_(True)

    def draw_captions(self, label: Tensor) -> Tensor:
        """Number of a prompt of each label's class, drawn uniformly: (B,) -> (B,), on the CPU."""
        bank, label = self.model.bank, label.cpu()
        draw = torch.rand(len(label), generator=self.captions)
        counts = bank.counts[label]
        return bank.starts[label] + (draw * counts).long().clamp(max=counts - 1)

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,).

        Of several processes each encodes its own images and captions and contrasts those of all.
        """
        model, first = self.model, first_row(len(label))
        whole = gather_features(label)
        # Drawn for all images on every process, so that they are those of a single process.
        own = self.draw_captions(whole)[first : first + len(label)]
        f = gather_features(model.image_features(image))  # (B, D), B over all processes
        h = gather_features(model.caption_features(own))  # (B, D)
        scale = model.backbone.logit_scale.exp()
        return StepOutput(contrastive_loss(f, h, whole, scale, self.options.POSITIVES))
