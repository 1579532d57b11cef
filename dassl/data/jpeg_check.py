"""Whether a GPU can decode a run's training images: INPUT.DECODE cuda."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from yacs.config import CfgNode

from dassl.data.jpegs import decode
from dassl.data.transforms import crop_and_flip, split_transform

__all__ = ["check_decoding"]


def check_decoding(
    cfg: CfgNode, transform: Any, device: torch.device | None, own_wrapper: bool
) -> None:
    """Refuse INPUT.DECODE cuda where the device cannot do what the configuration asks for.

    Args:
        cfg: Configuration.
        transform: Of training images.
        device: What decodes; None if it is no GPU.
        own_wrapper: Whether the method reads images in a way of its own.

    Raises:
        ValueError: It cannot, and why.
    """
    loading = cfg.DATALOADER
    reasons = (
        (device is None, f"the run has no CUDA GPU (DEVICE {cfg.DEVICE}, USE_CUDA {cfg.USE_CUDA})"),
        (own_wrapper, "the method reads images in a way of its own"),
        (cfg.INPUT.FAST_DECODE, "INPUT.FAST_DECODE is True, which only Pillow can do"),
        (loading.K_TRANSFORMS != 1, f"DATALOADER.K_TRANSFORMS is {loading.K_TRANSFORMS}, not 1"),
        (loading.RETURN_IMG0, "DATALOADER.RETURN_IMG0 is True"),
        (
            crop_and_flip(transform) is None,
            f"training images go through {_shown(transform)}, and a GPU does random_resized_crop "
            "with or without random_flip and normalize (INPUT.TRANSFORMS)",
        ),
    )
    found = [reason for holds, reason in reasons if holds]
    if not found and device is not None:
        found = _refusal(device)
    if found:
        raise ValueError(f"INPUT.DECODE is cuda, but {found[0]}; set INPUT.DECODE pillow")


def _shown(transform: Any) -> str:
    first, rest = split_transform(transform) or (None, [])
    steps = [*first.transforms, *rest] if first else [transform]
    return ", ".join(type(step).__name__ for step in steps)


def _refusal(device: torch.device) -> list[str]:
    """Say why PyTorch cannot decode a JPEG on a device, found out with a small one."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    data = torch.from_numpy(np.frombuffer(bytearray(file.getvalue()), np.uint8))  # (N,)
    try:
        decode([data], device)
    except (ImportError, RuntimeError) as error:  # built without nvJPEG, or of another version
        why = (str(error).splitlines() or [""])[0]
        return [f"torchvision {torchvision.__version__} decodes no JPEG on {device} ({why})"]
    return []
