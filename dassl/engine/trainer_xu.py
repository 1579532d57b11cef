"""The trainer for labelled and unlabelled images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from dassl.engine.progress import EpochProgress
from dassl.engine.trainer import SimpleTrainer
from dassl.utils import MetricMeter, check_availability

__all__ = ["TrainerXU"]


def endless(loader: Any) -> Iterator[Any]:
    """Yield a loader's batches, again and again.

    Args:
        loader: Loader.

    Raises:
        ValueError: It has none.
    """
    while True:
        number = -1
        for number, batch in enumerate(loader):  # noqa: B007 - looked at after the loop
            yield batch
        if number < 0:
            raise ValueError("no training image can be read; see the log for their paths")


class TrainerXU(SimpleTrainer):
    """Trains on pairs of a labelled and an unlabelled batch; a method does its own steps."""

    def run_epoch(self) -> None:
        """Go through the images; TRAIN.COUNT_ITER says which loader's end is the epoch's.

        Raises:
            ValueError: There are no unlabelled images, or another COUNT_ITER.
        """
        if self.train_loader_u is None:
            raise ValueError(
                f"{type(self).__name__} trains on unlabelled images too, but "
                f"{self.cfg.DATASET.NAME} has none (train_u)"
            )
        self.set_model_mode("train")
        losses = MetricMeter()
        progress = EpochProgress(self)
        labelled, unlabelled = len(self.train_loader_x), len(self.train_loader_u)
        counts = {
            "train_x": labelled,
            "train_u": unlabelled,
            "smaller_one": min(labelled, unlabelled),
        }
        check_availability(self.cfg.TRAIN.COUNT_ITER, counts)
        self.num_batches = counts[self.cfg.TRAIN.COUNT_ITER]
        batches = zip(endless(self.train_loader_x), endless(self.train_loader_u), strict=True)
        for index in range(self.num_batches):
            batch_x, batch_u = next(batches)
            self.batch_idx = index
            progress.loaded()
            losses.update(self.forward_backward(batch_x, batch_u))
            progress.trained(losses)

    def forward_backward(self, batch_x: Any, batch_u: Any) -> Any:  # type: ignore[override]
        """Do one training step.

        Args:
            batch_x: Labelled batch.
            batch_u: Unlabelled batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward_backward")

    def parse_batch_train(  # type: ignore[override]
        self, batch_x: Any, batch_u: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return labelled images, their labels and unlabelled images, on the device.

        Args:
            batch_x: Labelled batch.
            batch_u: Unlabelled batch.
        """
        image, label, unlabelled = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (batch_x["img"], batch_x["label"], batch_u["img"])
        )
        return image, label, unlabelled
