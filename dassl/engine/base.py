"""The loop over epochs, its hooks, and what one step consists of."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from dassl.engine.models import Names, RegisteredModels

__all__ = ["TrainerBase"]


class TrainerBase(RegisteredModels):
    """Registered models and the loop over epochs.

    Attributes:
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
        """Start without models and without a TensorBoard writer."""
        super().__init__()
        self._open_writer: Any = None
        self._log_dir: str | None = None

    def detect_anomaly(self, loss: Tensor) -> None:
        """Refuse a loss that is infinite or NaN.

        Args:
            loss: Loss.

        Raises:
            FloatingPointError: It is not finite.
        """
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"the loss is infinite or NaN ({loss.detach().float().mean().item()}) in epoch "
                f"{getattr(self, 'epoch', -1) + 1}, batch {getattr(self, 'batch_idx', -1) + 1}, at "
                f"learning rate {self.get_current_lr():.4e}; nothing was updated or saved since. "
                "Try a lower OPTIM.LR or TRAINER.<name>.PREC fp32"
            )

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear gradients.

        Args:
            names: Of which models; None for all.
        """
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Check the loss and backpropagate.

        Args:
            loss: Loss.
        """
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        """Step the optimisers.

        Args:
            names: Of which models; None for all.
        """
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """Clear gradients, backpropagate, step.

        Args:
            loss: Loss.
            names: Of which models; None for all.
        """
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def init_writer(self, log_dir: str) -> None:
        """Set where scalars go; the writer is created when there is something to write.

        Args:
            log_dir: Directory.
        """
        self._log_dir = log_dir

    @property
    def _writer(self) -> Any:
        """The TensorBoard writer, Dassl's name; None before `init_writer` and after the end."""
        if self._open_writer is None and self._log_dir is not None:
            log_dir, self._log_dir = self._log_dir, None
            try:
                from torch.utils.tensorboard import SummaryWriter
            except Exception as error:  # a broken installation raises nearly anything
                reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
                print(f"TensorBoard is not installed{reason}: scalars are in the log only")
                return None
            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._open_writer = SummaryWriter(log_dir=log_dir)
        return self._open_writer

    @_writer.setter
    def _writer(self, writer: Any) -> None:
        self._open_writer = writer

    def close_writer(self) -> None:
        """Close the writer, if there is one."""
        if self._open_writer is not None:
            self._open_writer.close()
        self._open_writer = self._log_dir = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number for TensorBoard; does nothing before `init_writer`.

        Args:
            tag: Name.
            scalar_value: Number.
            global_step: Position on the x axis.
        """
        writer = self._writer
        if writer is not None:
            writer.add_scalar(tag, scalar_value, global_step)

    # ------------------------------------------------------------------ the loop

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Loop over epochs.

        Args:
            start_epoch: First epoch, from 0; `before_train` may change ``self.start_epoch``.
            max_epoch: Number of epochs.
        """
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.time_start = time.time()
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.begin_epoch()
            self.before_epoch()
            self.run_epoch()
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
        """Secure an epoch's outcome; runs even if `after_epoch` is overridden."""

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
