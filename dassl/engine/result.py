"""result.json: what a run measured, and everything needed to trace the number."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dassl.config import user_path
from dassl.config.identity import IDENTITY_NAME, digest_of, is_sealed, sealed
from dassl.config.inputs import InputCheck
from dassl.data.datasets.base_dataset import Datum
from dassl.utils.files import read_json, write_json

__all__ = [
    "RESULT_NAME",
    "is_done",
    "peak_memory_mb",
    "read_identity",
    "read_result",
    "split_hash",
    "write_result",
]

RESULT_NAME = "result.json"
_FORMAT = 1
_ENTRIES = ("trainer", "dataset", "seed", "metrics", "config", "config_hash")


def split_hash(
    root: str | os.PathLike[str], train: Sequence[Datum] | None, test: Sequence[Datum] | None
) -> str:
    """Hash which images with which labels a run trained and tested on.

    Args:
        root: DATASET.ROOT; paths are taken relative to it, so the hash does not depend on where
            the data lies.
        train: Training images.
        test: Test images.

    Returns:
        SHA-256 in hexadecimal, independent of the images' order.
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

    Args:
        device: Device of the run.

    Returns:
        Megabytes, or None where the system does not tell.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def write_result(directory: str | os.PathLike[str], content: dict[str, Any]) -> Path:
    """Write ``result.json`` atomically.

    Args:
        directory: Run directory.
        content: Everything but ``format`` and ``status``.

    Returns:
        Path of the file.
    """
    path = Path(directory) / RESULT_NAME
    write_json(sealed({"format": _FORMAT, "status": "complete", **content}), path)
    return path


def read_result(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a run's result.

    Args:
        directory: Run directory.

    Returns:
        Content of ``result.json``, or None if it is absent, damaged, changed since it was written,
        or incomplete.
    """
    try:
        content = read_json(Path(directory) / RESULT_NAME)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not is_sealed(content):
        return None
    if content.get("status") != "complete" or any(key not in content for key in _ENTRIES):
        return None
    metrics = content["metrics"]
    if not isinstance(metrics, dict) or not isinstance(metrics.get("accuracy"), int | float):
        return None
    return content


def is_done(directory: str | os.PathLike[str], config_hash: str) -> bool:
    """Tell whether a run is complete, was made with this configuration, and would read the same.

    Args:
        directory: Run directory.
        config_hash: From `dassl.config.config_hash`.
    """
    result = read_result(directory)
    if result is None or result["config_hash"] != config_hash:
        return False
    if "identity" not in result:  # of an older version
        return True
    identity = read_identity(directory)
    if identity is None or digest_of(identity) != result["identity"]:
        return False
    inputs = identity["inputs"]
    return not InputCheck().changes(inputs, inputs["places"])


def read_identity(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read what a run has written of all that it was made from.

    Args:
        directory: Run directory.

    Returns:
        `dassl.engine.run_identity.RunIdentity.content`, or None if there is none that can be read.
    """
    try:
        content = read_json(Path(directory) / IDENTITY_NAME)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return None
    return content
