"""Hashes that tell whether cached features still belong to the same weights and images."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dassl.config import user_path
from dassl.config.identity import file_hash

__all__ = ["described", "hash_files", "hash_tensors"]


def hash_tensors(tensors: dict[str, Tensor], structure: str = "") -> str:
    """Return the SHA-256 of names, types, shapes and bytes of tensors.

    ``structure`` is a text that belongs to them, such as the modules that hold them.
    """
    digest = hashlib.sha256(structure.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # a scalar has no bytes to view
        digest.update(flat.view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()


def hash_files(paths: Sequence[str], root: str, contents: bool = False) -> str:
    """Return the SHA-256 of the files' places below ``root``, and of what shows a replaced file.

    That is its size, times and inode number: two images that change places may agree in size and
    time of modification. A copied dataset is a different one; its features are computed again.

    With ``contents``, all files are read and told apart by their contents instead, wherever they
    are copied to. A missing file is hashed as missing.
    """
    base = os.path.abspath(user_path(root))
    digest = hashlib.sha256()
    for path in paths:
        try:
            state = file_hash(path) if contents else _state(os.stat(path))
        except OSError:  # loading it will raise or skip, as INPUT.ON_BAD_IMAGE says
            state = "missing"
        place = os.path.relpath(os.path.abspath(path), base).replace(os.sep, "/")
        digest.update(f"{place}\t{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state(status: os.stat_result) -> str:
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return "\t".join(map(str, state))


def described(thing: Any) -> str:
    """Return the repr of a module or transform, without the memory addresses in default ones."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))
