"""One entry of a feature cache: reading it with all checks, writing it row by row."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

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
_BLOCK = 1 << 20
_verified: set[tuple[Any, ...]] = set()  # files whose checksum this process has found right


class FeatureCacheError(ValueError):
    """The cache's directory cannot be used; the message says why and what helps."""


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn the system's errors in a block into a `FeatureCacheError`.

    Args:
        directory: FEATURE_CACHE.DIR.
    """
    try:
        yield
    except OSError as error:
        raise FeatureCacheError(
            f'FEATURE_CACHE.DIR is "{directory}", which cannot be used: {error}. Set it to a '
            "folder that can be written and has space, make space (python scripts/features.py "
            "clear), or set FEATURE_CACHE.ENABLED False"
        ) from error


def entry_name(key: dict[str, Any]) -> str:
    """Return the name of the directory for a key.

    Args:
        key: Plain data, with ``dataset`` and ``split``.
    """
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    dataset = re.sub(r"[^\w.-]", "_", str(key["dataset"]))
    return f"{dataset}-{key['split']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_contents(path: Path) -> None:
    """Refuse what cannot be an entry, so that it is never removed as one.

    Args:
        path: Directory.

    Raises:
        OSError: No directory, another name, or further files in it.
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
        path: Its directory.
        key: What the features were made from.
        shape: (N, D).
        dtype: NumPy's name of the numbers' type.
        size: Bytes on disk.
        created: Seconds since the epoch.
        missing: Reason by row, for images that could not be read.
        crc32: Checksum of ``features.npy``.
    """

    path: Path
    key: dict[str, Any]
    shape: tuple[int, int]
    dtype: str
    size: int
    created: float
    missing: dict[int, str]
    crc32: int

    @classmethod
    def read(cls, path: Path) -> FeatureEntry:
        """Read and check an entry's description.

        Args:
            path: Its directory.

        Raises:
            ValueError: It is damaged, or no entry at all.
        """
        try:
            check_contents(path)
            content = read_json(path / _KEY)
            key, meta = content["key"], content["meta"]
            entry = cls(
                path,
                key,
                shape=(int(meta["shape"][0]), int(meta["shape"][1])),
                dtype=str(meta["dtype"]),
                size=sum((path / name).stat().st_size for name in (_FEATURES, _KEY)),
                created=float(meta["created"]),
                missing={int(row): str(reason) for row, reason in meta["missing"].items()},
                crc32=int(meta["crc32"]),
            )
            name = entry_name(key)
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
            # Copy on write: PyTorch wants writable memory, and the file must stay as it is.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
            found = (array.shape, array.dtype.name, path.stat().st_size)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f'"{path}" is damaged: {error}') from error
        expected = (self.shape, self.dtype, array.offset + array.nbytes)
        if found != expected:
            raise ValueError(
                f'"{path}" is damaged: shape, type and bytes are {found}, not {expected}'
            )
        self._verify(path)
        return torch.from_numpy(array)

    def _verify(self, path: Path) -> None:
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
        known = (str(path.absolute()), *state, self.crc32)
        if known in _verified:
            return
        with open(path, "rb") as file:
            found = file_crc32(file)
        if found != self.crc32:
            raise ValueError(
                f'"{path}" is damaged: its checksum is {found:08x}, not {self.crc32:08x}'
            )
        _verified.add(known)


def file_crc32(file: IO[bytes]) -> int:
    """CRC-32 of everything in a file.

    Args:
        file: Open for reading; is read from its beginning to its end.
    """
    file.seek(0)
    found = 0
    while block := file.read(_BLOCK):
        found = zlib.crc32(block, found)
    return found


class FeatureWriter:
    """Takes the rows of an entry, in any order.

    Attributes:
        missing: Reason by row that will not come.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        """Write nothing yet: the first features tell how much space is needed.

        Args:
            directory: Of the entry, inside that of the cache.
            rows: N.
        """
        self.directory = directory
        self.missing: dict[int, str] = {}
        self._written = np.zeros(rows, dtype=bool)
        self._file: IO[bytes] | None = None

    def add(self, rows: Sequence[int], features: np.ndarray) -> None:
        """Write some rows.

        Args:
            rows: Their n numbers.
            features: (n, D).

        Raises:
            FeatureCacheError: There is not enough space, or writing fails.
        """
        with explained(self.directory.parent):
            file = self._file or self._open(features)
            for row, values in zip(rows, np.ascontiguousarray(features), strict=True):
                file.seek(self._offset + row * values.nbytes)
                file.write(values.data)
        self._written[list(rows)] = True

    def _open(self, features: np.ndarray) -> IO[bytes]:
        self._shape, self._dtype = (len(self._written), features.shape[1]), features.dtype
        needed = self._shape[0] * self._shape[1] * features.itemsize
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(f"{mebibytes(needed)} are needed, {mebibytes(free)} are free")
        # No memory map here: without space for a page it kills the process instead of raising.
        self._file = file = open(self.directory / _FEATURES, "w+b")
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(file, header)
        self._offset = file.tell()
        file.truncate(self._offset + needed)
        return file

    def unwritten(self) -> list[int]:
        """Return the rows that have not come."""
        return np.flatnonzero(~self._written).tolist()

    def finish(self, key: dict[str, Any]) -> None:
        """Write the description and secure both files on disk.

        Args:
            key: What the features were made from.

        Raises:
            FeatureCacheError: Writing fails.
            ValueError: Nothing was written, or rows are neither written nor named as missing.
        """
        if self._file is None:
            raise ValueError("none of the images can be read; see the log for their paths")
        forgotten = set(self.unwritten()) - self.missing.keys()
        if forgotten:
            raise ValueError(f"{len(forgotten)} rows were not written, such as {min(forgotten)}")
        with explained(self.directory.parent):
            crc32 = file_crc32(self._file)
        meta = {
            "crc32": crc32,
            "shape": self._shape,
            "dtype": self._dtype.name,
            "created": time.time(),
            "missing": {str(row): reason for row, reason in self.missing.items()},
        }
        with (
            explained(self.directory.parent),
            open(self.directory / _KEY, "w", encoding="utf-8") as description,
        ):
            json.dump({"key": key, "meta": meta}, description, indent=2)
            for file in (description, self._file):
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close the file, whatever its state."""
        if self._file is not None:
            with suppress(OSError):  # what is still buffered may not fit on the disk
                self._file.close()


def mebibytes(size: float) -> str:
    """Write a number of bytes for people.

    Args:
        size: Bytes.
    """
    return f"{size / 2**20:,.1f} MiB"
