"""Trained weights as a safetensors file: tensors, and what they are in JSON; nothing that runs.

The second form of a checkpoint, for handing weights on. Everybody's safetensors library reads it,
and the header can be read without the weights. It holds neither optimiser nor schedule, so no
training resumes from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dassl.utils.files import atomic_write

__all__ = ["ADAPTER_NAME", "read_adapter", "write_adapter"]

ADAPTER_NAME = "adapter.safetensors"
# The format's own metadata are texts by name, so that ours is one text of JSON.
_ENTRY = "adapter"
_VERSION = 1


def write_adapter(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], epoch: int, meta: Mapping[str, Any]
) -> None:
    """Write weights, and what a checkpoint says about its run, atomically.

    Args:
        path: Destination.
        state: Tensors by name.
        epoch: Epochs they were trained for.
        meta: Plain data: method, backbone, class names, config, ...
    """
    from safetensors.torch import save  # seconds that commands without weights save

    header = {"version": _VERSION, "epoch": epoch, "meta": dict(meta)}
    # The format has no views: tensors that share memory, or have gaps in theirs, are refused.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    # "format" is what other readers of the field look for.
    content = save(tensors, metadata={"format": "pt", _ENTRY: json.dumps(header)})
    with atomic_write(path, "wb") as file:
        file.write(content)


def read_adapter(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a safetensors file as a checkpoint's dict: ``state_dict`` and, if known, the rest.

    A file of another program has tensors only.

    Raises:
        ValueError: A later version of this project wrote it.
        Exception: It is damaged; the library's own types.
    """
    from safetensors.torch import load

    data = Path(path).read_bytes()
    content: dict[str, Any] = {"state_dict": load(data)}
    # The file begins with the length of its header, which holds the metadata.
    length = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_ENTRY)
    if entry is None:
        return content
    header = json.loads(entry)
    if header["version"] > _VERSION:
        raise ValueError(
            f"it has version {header['version']}, this project reads up to {_VERSION}; update it"
        )
    return {**content, "epoch": header["epoch"], "meta": header["meta"]}
