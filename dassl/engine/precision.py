"""What fp32, fp16, bf16 and amp mean on each device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.names import check_availability

__all__ = ["PRECISIONS", "autocast_context", "effective_precision", "requested_precision"]

PRECISIONS = ["fp32", "fp16", "bf16", "amp"]


def requested_precision(cfg: CfgNode, section: str) -> str:
    """Read a trainer's precision from the configuration.

    Args:
        cfg: Configuration.
        section: Name of the trainer's section under TRAINER, or the same in capitals, as in CoOp's
            repository.

    Returns:
        One of `PRECISIONS`; fp32 if there is no such section or key.

    Raises:
        ValueError: Another value.
    """
    node = cfg.TRAINER.get(section, cfg.TRAINER.get(section.upper()))
    precision = node.get("PREC", "fp32") if isinstance(node, CfgNode) else "fp32"
    try:
        check_availability(precision, PRECISIONS)
    except ValueError as error:
        raise ValueError(f"TRAINER.{section}.PREC: {error}") from None
    return precision


def effective_precision(requested: str, device: torch.device) -> tuple[str, str | None]:
    """Return the precision that a device can do.

    Args:
        requested: One of `PRECISIONS`.
        device: Where the model runs.

    Returns:
        The precision to use, and a note if it is not the requested one. ``fp16`` (pure half
        weights) and ``amp`` (fp16 autocast with loss scaling) need CUDA; elsewhere fp32 is used.
    """
    fine = (
        requested == "fp32"
        or (requested in ("fp16", "amp") and device.type == "cuda")
        or (requested == "bf16" and _has_bf16(device))
    )
    if fine:
        return requested, None
    return "fp32", f"precision {requested} is not available on {device}; fp32 is used instead"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu"


def autocast_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs.

    Args:
        precision: Effective precision.
        device: Where the model runs.
    """
    if precision == "amp":
        return torch.autocast(device.type, dtype=torch.float16)
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
