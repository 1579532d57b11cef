"""One optimiser step, in parts and on several processes.

Gradients are averaged by PyTorch's DistributedDataParallel around a module whose forward pass is
the method's ``forward_loss`` (`TrainingStep`). Methods call parts of their model there, so DDP has
to see the whole step: from its forward pass it learns which parameters the step does not use.
Reducing gradients by hand after the backward pass would need its own agreement on unused
parameters, and would not overlap with the backward pass.

The rest follows from DDP. All but the last part of an accumulated batch run under ``no_sync``; the
last one's backward pass averages the sums, also of parameters that only earlier parts use. Loss
scaling sees averaged gradients, so an overflow on one process makes all of them skip the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dassl.engine.distributed import WorldSizeError
from dassl.engine.step import StepOutput
from dassl.utils.distributed import gather_counts, sum_over_ranks, world_size

if TYPE_CHECKING:
    from dassl.engine.trainer_x import TrainerX

__all__ = [
    "ParallelStep",
    "Part",
    "TrainingStep",
    "check_epoch",
    "parallel_step",
    "reduce_means",
    "split_batch",
]


class TrainingStep(nn.Module):
    """A trainer's ``forward_loss`` as the forward pass of a module, for DDP."""

    def __init__(self, model: nn.Module, forward_loss: Callable[[Tensor, Tensor], StepOutput]):
        super().__init__()
        self.model = model
        self.forward_loss = forward_loss

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Any, dict[str, Any]]:
        """Return loss, logits (B, K) and parts of images (B, 3, height, width) or features."""
        out = self.forward_loss(image, label)
        # DDP waits for the gradient of every parameter that any output depends on, so only the
        # loss may keep its graph.
        logits = None if out.logits is None else out.logits.detach()
        parts = {
            name: part.detach() if isinstance(part, Tensor) else part
            for name, part in out.parts.items()
        }
        return out.loss, logits, parts


class ParallelStep:
    """A training step whose gradients are averaged over the processes.

    The model is on ``device``, with the weights to start from. ``used`` tells whether there was a
    step.
    """

    def __init__(
        self,
        model: nn.Module,
        forward_loss: Callable[[Tensor, Tensor], StepOutput],
        device: torch.device,
    ) -> None:
        self.used = False
        self._trained = trained_parameters(model)
        self._step = DistributedDataParallel(
            TrainingStep(model, forward_loss),
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # only batch statistics change, and those are shared already
            find_unused_parameters=True,  # a step may not use an adapter, see the module
        )

    def __call__(self, image: Tensor, label: Tensor) -> StepOutput:
        """Return the outcome of ``forward_loss``."""
        self.used = True
        return StepOutput(*self._step(image, label))

    def fits(self, model: nn.Module) -> bool:
        """Tell whether the averaged gradients are those of all parameters that train now."""
        return self._trained == trained_parameters(model)

    def synchronized(self, last: bool) -> AbstractContextManager[Any]:
        """Return a part's context: only the last part's backward pass averages gradients."""
        return nullcontext() if last else self._step.no_sync()


def parallel_step(trainer: TrainerX, current: ParallelStep | None) -> ParallelStep | None:
    """Return the step that averages gradients over the processes; None for one process."""
    if world_size() == 1:
        return None
    if current is not None and current.fits(trainer.model):
        return current  # the same parameters train as before
    return ParallelStep(trainer.model, trainer.forward_loss, trainer.device)


def trained_parameters(module: nn.Module) -> set[int]:
    """Return the identities of the parameters that require a gradient."""
    return {id(parameter) for parameter in module.parameters() if parameter.requires_grad}


class Part(NamedTuple):
    """A part of this process's share of a batch.

    Attributes:
        rows: Its images in the share.
        share: Their number, divided by that of the whole batch's images on all processes.
        weight: Factor of their mean loss; DDP's average over the processes turns it into the share.
        last: The step is due after this part.
    """

    rows: slice
    share: float
    weight: float
    last: bool


def split_batch(images: int, accumulate: int) -> list[Part]:
    """Divide this process's share of a batch; the weighted losses add up to the batch's mean.

    Args:
        images: Number in this process's share. The shares differ if the only batch is a short one,
            or if images could not be read.
        accumulate: OPTIM.ACCUMULATE.

    Returns:
        The same number of parts on all processes, none of them empty.

    Raises:
        ValueError: OPTIM.ACCUMULATE is not positive.
        WorldSizeError: A process has come to the end of its images before the others.
    """
    if accumulate < 1:
        raise ValueError(f"OPTIM.ACCUMULATE must be at least 1, got {accumulate}")
    counts = gather_counts(images)
    _check_counts(counts)
    # No part may be empty on any process: each is a backward pass in which all take part.
    total, parts = sum(counts), min(accumulate, *counts)
    bounds = [images * number // parts for number in range(parts + 1)]
    return [
        Part(
            slice(start, end),
            (end - start) / total,
            len(counts) * (end - start) / total,
            end == images,
        )
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]


def check_epoch() -> None:
    """Make sure that all processes have come to the end of an epoch.

    Raises:
        WorldSizeError: Some have batches left.
    """
    if world_size() > 1:
        counts = gather_counts(0)  # the counterpart of a slower process's `split_batch`
        if any(counts):
            _check_counts(counts)


def _check_counts(counts: list[int]) -> None:
    done = [number for number, count in enumerate(counts) if count == 0]
    if done:
        raise WorldSizeError(
            f"process {', '.join(map(str, done))} of {len(counts)} has run out of images: none of "
            "its share of some batch could be read (INPUT.ON_BAD_IMAGE skip). Repair or remove "
            "the files that the log names, or use fewer processes or a larger BATCH_SIZE"
        )


def reduce_means(means: Mapping[str, Any]) -> dict[str, Any]:
    """Add up, by name, every process's part of the means over a batch; equal names everywhere.

    Numbers that wait on a GPU stay there, and no process waits for another here. They are added up
    in every step, not only when they are read: methods see those of the whole batch in what
    ``forward_backward`` returns.
    """
    tensors = [value for value in means.values() if isinstance(value, Tensor)]
    if world_size() == 1 or not tensors:
        return dict(zip(means, sum_over_ranks(list(means.values())), strict=True))
    sums = torch.stack(  # of all means, (n,)
        [
            value.double().reshape(())
            if isinstance(value, Tensor)
            # Filled in by the device itself: Python would have to wait to copy it there.
            else torch.full((), value, dtype=torch.float64, device=tensors[0].device)
            for value in means.values()
        ]
    )
    dist.all_reduce(sums)
    return dict(zip(means, sums.unbind(), strict=True))
