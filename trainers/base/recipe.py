"""What surrounds a method's model and loss, in families of methods that share more than these."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from torch import Tensor
from yacs.config import CfgNode

import clip
from trainers.base.class_rows import ClassRows


class Recipe:
    """Where training starts, what classifies test images, what a result tells of both.

    A trainer holds one and asks it; this one changes nothing. Three families replace what they
    need: :class:`trainers.finetuning.recipe.FineTuning`,
    :class:`trainers.frozen.recipe.FittedHead`, :class:`trainers.test_time.episodes.Episodes`.
    So every method is a direct subclass of :class:`trainers.base.CLIPTrainer`.

    Args:
        trainer: The trainer that holds it, of which only the class is there yet.
    """

    # Whether training is steps of ``forward_loss``; else the model is fitted at once.
    takes_steps: ClassVar[bool] = True
    # Why no fixed graph does what the family does on a test image; "" if one does (``--export``).
    no_graph: ClassVar[str] = ""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @property
    def method(self) -> str:
        """Name of the trainer, for messages and as its section of the config."""
        return type(self.trainer).__name__

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what the family cannot work with; called before anything is built."""

    def prepare(self) -> None:
        """Change what was built; called at the end of the trainer's construction."""

    def before_train(self) -> None:
        """Bring in the weights that training starts from; called before a resume."""

    def finish(self) -> None:
        """Complete what was trained; called after the last epoch, before the final test."""

    def load(self, directory: str | os.PathLike[str] | None, epoch: int | None) -> bool:
        """Prepare for the weights in a run directory; True if it has loaded them itself."""
        return False

    def text_bank(self, found: clip.TextBank | None) -> clip.TextBank | None:
        """The texts that stand for the classes, by default those found in the model."""
        return found

    def rows_by_class(self, found: ClassRows) -> ClassRows:
        """What the model learns with a row per class, by default the contexts found in it."""
        return found

    def logits(self, input: Tensor) -> Tensor:
        """Logits for evaluation of what a test loader gives."""
        return self.trainer.model(input)

    def extra_result(self) -> dict[str, Any]:
        """Further keys of the result."""
        return {}
