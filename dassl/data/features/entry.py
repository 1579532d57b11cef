"""One entry of the feature cache: a folder with an array, and a description to verify it by.

    <dataset>-<split>-<hash16>/
        features.npy    (N, D), as ``np.save`` writes it
        key.json        {"key": what the features were made from, "meta": shape, checksum, ...}

Which entry is needed and which job makes it is up to the cache (`dassl.data.features.cache`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dassl.config.identity import digest_of
from dassl.utils.files import read_json

__all__ = [
    "ENTRY_NAME",
    "FeatureCacheError",
    "FeatureEntry",
    "FeatureWriter",
    "check_contents",
    "entry_name",
    "explained",
    "mebibytes",
]

ENTRY_NAME = r"[\w.-]+-(?:train|val|test)-[0-9a-f]{16}"
_FEATURES, _KEY = "features.npy", "key.json"
_BLOCK = 1 << 20  # bytes read at a time for a checksum
_verified: set[tuple[Any, ...]] = set()  # files whose checksum this process has found right


class FeatureCacheError(ValueError):
    """The cache's directory cannot be used; the message says why and what helps."""


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn the system's errors in a block into a `FeatureCacheError` about FEATURE_CACHE.DIR."""
    try:
        yield
    except OSError as error:
        raise FeatureCacheError(
            f'FEATURE_CACHE.DIR is "{directory}", which cannot be used: {error}. Set it to a '
            "folder that can be written and has space, make space (python scripts/features.py "
            "clear), or set FEATURE_CACHE.ENABLED False"
        ) from error


def entry_name(key: dict[str, Any]) -> str:
    """Return the name of the folder for a key, plain data with ``dataset`` and ``split``."""
    dataset = re.sub(r"[^\w.-]", "_", str(key["dataset"]))
    return f"{dataset}-{key['split']}-{digest_of(key)[:16]}"


def check_contents(path: Path) -> None:
    """Refuse a folder that is not an entry, so that nothing else is ever removed as one.

    Raises:
        OSError: It is not a folder, has another name, or holds further files.
    """
    if path.is_symlink() or not re.fullmatch(ENTRY_NAME, path.name):
        raise OSError(f'"{path}" is no entry of a feature cache')
    foreign = set(os.listdir(path)) - {_FEATURES, _KEY}
    if foreign:
        raise OSError(f'"{path}" also holds {", ".join(sorted(foreign)[:5])}; move it away')


