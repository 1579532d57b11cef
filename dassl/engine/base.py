"""Dassl's TrainerBase: registered models, the parts of a step, the loop over epochs, its hooks."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dassl.engine.checkpoint import (
    checkpoint_meta,
    checkpoint_path,
    fitting_state,
    read_checkpoint,
    saved_classes,
)
from dassl.engine.saving import Checkpoints
from dassl.engine.step import check_loss
from dassl.names import nearest
from dassl.tracking.tracking import Tracking
from dassl.utils.readings import Readings

__all__ = ["Names", "TrainerBase"]

Names = str | Sequence[str] | None


class TrainerBase:
    """Models by name, each with its optimiser and its schedule, and the loop over epochs.

    In the methods below ``names`` are one or several registered names; None means all.

    Attributes:
        checkpoints: Saves and restores the registered models.
        readings: Losses that a GPU has computed and nobody has looked at yet.
        tracking: Where scalars go: TensorBoard and other trackers.
        epoch: Current epoch, from 0.
        start_epoch: First epoch of this process.
        max_epoch: Number of epochs.
        batch_idx: Current batch, from 0.
        num_batches: Batches per epoch.
        output_dir: Run directory.
    """

    epoch: int
    start_epoch: int
    max_epoch: int
    batch_idx: int
    num_batches: int
    output_dir: str
    time_start: float

    def __init__(self) -> None:
        """Start without models and without trackers."""
        # These dicts have Dassl's names: trainers written for it look into them.
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self.checkpoints = Checkpoints(self._models, self._optims, self._scheds)
        self.readings = Readings()
        self.tracking = Tracking()

    # ------------------------------------------------------------------ registered models

    def register_model(
        self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Put a model under the engine's care: modes, checkpoints, schedule, resuming.

        ``name`` is the folder of its checkpoints. Without an optimiser it does not train.

        Raises:
            AttributeError: ``super().__init__()`` was not called.
            ValueError: The name is taken.
        """
        # Not self._models, which would only complain about a missing attribute.
        if self.__dict__.get("_models") is None:
            raise AttributeError("call super().__init__() before register_model")
        if name in self._models:
            raise ValueError(f"a model is already registered as {name!r}; choose another name")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return the names of registered models.

        Raises:
            ValueError: A name is not registered.
        """
        known = list(self._models)
        if names is None:
            return known
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in known:
                raise ValueError(
                    f"no model is registered as {name!r}.{nearest(name, known)} "
                    f"Registered: {', '.join(known) or '(none)'}"
                )
        return wanted

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch models to training ("train") or evaluation ("test" or "eval").

        Raises:
            ValueError: Another mode.
        """
        if mode not in ("train", "test", "eval"):
            raise ValueError(f"mode must be train, test or eval, got {mode!r}")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first model's first group; 0 without an optimiser."""
        wanted = self.get_model_names(names)
        # All groups follow one schedule; Dassl logs the first one's rate.
        optim = self._optims[wanted[0]] if wanted else None
        return float(optim.param_groups[0]["lr"]) if optim is not None else 0.0

    def update_lr(self, names: Names = None) -> None:
        """Advance the schedules, once per epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    # ------------------------------------------------------------------ the parts of a step

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """Clear gradients, backpropagate, step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear gradients."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Check the loss and backpropagate."""
        self.detect_anomaly(loss)
        loss.backward()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Refuse a loss that is infinite or NaN, on a GPU when `readings` are read.

        They are read every PRINT_FREQ batches and before anything is saved, averaged or tested.

        Raises:
            FloatingPointError: It is not finite.
        """
        epoch, batch = getattr(self, "epoch", -1) + 1, getattr(self, "batch_idx", -1) + 1
        check_loss(loss, epoch, batch, self.get_current_lr(), self.readings)

    def model_update(self, names: Names = None) -> None:
        """Step the optimisers."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    # ------------------------------------------------------------------ checkpoints

    def checkpoint_meta(self) -> dict[str, Any]:
        """Return what a checkpoint says about its run; nothing, unless a subclass does."""
        return {}

    def check_origin(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Refuse weights of other options than the config's, if a subclass knows how.

        ``meta`` is what the checkpoint at ``path`` says about its run; empty if nothing.
        """

    def checkpoint_folder(self, directory: str | os.PathLike[str], name: str) -> str:
        """Return a model's folder in a run directory, which may have another method's layout."""
        return name

    def convert_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Translate a foreign checkpoint's keys to the model's, before they are checked."""
        return state_dict

    def match_classes(
        self, path: Path, state_dict: dict[str, Any], classnames: Sequence[str] | None
    ) -> dict[str, Any]:
        """Bring what a checkpoint holds per class into the order of the run's classes.

        Args:
            path: The checkpoint, for messages.
            state_dict: From `convert_state_dict`.
            classnames: The checkpoint's classes in label order; None if it does not name them.
        """
        return state_dict

    def save_model(
        self,
        epoch: int,
        directory: str | os.PathLike[str],
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save the trainable part of every registered model, see `Checkpoints.save`.

        ``epoch`` counts from 0; the file's name has the number of epochs done.

        Raises:
            FloatingPointError: A loss since the last look, or a weight, is not finite.
        """
        self.readings.read()
        self.checkpoints.save(
            directory,
            epoch + 1,
            self.checkpoint_meta(),
            is_best=is_best,
            val_result=val_result,
            model_name=model_name,
        )

    def load_model(
        self, directory: str | os.PathLike[str] | None, epoch: int | None = None
    ) -> None:
        """Load the weights of every registered model that trains from a run directory.

        Args:
            directory: Run directory; with an empty one or None, nothing is loaded.
            epoch: Number of epochs; None takes the best on the validation images.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, of another method, backbone or config, or does not fit.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        meta = self.checkpoint_meta()
        trained = self.checkpoints.trained()
        loads = []
        for name, model in self._models.items():
            if name not in trained:
                print(f"Nothing to load for {name!r}: it has no trainable parameters")
                continue
            path = checkpoint_path(directory, self.checkpoint_folder(directory, name), epoch)
            checkpoint = read_checkpoint(path, meta)
            self.check_origin(path, checkpoint_meta(checkpoint))
            state = self.convert_state_dict(dict(checkpoint["state_dict"]))
            state = self.match_classes(path, state, saved_classes(checkpoint))
            state = fitting_state(path, model, state, checkpoint.get("meta"), meta)
            loads.append((name, path, state, checkpoint.get("epoch")))
        # Change nothing until all files are known to fit.
        for name, path, state, trained_epochs in loads:
            self.checkpoints.put(name, state)
            print(f'Loading weights to {name} from "{path}" (epoch = {trained_epochs})')

    def resume_model_if_exist(self, directory: str | os.PathLike[str]) -> int:
        """Continue from the last checkpoints in a directory, see `Checkpoints.continue_from`."""
        return self.checkpoints.continue_from(directory)

    # ------------------------------------------------------------------ trackers

    def init_writer(self, log_dir: str) -> None:
        """Set the directory for scalars; the writer is made when there is something to write."""
        self.tracking.open_tensorboard(log_dir)

    @property
    def _writer(self) -> Any:
        """The TensorBoard writer, Dassl's name; None before `init_writer` and after the end."""
        return self.tracking.tensorboard.writer

    @_writer.setter
    def _writer(self, writer: Any) -> None:
        self.tracking.tensorboard.writer = writer

    def close_writer(self) -> None:
        """Close the TensorBoard writer, if there is one."""
        self.tracking.tensorboard.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number for all trackers; for TensorBoard only after `init_writer`."""
        self.tracking.scalar(tag, scalar_value, global_step)

    # ------------------------------------------------------------------ the loop

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Loop over epochs from ``start_epoch``, counted from 0, up to ``max_epoch``.

        `before_train` may change ``self.start_epoch`` to resume.
        """
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.time_start = time.time()
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            # begin_epoch and end_epoch are the engine's: methods override the other two hooks and
            # often do not call ours.
            self.begin_epoch()
            self.before_epoch()
            self.run_epoch()
            self.readings.read()  # nothing is saved, averaged or tested after a bad loss
            self.after_epoch()
            self.end_epoch()
        self.after_train()

    def before_train(self) -> None:
        """Run before the first epoch."""

    def after_train(self) -> None:
        """Run after the last epoch."""

    def before_epoch(self) -> None:
        """Run before each epoch."""

    def after_epoch(self) -> None:
        """Run after each epoch."""

    def begin_epoch(self) -> None:
        """Prepare the engine for an epoch; runs even if `before_epoch` is overridden."""

    def end_epoch(self) -> None:
        """Save the epoch's outcome; runs even if `after_epoch` is overridden."""

    def run_epoch(self) -> None:
        """Train for one epoch."""
        raise NotImplementedError

    def test(self, split: str | None = None) -> float:
        """Evaluate."""
        raise NotImplementedError

    def parse_batch_train(self, batch: Any) -> Any:
        """Take what a training step needs out of a batch."""
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        """Take images and labels out of a batch."""
        raise NotImplementedError

    def forward_backward(self, batch: Any) -> Any:
        """Do one training step."""
        raise NotImplementedError

    def model_inference(self, input: Tensor) -> Any:
        """Return the model's output on a test batch."""
        raise NotImplementedError
