"""PromptSRC: prompts in both towers, held to the frozen model and averaged over training.

"Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023,
arXiv:2307.06948.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.config.schema import Option, number, one_of
from dassl.engine import TRAINER_REGISTRY, StepOutput
from dassl.engine.checkpoint import trainable_state
from dassl.engine.step import drop_caches
from trainers.base import CLIPTrainer, released, template_means
from trainers.base.averages import GaussianAverage
from trainers.base.options import weight
from trainers.heads import cosine_logits
from trainers.ivlp import PROMPT_DEFAULTS, both_towers

# The release's list is this one with "a photo of a {}." in front; only their mean matters.
TEACHER_TEMPLATES = OPENAI_IMAGENET_TEMPLATES[:60]


@TRAINER_REGISTRY.register()
class PromptSRC(CLIPTrainer):
    """IVLP's prompts with three regularisers and a Gaussian average.

    CE(s f h^T, y) + TEXT_LOSS_WEIGHT mean|h - h0| + IMAGE_LOSS_WEIGHT mean|f - f0| + KL(p0 || p)

    p is the softmax of s f h^T, p0 that of s f0 h0^T. The teacher is the same CLIP without prompts:
    f0 are its features of the same augmented images, h0 the mean of its features of 60 templates,
    normalised after the mean only. After the last epoch the prompts become the weighted mean of
    those at the end of all epochs (:func:`trainers.base.averages.gaussian_weights`). The release
    averages the frozen weights too, in half precision, which only adds rounding noise to them; here
    the prompts alone are averaged, and a resumed run goes on with its sum, which the release loses.

    Config, ``TRAINER.PromptSRC``: those of :class:`trainers.ivlp.IVLP` and, as released,
    TEXT_LOSS_WEIGHT, IMAGE_LOSS_WEIGHT, GPA_MEAN and GPA_STD, the average's mu and sigma. Ours:
    KL_MEAN ``entries`` (release: the divergence's sum over B K) or ``batch`` (over B, the usual).
    """

    needs_transformers = True
    released_in_half = True
    model_name = "VLPromptLearner"  # the released checkpoints' folder
    released_layout = released.ivlp
    defaults = {
        **PROMPT_DEFAULTS,
        "TEXT_LOSS_WEIGHT": weight(25.0, "the distance to the frozen text features"),
        "IMAGE_LOSS_WEIGHT": weight(10.0, "the distance to the frozen image features"),
        "GPA_MEAN": Option(15.0, None, "epoch that counts most in the average of the prompts"),
        "GPA_STD": Option(1.0, number(above=0), "deviation of the average's weights, in epochs"),
        "KL_MEAN": Option("entries", one_of("entries", "batch"), "what the divergence is over"),
    }

    def build_model(self) -> nn.Module:
        """IVLP's model; the teacher is the same, switched off."""
        options = self.options
        self.average = GaussianAverage(self.max_epoch, options.GPA_MEAN, options.GPA_STD)
        self._teacher_text: Tensor | None = None
        return both_towers(self.load_backbone(), self.prompts, options)

    def choices(self) -> list[str]:
        """See :meth:`trainers.base.CLIPTrainer.choices`."""
        divisor = {"entries": "B K, as released", "batch": "B, unlike the release, by B K"}
        return [f"the divergence is divided by {divisor[self.options.KL_MEAN]} (KL_MEAN)"]

    @property
    @torch.no_grad()
    def teacher_text(self) -> Tensor:
        """``h0``: the frozen model's features of the classes in 60 templates, (K, D)."""
        if self._teacher_text is None:
            names = self.dm.dataset.classnames
            self._teacher_text = unit_norm(template_means(self.model, names, TEACHER_TEMPLATES))
        return self._teacher_text

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        model, options = self.model, self.options
        h0, f0 = self.teacher_text, model.frozen_image_features(image)  # (K, D), (B, D)
        f, h = model.image_features(image), model.training_weights()  # (B, D), (K, D)
        logits, logits0 = cosine_logits(f, h, model.scale), cosine_logits(f0, h0, model.scale)
        log_p, log_p0 = logits.log_softmax(-1), logits0.log_softmax(-1)  # (B, K)
        divergence = F.kl_div(log_p, log_p0, reduction="sum", log_target=True)
        count = logits.numel() if options.KL_MEAN == "entries" else len(logits)
        parts = {
            "ce": F.cross_entropy(logits, label),
            "text": options.TEXT_LOSS_WEIGHT * F.l1_loss(h, h0),
            "image": options.IMAGE_LOSS_WEIGHT * F.l1_loss(f, f0),
            "kl": divergence / count,
        }
        return StepOutput(torch.stack(list(parts.values())).sum(), logits, parts)

    def after_epoch(self) -> None:
        """Add the prompts to the average; after the last epoch put it in their place."""
        average = self.average
        if not average.values and self.epoch > 0:  # resumed from a checkpoint, which has none
            average.start = self.epoch
            self.notes.add(f"prompts are averaged from epoch {self.epoch + 1} on")
        average.add(self.epoch, trainable_state(self.model))
        if self.epoch + 1 == self.max_epoch:
            print(f"PromptSRC: prompts averaged over {self.max_epoch} epochs")
            self.model.load_state_dict(average.values, strict=False)
            drop_caches(self.model)  # class weights made with the prompts of the last step
        super().after_epoch()

    def extra_state(self) -> dict[str, Any]:
        """The average so far, for a resumed run."""
        return {**super().extra_state(), **self.average.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`extra_state` returned."""
        super().load_extra_state(state)
        self.average.load_state_dict(state)
