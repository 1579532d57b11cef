"""Entries of a run's result beside the metrics: the split it used and its peak memory."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence

import torch

from dassl.config import user_path
from dassl.data.datasets.base_dataset import Datum

__all__ = ["peak_memory_mb", "split_hash"]


def split_hash(
    root: str | os.PathLike[str], train: Sequence[Datum] | None, test: Sequence[Datum] | None
) -> str:
    """Return the SHA-256 of which images with which labels a run trained and tested on.

    Paths are taken relative to ``root``, DATASET.ROOT, and sorted: neither the data's place nor the
    order of the images matters.
    """
    base = os.path.abspath(user_path(root))
    digest = hashlib.sha256()
    for name, images in (("train", train), ("test", test)):
        rows = sorted(
            (os.path.relpath(os.path.abspath(i.impath), base).replace(os.sep, "/"), i.label)
            for i in images or ()
        )
        digest.update(
            "".join(f"{name}\t{path}\t{label}\n" for path, label in rows).encode(
                errors="surrogateescape"
            )
        )
    return digest.hexdigest()


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the peak memory of the run in MB: the GPU's, or the process's on the CPU.

    None if the system does not tell.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    # In bytes on macOS, in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
