"""ProVP-Ref: progressive vision prompts, with reformation of the image features.

"Progressive Visual Prompt Learning with Contrastive Feature Re-formation", IJCV 2024,
arXiv:2304.08386.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip import attach_progressive_prompts, freeze_except
from clip.prompts import template_prompts
from dassl.config.schema import Option, number
from dassl.engine import TRAINER_REGISTRY, StepOutput
from dassl.engine.distributed import gather_features
from dassl.utils.distributed import first_row
from trainers.base import CLIPTrainer, FrozenTextCLIP, released
from trainers.base.options import depth, precision, vision_prompts, weight
from trainers.base.templates import DEFAULT, HINT_FIRST


@TRAINER_REGISTRY.register()
class ProVP(CLIPTrainer):
    """Progressive prompts (:class:`clip.ProgressivePrompts`) and a contrast with frozen features.

    CE(s f h^T, y) + REF_WEIGHT CE(f f0^T, (1, .., B)), where f0 are the frozen features of the same
    images. As in the released code the second term uses plain cosines, without s or a temperature,
    and in one direction. h are frozen features of one template per dataset, or of the one that the
    user chose (``DATASET.PROMPT_TEMPLATE``).

    By an error, with 4 prompts or fewer the release changes patch tokens only; here any N_CTX
    works. It tests after every epoch and reports the best, so that its published numbers are chosen
    on the test set. Here the last epoch counts, as everywhere.
    """

    needs_transformers = True
    compares_images = True
    model_name = "Prompt_learner"  # the released checkpoints' folder
    released_layout = released.provp
    protocols = ("base2novel", "few_shot")
    defaults = {
        "N_CTX": vision_prompts(16),
        "PROMPT_DEPTH": depth(12, "vision layers with prompts of their own"),
        "ALPHA": Option(0.01, number(0, below=1), "share of the previous layer's prompts"),
        "REF_WEIGHT": weight(1.0, "the contrast with frozen features"),
        "PREC": precision("amp"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone with vision prompts, and the frozen class weights."""
        options, dataset = self.options, self.dm.dataset
        backbone = self.load_backbone()
        attach_progressive_prompts(
            backbone, n_ctx=options.N_CTX, depth=options.PROMPT_DEPTH, alpha=options.ALPHA
        )
        freeze_except(backbone)
        template = self.template(HINT_FIRST.get(self.cfg.DATASET.NAME, DEFAULT))
        prompts = template_prompts(dataset.classnames, template)
        return FrozenTextCLIP(backbone, prompts, renormalize=True)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        return ["the last epoch is tested; published numbers are the best of all, on the test set"]

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,).

        With several processes, each contrasts its own images with the frozen features of all.
        """
        model = self.model
        f, f0 = model.image_features(image), model.frozen_image_features(image)  # (B, D)
        output = model.head(f, model.training_weights(), model.scale)
        # Image i of this process is row first_row + i among those of all processes.
        same = first_row(len(f)) + torch.arange(len(f), device=f.device)
        parts = {
            "ce": F.cross_entropy(output.logits, label),
            "ref": self.options.REF_WEIGHT * F.cross_entropy(f @ gather_features(f0).T, same),
        }
        return StepOutput(parts["ce"] + parts["ref"], output.logits, parts)
