"""Log lines and scalars of a training epoch."""

from __future__ import annotations

import datetime
import time
from typing import Any

from dassl.utils.meters import AverageMeter, MetricMeter

__all__ = ["EpochProgress", "Scalars"]


class Scalars:
    """A TensorBoard writer that is opened when there is something to write.

    Importing TensorBoard takes longer than a short run, and a run without epochs needs none.
    Without a directory nothing is written.
    """

    def __init__(self, log_dir: str | None = None) -> None:
        self._log_dir = log_dir
        self._opened: Any = None

    @property
    def writer(self) -> Any:
        """The writer; None if there is no directory or TensorBoard does not work."""
        if self._opened is None and self._log_dir is not None:
            # Cleared first: a failed import is reported once, not at every step.
            log_dir, self._log_dir = self._log_dir, None
            try:
                from torch.utils.tensorboard import SummaryWriter
            except Exception as error:  # a broken installation raises nearly anything
                reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
                print(f"TensorBoard is not installed{reason}: scalars are in the log only")
                return None
            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._opened = SummaryWriter(log_dir=log_dir)
        return self._opened

    @writer.setter
    def writer(self, writer: Any) -> None:
        self._opened = writer

    def close(self) -> None:
        """Close the writer, if there is one."""
        if self._opened is not None:
            self._opened.close()
        self._opened = self._log_dir = None


class EpochProgress:
    """Times the batches of a trainer's epoch; prints every PRINT_FREQ-th, as Dassl does.

    Scalars are written for the batches that are printed, and for the last: for every batch, they
    would take a good part of a small step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self._last = time.time()

    def loaded(self) -> None:
        """Note that a batch has been loaded."""
        self.data_time.update(time.time() - self._last)

    def trained(self, losses: MetricMeter) -> None:
        """Note that a step is done; print and write what is due."""
        trainer = self.trainer
        self.batch_time.update(time.time() - self._last)
        frequency = trainer.cfg.TRAIN.PRINT_FREQ
        done = trainer.batch_idx + 1
        printed = frequency > 0 and (done % frequency == 0 or trainer.num_batches < frequency)
        if printed:
            print(self.line(losses))
        if printed or (frequency > 0 and done == trainer.num_batches):
            self._write(losses)
        self._last = time.time()

    def _write(self, losses: MetricMeter) -> None:
        """Write the epoch's means so far, which the log line shows too, and the learning rate."""
        trainer = self.trainer
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.get_current_lr(), step)

    def line(self, losses: MetricMeter) -> str:
        """Return the log line of the current batch."""
        trainer = self.trainer
        done = trainer.batch_idx + 1
        remaining = trainer.num_batches - done
        remaining += (trainer.max_epoch - trainer.epoch - 1) * trainer.num_batches
        eta = datetime.timedelta(seconds=int(self.batch_time.avg * remaining))
        return (
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] "
            f"batch [{done}/{trainer.num_batches}] "
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
            f"{losses} lr {trainer.get_current_lr():.4e} eta {eta}"
        )
