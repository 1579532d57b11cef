"""How methods with a head of frozen features are fitted, chosen, saved and loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine.checkpoint import fitting_state, trainable_state
from dassl.utils.distributed import world_size
from trainers.base.class_rows import ClassRows, dataset_rows
from trainers.base.recipe import Recipe
from trainers.frozen.features import SplitFeatures
from trainers.frozen.model import ClassHead

# How the log and the reports name the images that a policy chooses on.
POLICIES = {
    "none": "the published defaults, nothing is searched",
    "min4": "min(shots, 4) validation images of each class",
    "shots": "as many validation images of each class as shots",
    "full": "the whole validation split",
    "released": "the TEST images, as some releases do",
}


class FittedHead(Recipe):
    """Fits the head of a :class:`trainers.frozen.model.FrozenCLIP` to features.

    A trainer defines what it needs of

    - ``fit()``: set the head from ``self.recipe.features``, before the first epoch; a resumed run
      does it again, which gives the same head, and goes on with the saved weights;
    - ``forward_loss``: a step of the epochs that follow; :class:`FittedAtOnce` has none;
    - ``choose(features, label)``: set the head's ``chosen`` numbers by accuracy on validation
      images, after the last epoch. ``VAL.POLICY`` says on which; under ``none`` it is not called.

    What is learned belongs to the classes of training. Others are told apart by the head's
    ``novel``, by default zero-shot, which the log says.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.features = SplitFeatures(trainer)
        self._validation: dict[str, Any] = {}

    @property
    def head(self) -> ClassHead:
        """The trainer's."""
        return self.trainer.model.head

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse several processes, and a choice of the epoch beside that of the numbers."""
        if world_size() > 1:
            raise ValueError(
                f"{self.method} is fitted to all training features at once, in one process; start "
                "it without torchrun"
            )
        if cfg.TEST.FINAL_MODEL == "best_val":
            raise ValueError(
                f"TEST.FINAL_MODEL is best_val, but {self.method} chooses on validation images as "
                "VAL.POLICY says, after its last epoch; set last_step"
            )

    # ------------------------------------------------------------------ fitting

    def before_train(self) -> None:
        """Check that there is something to choose on, then fit."""
        trainer = self.trainer
        if trainer.train_loader_x is None:
            return  # the engine's check, which follows, has the message
        if self.head.chosen:
            self._check_policy()
        if not self.takes_steps:
            trainer.start_epoch = trainer.max_epoch
        trainer.set_model_mode("eval")
        fit = getattr(trainer, "fit", None)
        if fit is not None:
            started = time.time()
            fit()
            print(f"{self.method}: fitted to the features in {time.time() - started:.1f} s")

    def validation(self) -> tuple[Tensor, Tensor] | None:
        """Features (N, D) and labels (N,) to choose on; None if VAL.POLICY is none."""
        policy = self.trainer.cfg.VAL.POLICY
        if policy == "none":
            return None
        features, label = self.features.of_split("test" if policy == "released" else "val")
        self._validation = {"images": len(label)}
        return features, label

    def finish(self) -> None:
        """Choose the numbers, after the last epoch, and save them with the weights."""
        trainer, head = self.trainer, self.head
        trainer.set_model_mode("eval")
        choose = getattr(trainer, "choose", None)
        images = self.validation() if choose is not None else None
        if choose is not None and images is not None:
            with torch.no_grad():
                choose(*images)
        if head.chosen:
            values = ", ".join(f"{name} {value:g}" for name, value in self.numbers().items())
            print(f"{self.method}: {values}; VAL.POLICY {self._words()}")
        if head.chosen or not self.takes_steps:
            trainer.save_model(trainer.max_epoch - 1, trainer.output_dir)

    def numbers(self) -> dict[str, float]:
        """The numbers that a search sets, by name."""
        # Rounded: single precision's 0.1 is not Python's.
        return {name: float(f"{getattr(self.head, name).item():.6g}") for name in self.head.chosen}

    def _check_policy(self) -> None:
        """Refuse to choose on validation images that there are none of."""
        trainer, policy = self.trainer, self.trainer.cfg.VAL.POLICY
        if policy not in ("none", "released") and trainer.val_loader is None:
            raise ValueError(
                f"VAL.POLICY is {policy}, but {trainer.cfg.DATASET.NAME} has no validation images "
                "(ImageNet never has); set VAL.POLICY none, which takes the published defaults. "
                "released would choose on the test images"
            )
        if policy == "released":
            trainer.notes.add(
                f"VAL.POLICY released: {', '.join(self.head.chosen)} of {self.method} are chosen "
                "on the TEST images; the accuracy is no estimate for new images"
            )

    def _words(self) -> str:
        policy = self.trainer.cfg.VAL.POLICY
        return f"{policy}: {POLICIES[policy]}"

    def extra_result(self) -> dict[str, Any]:
        """How the numbers were chosen and what they are, for methods that choose any."""
        if not self.head.chosen:
            return {}
        policy = {"policy": self.trainer.cfg.VAL.POLICY, "chosen": self.numbers()}
        return {"validation": policy | self._validation}

    # ------------------------------------------------------------------ classes of a checkpoint

    def load(self, directory: str | os.PathLike[str] | None, epoch: int | None) -> bool:
        """Load a release's own files, where a method's ``released_head(directory)`` finds them.

        It returns their path and the head's weights in them, or None.
        """
        released = getattr(self.trainer, "released_head", None)
        found = released(directory) if directory and released is not None else None
        if found is None:
            return False
        trainer, (path, weights) = self.trainer, found
        state = dict(trainable_state(trainer.model))
        state |= {f"head.{name}": value for name, value in weights.items()}
        state = trainer.match_classes(path, state, None)
        state = fitting_state(path, trainer.model, state, None, trainer.checkpoint_meta())
        trainer.checkpoints.put(trainer.model_name or self.method, state)
        print(f'Loading the released head from "{path}"')
        return True

    def rows_by_class(self, found: ClassRows) -> ClassRows:
        """All that is learned, which finds its classes by name as rows per class do."""
        return HeadClasses(**{field.name: getattr(found, field.name) for field in fields(found)})


class FittedAtOnce(FittedHead):
    """The same for methods without epochs: ``fit`` is all of the training."""

    takes_steps = False


@dataclass(frozen=True)
class HeadClasses(ClassRows):
    """Which classes a checkpoint's head was fitted for, and which of them the run has."""

    def match(
        self, path: Path, state_dict: dict[str, Tensor], classnames: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """Keep all weights, and let the head serve the run's classes; see `ClassRows.match`.

        ``classnames`` are the classes of training; None, for a released file, means the run's own.
        """
        head: Any = self.model.head
        own = list(self.dataset.classnames)
        if classnames is None and self.cfg.SUBSAMPLE_CLASSES == "new":
            classnames = [""] * len(own)  # whatever it was trained on, not on these
        elif classnames is None:
            self.notes.add(f'"{path}" does not name its classes: they are taken in label order')
            classnames = own
        rows = dataset_rows(self.dataset, classnames) if list(classnames) != own else None
        head.make_room(state_dict, "head.")
        head.take_classes(list(range(len(own))) if rows is None else rows, len(classnames))
        if not head.known:
            absent = sum(row is None for row in rows or ())
            self.notes.add(
                f"{absent} of {len(own)} classes were not trained: "
                f"{head.novel_words} tells all {len(own)} apart"
            )
        return state_dict
