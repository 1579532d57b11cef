"""RAda, full fine-tuning: the mask on a classifier, alone and then with everything else.

"One Last Attention for Your Vision-Language Model", ICCV 2025, arXiv:2507.15480.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from dassl.config.schema import Option
from dassl.engine import TRAINER_REGISTRY, StepOutput, read_result
from trainers.base import CLIPTrainer
from trainers.finetuning import recipe
from trainers.finetuning.recipe import FineTuning, classifier_loss
from trainers.finetuning.stages import FirstStageError, read_first_stage
from trainers.rada import MASK_DEFAULTS, mask_loss, rational_head

DEFAULTS = {**recipe.DEFAULTS, **MASK_DEFAULTS}


@TRAINER_REGISTRY.register()
class RAdaFFT(CLIPTrainer):
    """Stage 1, the paper's "RAda": the mask over R = f * W trains on a frozen encoder.

    ``loss = CE + ALPHA * regulariser``. Config, ``TRAINER.RAdaFFT``: TRAIN_CLASSIFIER, whether W
    trains too, which the paper leaves open; TEMPLATES; and the mask's keys, see
    :class:`trainers.rada.RAda`. ALPHA and TEMP are at the top level.
    """

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = {
        **DEFAULTS,
        "TRAIN_CLASSIFIER": Option(False, None, "W trains too"),
    }
    trains = ("head",)
    frozen_image_encoder = True

    def build_model(self) -> nn.Module:
        """The encoder, W and the mask."""
        parts = ("head", "classifier") if self.options.TRAIN_CLASSIFIER else self.trains
        return self.recipe.linear_clip(parts, head=partial(rational_head, self.cfg, self.options))

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """One training step: images (B, 3, S, S) or cached features (B, D), labels (B,)."""
        return mask_loss(self.model.output(image), label, self.cfg.ALPHA)


@TRAINER_REGISTRY.register()
class RAdaFT(CLIPTrainer):
    """Stage 2, the paper's "RAda-FT": encoder, W and mask train on, with cross entropy alone.

    Its first stage is a run of :class:`RAdaFFT`. The paper takes the adapter "after 5 epochs":
    FIRST_STAGE.CONFIG names a run with a schedule of 5 epochs (``RAdaFFT/fft_5epochs``), or the one
    of 10 epochs, whose FIRST_STAGE.EPOCH 5 is a snapshot (``RAdaFT/fft_snapshot``).

    Config, ``TRAINER.RAdaFT``: TEMPLATES and the mask's keys, which must be the first stage's.
    """

    protocols = ("fft",)
    recipe_type = FineTuning
    defaults = DEFAULTS
    trains = ("encoder", "classifier", "head")
    forward_loss = classifier_loss

    def build_model(self) -> nn.Module:
        """The encoder, W and the mask, all of which train."""
        mask = partial(rational_head, self.cfg, self.options)
        return self.recipe.linear_clip(self.trains, head=mask)

    def first_stage(self) -> dict[str, Tensor]:
        """The mask of the run in FIRST_STAGE.DIR, and its W if that trained.

        Raises:
            FirstStageError: There is none, or its mask is computed in another way.
        """
        state = read_first_stage(self, ("RAdaFFT",))
        config = (read_result(self.cfg.FIRST_STAGE.DIR) or {}).get("config") or {}
        # Weights fit whatever these are, so that nothing else would notice a difference.
        there = {"TEMP": config.get("TEMP"), **config.get("TRAINER", {}).get("RAdaFFT", {})}
        here = {"TEMP": self.cfg.TEMP, **self.options}
        for key in ("TEMP", "HEADS", "SOFTMAX", "QUERIES"):
            if there.get(key) is not None and list_of(there[key]) != list_of(here[key]):
                raise FirstStageError(
                    f"FIRST_STAGE.DIR: the mask of {self.cfg.FIRST_STAGE.DIR} was trained with "
                    f"{key} {there[key]}, this run has {here[key]}; set both to the same"
                )
        return state


def list_of(value: Any) -> Any:
    """Tuples as lists: a config has the one, its record in a file the other."""
    return list(value) if isinstance(value, tuple | list) else value
