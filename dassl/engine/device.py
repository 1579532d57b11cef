"""The one rule by which a device is chosen."""

from __future__ import annotations

import re

import torch
from yacs.config import CfgNode

from dassl.utils.distributed import launched_size, local_rank

__all__ = ["resolve_device"]


def resolve_device(cfg: CfgNode) -> torch.device:
    """Choose the device that ``cfg.DEVICE`` and ``cfg.USE_CUDA`` ask for.

    Args:
        cfg: Configuration. ``DEVICE: auto`` takes CUDA if there is any and USE_CUDA allows it, else
            MPS, else the CPU. Of several processes on a machine, as torchrun starts them, each gets
            the GPU with its local rank's number.

    Returns:
        The device.

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

    Args:
        name: DEVICE.
        use_cuda: USE_CUDA.

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
