"""Where a run computes, and in what precision: the one rule by which each is chosen."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.names import check_availability
from dassl.utils.distributed import launched_size, local_rank

__all__ = [
    "PRECISIONS",
    "autocast_context",
    "requested_precision",
    "resolve_device",
    "resolve_precision",
    "stated_precision",
]

PRECISIONS = ["fp32", "fp16", "bf16", "amp"]


def resolve_device(cfg: CfgNode) -> torch.device:
    """Choose the device that ``cfg.DEVICE`` and ``cfg.USE_CUDA`` ask for.

    ``DEVICE: auto`` takes CUDA if there is any and USE_CUDA allows it, else MPS, else the CPU. Of
    several processes on a machine, as torchrun starts them, each gets the GPU with its local rank's
    number.

    Raises:
        ValueError: Not a device name, not there, or CUDA although USE_CUDA forbids it.
    """
    name = str(cfg.DEVICE)
    if launched_size() > 1:
        return _of_local_rank(name, cfg.USE_CUDA)
    if name == "auto":
        if cfg.USE_CUDA and torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("DEVICE is mps, but this machine or PyTorch build has no MPS")
        return torch.device("mps")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ValueError(f"DEVICE must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if not cfg.USE_CUDA:
        raise ValueError(f"DEVICE is {name}, but USE_CUDA is False; set one of them differently")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count <= int(match.group(1) or 0):
        raise ValueError(f"DEVICE is {name}, but PyTorch sees {count} CUDA devices; try auto")
    return torch.device(name)


def _of_local_rank(name: str, use_cuda: bool) -> torch.device:
    """Choose the device of one of several processes.

    Raises:
        ValueError: A single device for all, or more processes than GPUs.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"DEVICE is {name!r}, but each of {launched_size()} processes (torchrun) needs a "
            "device of its own; set auto, cuda or cpu"
        )
    count = torch.cuda.device_count() if use_cuda and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if not use_cuda:
        raise ValueError("DEVICE is cuda, but USE_CUDA is False; set one of them differently")
    if local_rank() >= count:
        raise ValueError(
            f"process {local_rank()} of this machine (torchrun --nproc_per_node) has no GPU: "
            f"PyTorch sees {count} CUDA devices; start at most as many, or set DEVICE cpu"
        )
    return torch.device("cuda", local_rank())


def requested_precision(cfg: CfgNode, section: str | None) -> str:
    """Read a trainer's precision from the configuration.

    Args:
        cfg: Configuration.
        section: Name of the trainer's section under TRAINER, by default the trainer's, or the same
            in capitals, as in CoOp's repository.

    Returns:
        One of `PRECISIONS`; fp32 if there is no such section or key.

    Raises:
        ValueError: Another value.
    """
    section = section or cfg.TRAINER.NAME
    node = cfg.TRAINER.get(section, cfg.TRAINER.get(section.upper()))
    precision = node.get("PREC", "fp32") if isinstance(node, CfgNode) else "fp32"
    try:
        check_availability(precision, PRECISIONS)
    except ValueError as error:
        raise ValueError(f"TRAINER.{section}.PREC: {error}") from None
    return precision


def stated_precision(cfg: CfgNode, section: str | None) -> str:
    """Read what the configuration says of a trainer that sees to its precision itself.

    Returns:
        One of `PRECISIONS`, or "custom" for a trainer's own word for something.
    """
    try:
        return requested_precision(cfg, section)
    except ValueError:
        return "custom"


def resolve_precision(cfg: CfgNode, section: str | None, device: torch.device, notes: Any) -> str:
    """Return the precision that was asked for, if the device can do it, else fp32 with a note."""
    requested = requested_precision(cfg, section)
    if (
        requested == "fp32"
        # Pure half weights, and fp16 autocast with loss scaling: PyTorch does both on CUDA only.
        or (requested in ("fp16", "amp") and device.type == "cuda")
        or (requested == "bf16" and _has_bf16(device))
    ):
        return requested
    notes.add(f"precision {requested} is not available on {device}; fp32 is used instead")
    return "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu"


def autocast_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass runs."""
    if precision == "amp":
        return torch.autocast(device.type, dtype=torch.float16)
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
