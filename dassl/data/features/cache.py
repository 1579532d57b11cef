"""Features on disk, found again by what they were made from.

Each set of features is an entry (`dassl.data.features.entry`), named by a hash of its key. An entry
is written under a temporary name, then renamed, so that a visible entry is always whole. Of
concurrent jobs one makes an entry and the others wait for it; the next job removes what a killed
one left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from dassl.config import user_path
from dassl.data.features.entry import (
    ENTRY_NAME,
    FeatureCacheError,
    FeatureEntry,
    FeatureWriter,
    check_contents,
    entry_name,
    explained,
    mebibytes,
)
from dassl.locks import LockedError, acquire

__all__ = [
    "DEFAULT_DIR",
    "FeatureCache",
    "FeatureCacheError",
    "FeatureEntry",
    "FeatureWriter",
    "clear_cache",
    "list_cache",
    "mebibytes",
]

DEFAULT_DIR = "./feature_cache"
# Part of every key: raised when the same key would give other features than before.
FORMAT = 2  # 1: photos as the camera was held, deep greys clipped
_LEFTOVER = re.compile(rf"\.({ENTRY_NAME})\.(?:[0-9a-f]{{32}}\.tmp|lock)")


class FeatureCache:
    """The entries of one directory, FEATURE_CACHE.DIR."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Create the directory.

        Raises:
            FeatureCacheError: It is a file or cannot be written.
        """
        self.directory = Path(user_path(directory))
        with explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            # Asked of the file system itself: permissions do not show a read-only or full disk.
            tempfile.TemporaryFile(dir=self.directory).close()
            _sweep(self.directory)

    def fetch(
        self, key: dict[str, Any], rows: int, make: Callable[[FeatureWriter], None]
    ) -> tuple[FeatureEntry, Tensor]:
        """Return a key's entry and its features (N, D), mapped into memory; make a missing one.

        Args:
            key: Everything that the features depend on, plain data; with ``dataset`` and ``split``.
            rows: N.
            make: Gives the rows to a writer. Called by one of concurrent jobs; the others wait.

        Raises:
            FeatureCacheError: The directory cannot be written, or has not enough space.
            ValueError: None of the images can be read.
        """
        key = json.loads(json.dumps({"format": FORMAT, **key}))  # as it will be read back
        path = self.directory / entry_name(key)
        found = _find(path, key)
        if found is None:
            with _locked(path) as alone:
                found = _find(path, key)  # another job may have made it meanwhile
                if found is None:
                    return self._make(path, alone, key, rows, make)
        print(f'Feature cache: reading "{path}" ({mebibytes(found[0].size)})')
        return found

    def _make(
        self,
        path: Path,
        alone: bool,
        key: dict[str, Any],
        rows: int,
        make: Callable[[FeatureWriter], None],
    ) -> tuple[FeatureEntry, Tensor]:
        """Make an entry, replacing a damaged one and what killed jobs left of it."""
        temporary = _temporary(path)
        with explained(self.directory):
            if os.path.lexists(path):
                print(f'Feature cache: WARNING: "{path}" is damaged and is made again')
                _discard(path)
            if alone:
                _remove_temporaries(path)
            temporary.mkdir()
        print(f'Feature cache: making "{path}" ({rows:,} images)')
        try:
            writer = FeatureWriter(temporary, rows)
            make(writer)  # outside of `explained`: an unreadable image is not the cache's fault
            writer.finish(key)
            with explained(self.directory):
                _publish(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        entry, entries = FeatureEntry.read(path), list_cache(self.directory)
        print(
            f'Feature cache: wrote {mebibytes(entry.size)}; "{self.directory}" holds '
            f"{mebibytes(sum(entry.size for entry in entries))} in {len(entries)} entries"
        )
        return entry, entry.features()


def list_cache(directory: str | os.PathLike[str]) -> list[FeatureEntry]:
    """Return the entries of a directory, by name."""
    entries = []
    for path in sorted(Path(directory).iterdir()):
        with suppress(ValueError):
            entries.append(FeatureEntry.read(path))
    return entries


def clear_cache(
    directory: str | os.PathLike[str], dataset: str | None = None
) -> tuple[list[FeatureEntry], list[Path]]:
    """Remove entries (of one dataset or all) and what killed jobs left; nothing else.

    Returns:
        The removed entries, and the paths that were left alone because they are not entries.
    """
    removed = [e for e in list_cache(directory) if dataset in (None, e.key["dataset"])]
    for entry in removed:
        with _locked(entry.path):
            if os.path.lexists(entry.path):  # else another job has removed it
                _discard(entry.path)
    _sweep(Path(directory))
    entries = {entry.path for entry in list_cache(directory)}
    rest = [p for p in sorted(Path(directory).iterdir()) if not _LEFTOVER.fullmatch(p.name)]
    return removed, [path for path in rest if path not in entries]


def _find(path: Path, key: dict[str, Any]) -> tuple[FeatureEntry, Tensor] | None:
    """Return an entry and its features, if it is whole and its key (not only the hash) fits."""
    try:
        entry = FeatureEntry.read(path)
        return (entry, entry.features()) if entry.key == key else None
    except ValueError:
        return None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _publish(temporary: Path, path: Path) -> None:
    try:
        os.rename(temporary, path)
    except OSError:
        if not path.is_dir():
            raise  # otherwise another job was faster, without locks: its entry is the same


def _discard(path: Path) -> None:
    """Remove an entry; renamed first, so that nobody ever sees a half removed one."""
    check_contents(path)
    temporary = _temporary(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def _remove_temporaries(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if _LEFTOVER.fullmatch(left.name):
            shutil.rmtree(left)


def _sweep(directory: Path) -> None:
    """Remove what killed jobs left of any entry, except for what belongs to another user."""
    for name in {m[1] for p in directory.iterdir() if (m := _LEFTOVER.fullmatch(p.name))}:
        with (
            suppress(OSError, FeatureCacheError),
            _locked(directory / name, wait=False) as alone,
        ):
            if alone:
                _remove_temporaries(directory / name)


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Be the only job that makes or removes an entry; gives whether this job has the lock.

    Without ``wait``, go on without the lock if another job has it. A file system without locks
    never gives one.
    """

    def say() -> None:
        print(f"Feature cache: waiting for another job, which is at work on {path.name}")

    found = None
    with explained(path.parent), suppress(LockedError):
        lock = path.with_name(f".{path.name}.lock")
        found = acquire(lock, wait=say if wait else None, patience=0)
    if found is None:
        yield False
        return
    with found:
        yield found.held
