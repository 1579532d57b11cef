"""Where a run computes and in what precision: one rule for each."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.names import check_availability
from dassl.utils.distributed import launched_size, local_rank

__all__ = [
    "AUTOCAST_TYPES",
    "PRECISIONS",
    "autocast_context",
    "compute_deterministically",
    "prepare_device",
    "requested_precision",
    "resolve_device",
    "resolve_precision",
    "stated_precision",
]

PRECISIONS = ["fp32", "fp16", "bf16", "amp"]
AUTOCAST_TYPES = {"amp": torch.float16, "bf16": torch.bfloat16}  # what it rounds to


def resolve_device(cfg: CfgNode) -> torch.device:
    """Choose the device that ``cfg.DEVICE`` and ``cfg.USE_CUDA`` ask for.

    ``DEVICE: auto`` takes CUDA if there is any and USE_CUDA allows it, otherwise MPS, otherwise the
    CPU. If torchrun started several processes on a machine, each gets the GPU with the number of
    its local rank.

    Raises:
        ValueError: Not a device name, not present, or CUDA although USE_CUDA forbids it.
    """
    name = str(cfg.DEVICE)
    if launched_size() > 1:
        return _of_local_rank(name, cfg.USE_CUDA)
    if name == "auto":
        if cfg.USE_CUDA and torch.cuda.is_available():
            return torch.device("cuda")  # without a number: PyTorch's current GPU
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


def prepare_device(cfg: CfgNode) -> torch.device:
    """Choose the device as `resolve_device` does, and how a GPU computes products of fp32.

    TRAIN.TF32 True rounds their factors to TensorFloat-32, in convolutions too; False rounds
    nothing, not even in convolutions, which is not PyTorch's default.
    """
    device = resolve_device(cfg)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if cfg.TRAIN.TF32 else "highest")
        torch.backends.cudnn.allow_tf32 = cfg.TRAIN.TF32
    return device


def _of_local_rank(name: str, use_cuda: bool) -> torch.device:
    """Choose the device of one of several processes; refuse one device for all, or too few GPUs."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"DEVICE is {name!r}, but each of {launched_size()} processes (torchrun) needs a "
            "device of its own; set auto, cuda or cpu"
        )
    count = torch.cuda.device_count() if use_cuda and torch.cuda.is_available() else 0
    # Several processes on CPUs are rarely faster than one, but need no GPU to be tried out.
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if not use_cuda:
        raise ValueError("DEVICE is cuda, but USE_CUDA is False; set one of them differently")
    if count == 1 and "SLURM_GPUS_PER_TASK" in os.environ:
        return torch.device("cuda", 0)  # SLURM shows each task its own GPU only
    if local_rank() >= count:
        raise ValueError(
            f"process {local_rank()} of this machine (torchrun --nproc_per_node) has no GPU: "
            f"PyTorch sees {count} CUDA devices; start at most as many, or set DEVICE cpu"
        )
    return torch.device("cuda", local_rank())


def compute_deterministically(asked: bool) -> None:
    """Let equal runs on a GPU give equal bits, if ``TRAIN.DETERMINISTIC`` asks for it.

    Otherwise sums whose parts GPUs add in whatever order they are ready differ in their last bits.
    An operation that PyTorch has in no deterministic form raises a RuntimeError. A switch of the
    process that somebody else has set stays as it is.
    """
    if asked:
        # cuBLAS reads it when it is first used, which is after this.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def requested_precision(cfg: CfgNode, section: str | None) -> str:
    """Read a trainer's precision, one of `PRECISIONS`, from the configuration.

    ``section`` is its section under TRAINER, by default the trainer's name, or that in capitals, as
    in CoOp's repository. Without such a section or without PREC it is fp32.

    Raises:
        ValueError: Another value.
    """
    section = section or cfg.TRAINER.NAME
    node = cfg.TRAINER.get(section, cfg.TRAINER.get(section.upper()))
    precision = node.get("PREC", "fp32") if isinstance(node, CfgNode) else "fp32"
    return check_availability(precision, PRECISIONS, f"TRAINER.{section}.PREC")


def stated_precision(cfg: CfgNode, section: str | None) -> str:
    """Return the config's precision for a trainer that sets its own; "custom" for its own word."""
    try:
        return requested_precision(cfg, section)
    except ValueError:
        return "custom"


def resolve_precision(cfg: CfgNode, section: str | None, device: torch.device, notes: Any) -> str:
    """Return the requested precision if the device supports it, otherwise fp32 with a note."""
    requested = requested_precision(cfg, section)
    if (
        requested == "fp32"
        # Half weights (fp16) and autocast with loss scaling (amp): PyTorch has both on CUDA only.
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
    dtype = AUTOCAST_TYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
