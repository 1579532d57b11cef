"""Files that say what a run did: reading them back safely, writing them whole."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from dassl.config.identity import is_sealed

_INCOMPLETE = "no complete result"


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None when it is absent, cut short or something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def read_result(directory: Path) -> dict[str, Any] | None:
    """Return a run's ``result.json`` if the run finished, else None.

    This is ``dassl.engine.read_result`` without importing torch, which takes seconds that a dry
    run or a report should not cost.
    """
    result = read_json_object(directory / "result.json")
    if result is None or result.get("status") != "complete" or not is_sealed(result):
        return None
    metrics = result.get("metrics")
    accuracy = metrics.get("accuracy") if isinstance(metrics, dict) else None
    if not isinstance(accuracy, int | float) or isinstance(accuracy, bool):
        return None
    return result if math.isfinite(accuracy) else None


def no_result(directory: Path) -> str:
    """Return why a directory has no result that counts."""
    file = directory / "result.json"
    content = read_json_object(file)
    if content is None:
        return "result.json is damaged: cut short or no JSON" if file.is_file() else _INCOMPLETE
    if not is_sealed(content):
        return "result.json is damaged: it was changed after it was written"
    return _INCOMPLETE


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
