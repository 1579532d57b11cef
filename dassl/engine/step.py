"""A training step: what it returns, how optimisers step, which caches become stale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dassl.metrics import compute_accuracy
from dassl.utils.readings import Readings, reads_late

__all__ = [
    "StepOutput",
    "add_share",
    "caching_modules",
    "check_loss",
    "drop_caches",
    "freeze_statistics",
    "keep_no_activations",
    "step_optimizers",
]


@dataclass(frozen=True)
class StepOutput:
    """Outcome of a method's ``forward_loss``.

    Attributes:
        loss: What is minimised, a scalar.
        logits: For the training accuracy, (B, K), or None.
        parts: Further scalars to log by name, such as the terms of the loss.
    """

    loss: Tensor
    logits: Tensor | None = None
    parts: Mapping[str, Tensor | float] = field(default_factory=dict)

    def numbers(self, label: Tensor) -> dict[str, Any]:
        """Return ``loss``, ``acc`` (if there are logits) and the parts, for the log.

        They are floats, but tensors of one element where the device is not to be waited for.
        """
        found: dict[str, Any] = {"loss": self.loss}
        if self.logits is not None:
            found["acc"] = compute_accuracy(self.logits.detach(), label)[0]
        found.update(self.parts)
        if reads_late(self.loss.device):
            return {n: v.detach() if isinstance(v, Tensor) else float(v) for n, v in found.items()}
        return {n: v.item() if isinstance(v, Tensor) else float(v) for n, v in found.items()}


def add_share(means: dict[str, Any], numbers: Mapping[str, Any], share: float) -> None:
    """Add what `StepOutput.numbers` says of a part of a batch to the means over the batch.

    Args:
        means: The sums so far, by name; changed.
        numbers: Means over the part.
        share: The part's share of the images.
    """
    for name, value in numbers.items():
        if not isinstance(value, Tensor):
            means[name] = means.get(name, 0.0) + share * value
            continue
        if share != 1:  # in double precision, as floats are
            value = share * value.double()
        means[name] = means[name] + value if name in means else value


def check_loss(loss: Tensor, epoch: int, batch: int, rate: float, readings: Readings) -> None:
    """Refuse a loss that is infinite or NaN, on a GPU when the readings are read.

    Args:
        loss: A scalar; if it has more elements, all have to be finite.
        epoch: Number of the epoch, from 1.
        batch: Number of the batch, from 1.
        rate: Learning rate.
        readings: Where the losses of a GPU wait.

    Raises:
        FloatingPointError: It is not finite.
    """
    spared = "saved" if reads_late(loss.device) else "updated or saved"

    def refuse(values: list[float]) -> None:
        if not math.isfinite(values[0]):
            raise FloatingPointError(
                f"the loss is infinite or NaN ({values[0]}) in epoch {epoch}, batch {batch}, at "
                f"learning rate {rate:.4e}; nothing was {spared} since. "
                "Try a lower OPTIM.LR or TRAINER.<name>.PREC fp32"
            )

    if reads_late(loss.device):
        # Of the loss itself, not of its gradients: those may be infinite under a gradient scaler,
        # which skips the step then and lowers the scale.
        readings.keep([loss.mean() if loss.ndim else loss], refuse)
    elif not torch.isfinite(loss).all():
        refuse([loss.detach().float().mean().item()])


def step_optimizers(optims: Iterable[Any], max_norm: float = 0.0, scaler: Any = None) -> None:
    """Clip the gradients' norm and step.

    Args:
        optims: Optimisers; None among them is skipped.
        max_norm: Limit for each optimiser's gradients; 0 for no limit.
        scaler: Gradient scaler, or None. It skips steps whose gradients are not finite.
    """
    for optim in optims:
        if optim is None:
            continue
        if max_norm > 0:
            if scaler:
                # The limit is for true gradients, not for those multiplied by the loss scale.
                scaler.unscale_(optim)
            params = [p for group in optim.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, max_norm)
        if scaler:
            scaler.step(optim)
        else:
            optim.step()
    if scaler:
        scaler.update()


def caching_modules(module: nn.Module) -> list[Any]:
    """Return the submodules that keep something computed from weights, see `drop_caches`."""
    return [m for m in module.modules() if callable(getattr(m, "drop_cache", None))]


def drop_caches(module: nn.Module) -> None:
    """Call ``drop_cache()`` on every submodule that has one."""
    for submodule in caching_modules(module):
        submodule.drop_cache()


def freeze_statistics(module: nn.Module) -> None:
    """Put batch norms whose parameters are all frozen into evaluation mode.

    In training mode a frozen ResNet's running statistics would drift with every batch, changing
    the pre-trained model although no parameter of it trains.
    """
    for submodule in module.modules():
        if isinstance(submodule, nn.modules.batchnorm._BatchNorm):
            params = list(submodule.parameters(recurse=False))
            # A norm without parameters stays in training mode: nothing says that it is frozen.
            if params and not any(p.requires_grad for p in params):
                submodule.eval()


def keep_no_activations(module: nn.Module) -> None:
    """Let open_clip's transformers recompute activations in the backward pass.

    This takes less memory and about a third more time, with the same gradients.

    Raises:
        ValueError: The model has no open_clip model in it.
    """
    models: list[Any] = [
        m for m in module.modules() if callable(getattr(m, "set_grad_checkpointing", None))
    ]
    if not models:
        raise ValueError(
            "TRAIN.GRAD_CHECKPOINTING is True, but the model has no open_clip model in it, which "
            "alone could do that; set it to False"
        )
    for model in models:  # a model inside another one is set twice, which does no harm
        model.set_grad_checkpointing(True)
