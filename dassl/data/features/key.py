"""Hashes that tell whether cached features are still those of the same weights and images."""

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
    """SHA-256 of names, types, shapes and bytes.

    Args:
        tensors: By name.
        structure: Text that belongs to them, such as the modules that hold them.
    """
    digest = hashlib.sha256(structure.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()


def hash_files(paths: Sequence[str], root: str, contents: bool = False) -> str:
    """SHA-256 of the files' places below a folder, and of what tells that one was replaced.

    These are its size, times and inode number: two images that change places may agree in size
    and time of modification. A copied dataset is another one; its features are made once more.

    Args:
        paths: In their order; a file that is not there counts as such.
        root: DATASET.ROOT.
        contents: Tell files apart by their contents instead, wherever they are copied to; all of
            them are read.
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
    """Return the repr of a module or transform without the addresses that default ones contain."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))
