"""Full fine-tuning, the plain methods: an image encoder and a classifier W made of class names."""

from __future__ import annotations

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY, StepOutput
from trainers.base import CLIPTrainer
from trainers.base.options import weight
from trainers.finetuning.recipe import (
    DEFAULTS,
    FineTuning,
    classifier_loss,
    encoder_and_classifier,
)
from trainers.finetuning.stages import read_first_stage


@TRAINER_REGISTRY.register()
class LP(CLIPTrainer):
    """Linear probe: W trains, the encoder does not."""

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = DEFAULTS
    trains = ("classifier",)
    frozen_image_encoder = True
    build_model = encoder_and_classifier
    forward_loss = classifier_loss


@TRAINER_REGISTRY.register()
class FT(CLIPTrainer):
    """Fine-tuning of encoder and W."""

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = DEFAULTS
    trains = ("encoder", "classifier")
    build_model = encoder_and_classifier
    forward_loss = classifier_loss


@TRAINER_REGISTRY.register()
class LPFT(CLIPTrainer):
    """Fine-tuning from a linear probe (Kumar et al., ICLR 2022, arXiv:2202.10054)."""

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = DEFAULTS
    trains = ("encoder", "classifier")
    build_model = encoder_and_classifier
    forward_loss = classifier_loss

    def first_stage(self) -> dict[str, Tensor]:
        """W of the linear probe."""
        return read_first_stage(self, ("LP",))


@TRAINER_REGISTRY.register()
class L2SP(CLIPTrainer):
    """Fine-tuning held near its starting point (Li et al., ICML 2018, arXiv:1802.01483).

    ``loss = CE + BETA / 2 * sum (theta - theta_0)^2`` over encoder and W, both of which have a
    starting point here. It stands in for weight decay, whose point is zero.
    """

    protocols = ("fft",)
    recipe_type = FineTuning
    trains = ("encoder", "classifier")
    build_model = encoder_and_classifier
    defaults = {
        **DEFAULTS,
        "BETA": weight(0.01, "half the squared distance to the start"),
    }
    _start: list[Tensor] | None = None

    def start(self) -> list[Tensor]:
        """theta_0, what the parameters were when this was first called."""
        if self._start is None:
            self.model.class_weights()
            self._start = [p.detach().clone() for p in self.model.parameters() if p.requires_grad]
        return self._start

    def before_train(self) -> None:
        """Remember the starting point, even if an earlier process went on from there."""
        self.start()
        super().before_train()

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S), labels (B,)."""
        start = self.start()
        out = classifier_loss(self, image, label)
        now = [p for p in self.model.parameters() if p.requires_grad]
        moved = [(p - p0).square().sum() for p, p0 in zip(now, start, strict=True)]
        penalty = 0.5 * self.options.BETA * sum(moved, out.loss.new_zeros(()))
        return StepOutput(out.loss + penalty, out.logits, {"ce": out.loss, "l2sp": penalty})
