"""WiSE-FT: weights between two models ("Robust fine-tuning of zero-shot models", CVPR 2022).

Wortsman et al., arXiv:2109.01903.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dassl.config.schema import PATH, Option, number
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import trainable_state
from trainers.base import CLIPTrainer
from trainers.finetuning.recipe import (
    DEFAULTS,
    FineTuning,
    classifier_loss,
    encoder_and_classifier,
)
from trainers.finetuning.stages import read_first_stage, read_stage

# Methods between whose weights and the pre-trained ones a line is drawn.
FINE_TUNED = ("FT", "LPFT", "L2SP")


def interpolate(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """``(1 - alpha) start + alpha end``, exactly one of them at 0 and 1.

    Args:
        start: Weights, such as the pre-trained model's.
        end: Weights with the same names and shapes, such as the fine-tuned model's.
        alpha: Any number; outside of 0 to 1 it extrapolates.

    Raises:
        ValueError: Names or shapes differ.
    """
    differing = sorted(start.keys() ^ end.keys())
    differing += [n for n in start if n in end and start[n].shape != end[n].shape]
    if differing:
        raise ValueError(
            f"The two models differ in {len(differing)} weights ({', '.join(differing[:3])}) and "
            "have nothing between them; take two runs of the same method and classes"
        )
    # The ends are copied, as interpolating to 0 or 1 could round; whole numbers (counters) too.
    return {
        name: torch.lerp(value, end[name].to(value), alpha)
        if value.is_floating_point() and alpha not in (0, 1)
        else (end[name] if alpha == 1 else value).clone()
        for name, value in start.items()
    }


@TRAINER_REGISTRY.register()
class WiseFT(CLIPTrainer):
    """Trains nothing: (1 - ALPHA) times the pre-trained model plus ALPHA times a fine-tuned one.

    The fine-tuned one is the run in FIRST_STAGE.DIR, of ``FT``, ``LPFT`` or ``L2SP``. Config,
    ``TRAINER.WiseFT``: ALPHA; START, directory of a run in the pre-trained model's place;
    TEMPLATES, as the run had them. ``scripts/wise_ft.py`` draws accuracy over ALPHA, of any run.
    """

    protocols = ("fft",)
    recipe_type = FineTuning
    trains = ("encoder", "classifier")
    build_model = encoder_and_classifier
    forward_loss = classifier_loss
    defaults = {
        **DEFAULTS,
        "ALPHA": Option(0.5, number(0, 1), "share of the fine-tuned model"),
        "START": Option("", PATH, "directory of a run in the pre-trained model's place"),
    }

    def first_stage(self) -> dict[str, Tensor]:
        """The weights between the two models."""
        end, start = read_first_stage(self, FINE_TUNED), trainable_state(self.model)
        if self.options.START:
            meta, key = self.checkpoint_meta(), "TRAINER.WiseFT.START"
            start |= read_stage(self.options.START, 0, FINE_TUNED, self.model, meta, key)
        return interpolate(start, end, self.options.ALPHA)

    def before_train(self) -> None:
        """Load the weights; no epoch is left to do."""
        super().before_train()
        self.start_epoch = self.max_epoch

    def after_train(self) -> None:
        """Save and test."""
        self.save_model(self.max_epoch - 1, self.output_dir)
        super().after_train()
