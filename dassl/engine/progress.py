"""Log lines and scalars of a training epoch."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.readings import reads_late

__all__ = ["EpochProgress"]


class EpochProgress:
    """Times the batches of a trainer's epoch; prints every PRINT_FREQ-th, as Dassl does.

    Scalars are written for the batches that are printed, and for the last: for every batch, they
    would take a good part of a small step. What a GPU has computed is read then, too.

    Attributes:
        losses: What steps have returned.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.losses = MetricMeter()
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self._spent: list[float] = []  # seconds of the batches that may not be computed yet
        self._last = time.time()

    def loaded(self) -> None:
        """Note that a batch has been loaded."""
        self.data_time.update(time.time() - self._last)

    def trained(self, summary: Any) -> None:
        """Note what a step has returned; print and write what is due.

        Raises:
            TypeError: It has returned something else than numbers by name or None.
            FloatingPointError: The losses are read now, and one is not finite.
        """
        trainer = self.trainer
        frequency = trainer.cfg.TRAIN.PRINT_FREQ
        done = trainer.batch_idx + 1
        printed = frequency > 0 and (done % frequency == 0 or trainer.num_batches < frequency)
        due = printed or (frequency > 0 and done == trainer.num_batches)
        waits = self._keep(summary)
        if due:
            trainer.readings.read()
        self._spent.append(time.time() - self._last)
        if due or not waits:
            # A GPU is behind until it is waited for: only then is it known what batches took.
            self.batch_time.update(sum(self._spent) / len(self._spent), len(self._spent))
            self._spent = []
        if printed:
            print(self.line())
        if due:
            self._write()
        self._last = time.time()

    def _keep(self, summary: Any) -> bool:
        """Add a step's numbers to `losses`, a GPU's when they are read; tell whether they wait."""
        values = summary.items() if isinstance(summary, Mapping) else ()
        waiting = {n: v for n, v in values if isinstance(v, Tensor) and reads_late(v.device)}
        if not waiting:
            self.losses.update(summary)
            return False

        def update(numbers: list[float]) -> None:
            # In the summary's order, which is that of the log line.
            self.losses.update({**summary, **dict(zip(waiting, numbers, strict=True))})

        self.trainer.readings.keep(list(waiting.values()), update)
        return True

    def _write(self) -> None:
        """Write the epoch's means so far, which the log line shows too, and the learning rate."""
        trainer = self.trainer
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in self.losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.get_current_lr(), step)

    def line(self) -> str:
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
            f"{self.losses} lr {trainer.get_current_lr():.4e} eta {eta}"
        )
