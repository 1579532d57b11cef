"""The trainer that methods derive from: one module, one loss, and the loop over batches."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor

from dassl.engine.parallel import Part, check_epoch, parallel_step, reduce_means, split_batch
from dassl.engine.progress import EpochProgress
from dassl.engine.step import StepOutput, caching_modules
from dassl.engine.trainer import SimpleTrainer
from dassl.metrics import compute_accuracy
from dassl.utils import MetricMeter

__all__ = ["TrainerX"]


class TrainerX(SimpleTrainer):
    """Trains on labelled images; a method defines `build_model` and `forward_loss`."""

    _caching: list[Any] | None = (
        None  # looking through a large model takes longer than a small step
    )

    def run_epoch(self) -> None:
        """Go once through the labelled images."""
        self.set_model_mode("train")
        self._parallel = parallel_step(self, self._parallel)
        self._caching = None
        losses = MetricMeter()
        progress = EpochProgress(self)
        self.num_batches = len(self.train_loader_x)
        self.batch_idx = -1
        for index, batch in enumerate(self.train_loader_x):
            self.batch_idx = index
            progress.loaded()
            losses.update(self.forward_backward(batch))
            progress.trained(losses)
        check_epoch()
        if self.batch_idx + 1 < self.num_batches:
            # Whole batches of unreadable images were skipped at the end, so no step was the last.
            if self.batch_idx < 0:
                raise ValueError("no training image can be read; see the log for their paths")
            self.update_lr()

    def forward_loss(self, image: Tensor, label: Tensor) -> StepOutput:
        """Return the loss of a batch.

        Args:
            image: Images, (B, 3, height, width), on the device.
            label: Labels, (B,).
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define forward_loss (or its own forward_backward)"
        )

    def forward_backward(self, batch: Any) -> dict[str, float]:
        """Do one training step: loss, check, backward, optimiser, schedule.

        Args:
            batch: Batch.

        Returns:
            ``loss``, ``acc`` (if there are logits) and the loss's parts, for the log.

        Raises:
            FloatingPointError: The loss is not finite; nothing was updated.
        """
        image, label, *_ = self.parse_batch_train(batch)
        parts = split_batch(len(label), self.cfg.OPTIM.ACCUMULATE)
        self.model_zero_grad()
        means: dict[str, float] = {}
        for part in parts:
            for name, value in self._part_backward(part, image, label).items():
                means[name] = means.get(name, 0.0) + part.share * value
        self.model_update()
        summary = reduce_means(means)
        per_step = any(getattr(sched, "per_step", False) for sched in self._scheds.values())
        if per_step or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def _part_backward(self, part: Part, image: Tensor, label: Tensor) -> dict[str, float]:
        """Add a part's gradients; return its numbers for the log."""
        if part.share != 1:
            image, label = image[part.rows], label[part.rows]
        step = self._parallel
        with nullcontext() if step is None else step.synchronized(part.last):
            with self.autocast():
                out = (self.forward_loss if step is None else step)(image, label)
            self.model_backward(out.loss if part.weight == 1 else out.loss * part.weight)
        if self._caching is None:
            self._caching = caching_modules(self.model)
        for module in self._caching:
            module.drop_cache()
        summary = {"loss": out.loss.item()}
        if out.logits is not None:
            summary["acc"] = compute_accuracy(out.logits.detach(), label)[0].item()
        for name, value in out.parts.items():
            summary[name] = value.item() if isinstance(value, Tensor) else float(value)
        return summary

    def parse_batch_train(self, batch: Any) -> Any:
        """Return images, labels and domains of a training batch, on the device.

        Args:
            batch: Batch.
        """
        return tuple(
            batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain")
        )
