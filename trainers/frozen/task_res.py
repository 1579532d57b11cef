"""TaskRes: a residual is added to each class's text feature.

"Task Residual for Tuning Vision-Language Models", CVPR 2023, arXiv:2211.10277.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clip
from clip.text import text_tower
from dassl.config.schema import PATH, Option, number
from dassl.engine import TRAINER_REGISTRY, StepOutput
from dassl.utils import load_checkpoint
from trainers.base import CLIPTrainer, released
from trainers.frozen.recipe import FittedHead
from trainers.frozen.residual import ResidualHead, residual_clip


def set_projection(backbone: clip.Backbone, path: str) -> None:
    """Replace the text projection (W, D) by the one of an enhanced base.

    Args:
        backbone: The model; changed.
        path: The release's ``strong_base/<dataset>/<backbone>_<S>shots/model.pth.tar``, in whose
            ``state_dict`` ``weight`` (D, W) is a linear layer's.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Texts are given as features, the model has no such projection, or the file has
            none or one of another size.
    """
    key = f"TRAINER.TaskRes.ENHANCED_BASE {path}"
    own = getattr(text_tower(backbone.model), "text_projection", None)
    if not isinstance(own, nn.Parameter):
        raise ValueError(
            f"{key}: {backbone.name} has no text projection of CLIP's form that this file could "
            "replace; set ENHANCED_BASE '' for the texts that there are"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"{key} is no file")
    saved = load_checkpoint(path)
    found = saved.get("state_dict", saved) if isinstance(saved, dict) else {}
    weight = found.get("weight") if isinstance(found, dict) else None
    if not isinstance(weight, Tensor):
        raise ValueError(f"{key} holds no state_dict with 'weight', a tuned text projection")
    if weight.T.shape != own.shape:
        raise ValueError(
            f"{key} is for text features of width {len(weight)} from a tower of {weight[0].numel()}"
            f"; {backbone.name} makes {own.shape[1]} from {own.shape[0]}"
        )
    with torch.no_grad():
        own.copy_(weight.T)


@TRAINER_REGISTRY.register()
class TaskRes(CLIPTrainer):
    """CE(s f unit(h + ALPHA r)^T, y), r (K, D) trains; the regular base, which the field cites.

    h are means over templates of features that are not normalised: CoOp's template, and on ImageNet
    open_clip's seven with "a photo of a {}.". The release leaves underscores in class names; here
    they are spaces, as in all methods. Nothing is searched: ALPHA is the authors', 1 on
    OxfordFlowers. ENHANCED_BASE is a file of the release's "enhanced base", which h are then made
    with, in training and in every test of what was trained.

    With ``--feature-cache`` views take turns; as many as epochs give what pictures give.
    """

    model_name = "prompt_learner"  # the released checkpoints' folder
    recipe_type = FittedHead
    frozen_image_encoder = True
    released_layout = released.task_res
    defaults = {
        "ALPHA": Option(0.5, number(above=0), "factor of the residuals"),
        "ENHANCED_BASE": Option("", PATH, "file of a tuned text projection; '' for the model's"),
    }

    def load_backbone(self) -> clip.Backbone:
        """The pre-trained model, with the tuned text projection if there is one."""
        backbone = super().load_backbone()
        if self.options.ENHANCED_BASE:
            set_projection(backbone, self.options.ENHANCED_BASE)
        return backbone

    def build_model(self) -> nn.Module:
        """The frozen backbone and the residuals, the only part that trains."""
        return residual_clip(self, ResidualHead, self.options.ALPHA, "a photo of a {}.")

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        logits = self.model(image)
        return StepOutput(F.cross_entropy(logits, label), logits)