@dataclass(frozen=True)
class FeatureEntry:
    """A whole entry.

    Attributes:
        path: Its folder.
        key: What the features were made from.
        shape: (N, D).
        dtype: NumPy's name of the numbers' type.
        created: Seconds since the epoch.
        missing: Reason by row, for images that could not be read; their rows are zero.
        crc32: Checksum of ``features.npy``.
        size: Bytes on disk.
    """

    path: Path
    key: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str
    created: float
    missing: dict[int, str]
    crc32: int
    size: int

    @classmethod
    def read(cls, path: Path) -> FeatureEntry:
        """Read and check an entry's description.

        Raises:
            ValueError: It is damaged, or not an entry at all.
        """
        try:
            check_contents(path)
            content = read_json(path / _KEY)
            meta = content["meta"]
            meta["shape"] = tuple(meta["shape"])
            meta["missing"] = {int(row): reason for row, reason in meta["missing"].items()}
            size = sum((path / name).stat().st_size for name in (_FEATURES, _KEY))
            entry = cls(path, content["key"], size=size, **meta)
            name = entry_name(entry.key)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f'"{path}" is damaged: {error!r}') from error
        if name != path.name:
            raise ValueError(f'"{path}" is damaged: its key is that of {name}')
        return entry

    def features(self) -> Tensor:
        """Return the features (N, D), mapped into memory.

        The first time in a process, the whole file is read for its checksum.

        Raises:
            ValueError: The file is damaged.
        """
        path = self.path / _FEATURES
        try:
            # Copy on write: PyTorch wants writable memory, but the file must not change.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
            status = path.stat()
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f'"{path}" is damaged: {error}') from error
        found = (array.shape, array.dtype.name, status.st_size)
        expected = (self.shape, self.dtype, array.offset + array.nbytes)
        if found != expected:
            raise ValueError(
                f'"{path}" is damaged: shape, type and bytes are {found}, not {expected}'
            )
        # A file that was replaced or touched since is read again.
        state = (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
        known = (str(path.absolute()), *state, self.crc32)
        if known not in _verified:
            with open(path, "rb") as file:
                checksum = file_crc32(file)
            if checksum != self.crc32:
                raise ValueError(
                    f'"{path}" is damaged: its checksum is {checksum:08x}, not {self.crc32:08x}'
                )
            _verified.add(known)
        return torch.from_numpy(array)


def file_crc32(file: IO[bytes]) -> int:
    """Return the CRC-32 of an open file's whole content."""
    file.seek(0)
    found = 0
    while block := file.read(_BLOCK):
        found = zlib.crc32(block, found)
    return found


class FeatureWriter:
    """Collects the rows of an entry, in any order, and writes them when all are there.

    Until then they are in memory, 2.4 GiB for the training images of ImageNet in 512 dimensions:
    with a mapped file, a full disk would kill the process instead of raising an error.

    Attributes:
        missing: Reason by row, for rows that will not come.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        """Prepare ``rows`` rows for an entry in ``directory``; nothing is written yet."""
        self.directory = directory
        self.missing: dict[int, str] = {}
        self._written = np.zeros(rows, dtype=bool)
        self._features: np.ndarray | None = None  # (N, D)

    def add(self, rows: Sequence[int], features: np.ndarray) -> None:
        """Take the n rows with these numbers, features (n, D).

        Raises:
            FeatureCacheError: The disk has not enough space for the entry.
            ValueError: There are not n features.
        """
        if len(rows) != len(features):
            raise ValueError(f"{len(features)} features for {len(rows)} rows")
        if self._features is None:
            # Only the first features tell D. Check for a full disk now rather than after hours.
            self._features = np.zeros((len(self._written), features.shape[1]), features.dtype)
            with explained(self.directory.parent):
                needed, free = self._features.nbytes, shutil.disk_usage(self.directory).free
                if free < needed:
                    raise OSError(f"{mebibytes(needed)} are needed, {mebibytes(free)} are free")
        self._features[list(rows)] = features
        self._written[list(rows)] = True

    def unwritten(self) -> list[int]:
        """Return the numbers of the rows that have not come."""
        return np.flatnonzero(~self._written).tolist()

    def finish(self, key: dict[str, Any]) -> None:
        """Write array and description, and make sure that both are on disk.

        Raises:
            FeatureCacheError: Writing fails.
            ValueError: Nothing was added, or rows are neither written nor named as missing.
        """
        if self._features is None:
            raise ValueError("none of the images can be read; see the log for their paths")
        forgotten = set(self.unwritten()) - self.missing.keys()
        if forgotten:
            raise ValueError(f"{len(forgotten)} rows were not written, such as {min(forgotten)}")
        meta: dict[str, Any] = {
            "shape": self._features.shape,
            "dtype": self._features.dtype.name,
            "created": time.time(),
            "missing": self.missing,
        }
        with (
            explained(self.directory.parent),
            open(self.directory / _FEATURES, "w+b") as array,
            open(self.directory / _KEY, "w", encoding="utf-8") as description,
        ):
            np.save(array, self._features)
            # Computed from what the disk gives back, which is not always what was written.
            meta["crc32"] = file_crc32(array)
            json.dump({"key": key, "meta": meta}, description, indent=2)
            for file in (array, description):
                file.flush()
                os.fsync(file.fileno())


def mebibytes(size: float) -> str:
    """Format a number of bytes for people."""
    return f"{size / 2**20:,.1f} MiB"
