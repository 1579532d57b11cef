"""A run's files: ``result.json``, what it measured, and ``identity.json``, what it was made from.

Engine, job driver and reports all read them here, so that they agree on which runs are finished.
Nothing imports PyTorch, so that a dry run or a report starts at once.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from dassl.config.identity import IDENTITY_NAME, digest_of, is_sealed, sealed
from dassl.config.inputs import InputCheck
from dassl.utils.files import read_json, write_json

__all__ = [
    "RESULT_FORMAT",
    "RESULT_NAME",
    "is_done",
    "no_result",
    "read_identity",
    "read_object",
    "read_result",
    "write_result",
]

RESULT_NAME = "result.json"
RESULT_FORMAT = 1
# What readers take for granted; other entries may be missing in results of older versions.
_ENTRIES = ("trainer", "dataset", "seed", "metrics", "config", "config_hash")


def write_result(directory: str | os.PathLike[str], content: dict[str, Any]) -> Path:
    """Seal ``result.json``, adding ``format`` and ``status``; write it atomically."""
    path = Path(directory) / RESULT_NAME
    write_json(sealed({"format": RESULT_FORMAT, "status": "complete", **content}), path)
    return path


def read_object(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is absent, damaged or holds something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_result(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a finished run's ``result.json``.

    None if it is absent, damaged, changed since it was written, incomplete, or without a finite
    accuracy.
    """
    content = read_object(Path(directory) / RESULT_NAME)
    if content is None or content.get("format") != RESULT_FORMAT or not is_sealed(content):
        return None
    if content.get("status") != "complete" or any(key not in content for key in _ENTRIES):
        return None
    metrics = content["metrics"]
    accuracy = metrics.get("accuracy") if isinstance(metrics, dict) else None
    # JSON's true is an int in Python; NaN would spoil every mean that it enters.
    if not isinstance(accuracy, int | float) or isinstance(accuracy, bool):
        return None
    return content if math.isfinite(accuracy) else None


def no_result(directory: str | os.PathLike[str]) -> str:
    """Say why `read_result` finds no finished run in a directory."""
    path = Path(directory) / RESULT_NAME
    content = read_object(path)
    if content is None and path.is_file():
        return f"{RESULT_NAME} is damaged: cut short or no JSON"
    if content is not None and not is_sealed(content):
        return f"{RESULT_NAME} is damaged: it was changed after it was written"
    return "no complete result"


def read_identity(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the `dassl.engine.run_identity.RunIdentity.content` of a run; None if there is none."""
    content = read_object(Path(directory) / IDENTITY_NAME)
    return content if content is not None and content.get("format") == RESULT_FORMAT else None


def is_done(directory: str | os.PathLike[str], config_hash: str) -> bool:
    """Tell whether a run is complete, has this config hash, and would read the same files again."""
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
