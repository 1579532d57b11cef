"""TaskRes: a residual is added to each class's text feature.

"Task Residual for Tuning Vision-Language Models", CVPR 2023, arXiv:2211.10277.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dassl.config.schema import Option, number
from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer, released
from trainers.frozen.recipe import FittedHead
from trainers.frozen.residual import ResidualHead, residual_clip


@TRAINER_REGISTRY.register()
class TaskRes(CLIPTrainer):
    """CE(s f unit(h + ALPHA r)^T, y), r (K, D) trains; the regular base, which the field cites.

    h are means over templates of features that are not normalised: CoOp's template, and on ImageNet
    open_clip's seven with "a photo of a {}.". The release leaves underscores in class names; here
    they are spaces, as in all methods. Its "enhanced" base, a text projection that was tuned
    before, is not here. Nothing is searched: ALPHA is the authors', 1 on OxfordFlowers.

    With ``--feature-cache`` views take turns; as many as epochs give what pictures give.
    """

    model_name = "prompt_learner"  # the released checkpoints' folder
    recipe_type = FittedHead
    frozen_image_encoder = True
    released_layout = released.task_res
    defaults = {"ALPHA": Option(0.5, number(above=0), "factor of the residuals")}

    def build_model(self) -> nn.Module:
        """The frozen backbone and the residuals, the only part that trains."""
        return residual_clip(self, ResidualHead, self.options.ALPHA, "a photo of a {}.")

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        logits = self.model(image)
        return StepOutput(F.cross_entropy(logits, label), logits)
