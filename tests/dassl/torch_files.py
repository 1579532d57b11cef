"""Files of PyTorch as others write them: with live objects, or forged member by member."""

import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def live_checkpoint():
    """What Dassl writes: the scheduler is a live object, and through it the optimiser."""
    model = nn.Linear(3, 2)
    optim = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optim.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 5)
    scheduler = {"successor": successor, "warmup_epoch": 1, "last_epoch": 2}
    state = model.state_dict()
    state["half"] = torch.arange(6).half().reshape(2, 3).t()
    state["bf16"] = torch.ones(2, dtype=torch.bfloat16)
    state["bool"] = torch.tensor([True, False])
    state["scalar"] = torch.tensor(3, dtype=torch.int64)
    state["empty"] = torch.zeros(0, 4)
    state["param"] = nn.Parameter(torch.ones(2))
    return {
        "state_dict": state,
        "epoch": 3,
        "optimizer": optim.state_dict(),
        "scheduler": scheduler,
        "val_result": None,
        "set": {1, 2},
        "raw": b"bytes",
    }


def members_of(content: Any) -> dict[str, bytes]:
    """What torch.save puts into its archive, by name."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A zip archive of these members, stored like PyTorch's unless told otherwise."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def forge(path: Path, pickled: bytes) -> Path:
    """A PyTorch file with this pickle and one storage of four 32-bit numbers, ``data/0``."""
    members = {**members_of(torch.ones(4)), "archive/data.pkl": pickled}
    return write_archive(path, members.items())


def flip_bit(path: Path, place: int) -> None:
    """Damage one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def flip_bit_in(path: Path, member: str) -> None:
    """Damage one bit of a member of a PyTorch file."""
    with zipfile.ZipFile(path) as archive:
        (entry,) = (e for e in archive.infolist() if e.filename.partition("/")[2] == member)
    lengths = struct.unpack_from("<2H", path.read_bytes(), entry.header_offset + 26)
    start = entry.header_offset + 30 + sum(lengths)  # behind the name and the padding
    flip_bit(path, start + entry.file_size // 2)


# What can be wrong with a checkpoint, and what is said of it.
SPOILED = {
    "a flipped bit": "Bad CRC-32 for file",
    "NaN": "has infinite or NaN values",
    "a whole model": "has no entry state_dict",
    "cut off": "is not a readable checkpoint",
}


def spoil(path: Path, how: str) -> None:
    """Make one of these out of a checkpoint."""
    if how == "a flipped bit":
        flip_bit_in(path, "data/0")
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        content: Any = torch.load(path, weights_only=True)
        next(v for v in content["state_dict"].values() if v.is_floating_point()).fill_(torch.nan)
        torch.save(nn.Linear(2, 2) if how == "a whole model" else content, path)
