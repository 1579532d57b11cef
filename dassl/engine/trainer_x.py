"""Dassl's TrainerX and TrainerXU: their epochs and steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from dassl.engine.graphs import GraphedStep, graphed_step
from dassl.engine.parallel import check_epoch, parallel_step, reduce_means, split_batch
from dassl.engine.progress import EpochProgress
from dassl.engine.step import StepOutput, add_share, caching_modules
from dassl.engine.trainer import SimpleTrainer
from dassl.utils import check_availability

__all__ = ["TrainerX", "TrainerXU"]


class TrainerX(SimpleTrainer):
    """Trains on labelled images; a method defines `build_model` and `forward_loss`."""

    # Whether `forward_loss` does the same operations for all batches of a shape, without drawing
    # numbers and without asking the device for a value: then it can be a CUDA graph.
    static_step: bool = False
    graphed: GraphedStep | None = None

    # Modules with caches, kept: searching a large model takes longer than a small step.
    _caching: list[Any] | None = None

    def run_epoch(self) -> None:
        """Go once through the labelled images."""
        # First: as long as no weight is rounded, it is the same on all processes.
        self.parallel = parallel_step(self, self.parallel)
        self.set_model_mode("train")
        self.graphed = graphed_step(self, self.graphed)
        self._caching = None  # the model may have changed between epochs
        progress = EpochProgress(self)
        self.num_batches = len(self.train_loader_x)
        self.batch_idx = -1
        for index, batch in enumerate(self.train_loader_x):
            self.batch_idx = index
            progress.loaded()
            progress.trained(self.forward_backward(batch))
        check_epoch()
        if self.batch_idx + 1 < self.num_batches:
            # The last batches were skipped as unreadable, so no step has updated the schedule.
            if self.batch_idx < 0:
                raise ValueError("no training image can be read; see the log for their paths")
            self.update_lr()

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """Return the loss of a batch of images, (B, 3, height, width), with labels, (B,)."""
        raise NotImplementedError(
            f"{type(self).__name__} must define forward_loss (or its own forward_backward)"
        )

    def forward_backward(self, batch: Any) -> dict[str, Any]:
        """Do one training step: loss, check, backward, optimiser, schedule.

        Args:
            batch: This process's share of a batch, taken in OPTIM.ACCUMULATE parts.

        Returns:
            ``loss``, ``acc`` (if there are logits) and the parts of the loss, for the log: floats,
            or tensors of one element on a GPU, which works on meanwhile.

        Raises:
            FloatingPointError: The loss is not finite; nothing was updated. A GPU's are looked at
                later, see `detect_anomaly`.
        """
        image, label, *_ = self.parse_batch_train(batch)
        parts = split_batch(len(label), self.cfg.OPTIM.ACCUMULATE)
        step = self.parallel
        loss_of: Any = step or self.graphed or self.forward_loss
        means: dict[str, Any] = {}
        self.model_zero_grad()
        for part in parts:
            whole = part.share == 1  # then nothing is copied
            x, y = (image, label) if whole else (image[part.rows], label[part.rows])
            with nullcontext() if step is None else step.synchronized(part.last):
                with self.autocast():
                    out = loss_of(x, y)
                self.model_backward(out.loss if part.weight == 1 else out.loss * part.weight)
            self._drop_caches()
            add_share(means, out.numbers(y), part.share)
        self.model_update()
        summary = reduce_means(means)
        per_step = any(getattr(sched, "per_step", False) for sched in self._scheds.values())
        if per_step or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def _drop_caches(self) -> None:
        """Drop what modules have computed from weights that are about to change."""
        if self._caching is None:
            self._caching = caching_modules(self.model)
        for module in self._caching:
            module.drop_cache()

    def parse_batch_train(self, batch: Any) -> Any:
        """Return images, labels and domains of a training batch, on the device."""
        return tuple(
            batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain")
        )


def endless(loader: Any) -> Iterator[Any]:
    """Yield a loader's batches, again and again.

    Raises:
        ValueError: It has no batch.
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
            progress.trained(self.forward_backward(batch_x, batch_u))

    def forward_backward(self, batch_x: Any, batch_u: Any) -> Any:  # type: ignore[override]
        """Do one training step on a labelled and an unlabelled batch."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_backward")

    def parse_batch_train(  # type: ignore[override]
        self, batch_x: Any, batch_u: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return labelled images, their labels and unlabelled images, on the device."""
        image, label, unlabelled = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (batch_x["img"], batch_x["label"], batch_u["img"])
        )
        return image, label, unlabelled
