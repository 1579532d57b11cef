"""Files: atomic writes, JSON, directory listings."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = [
    "atomic_write",
    "check_isfile",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_json",
    "write_json",
]


def mkdir_if_missing(dirname: str | os.PathLike[str]) -> None:
    """Create a directory and its parents unless it is there.

    Args:
        dirname: Directory.
    """
    os.makedirs(dirname or ".", exist_ok=True)


def check_isfile(fpath: str | os.PathLike[str]) -> bool:
    """Tell whether a file exists, warning if not.

    Args:
        fpath: Path of the file.

    Returns:
        True if it is a file.
    """
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str | os.PathLike[str], sort: bool = False) -> list[str]:
    """List a directory without dot files.

    Args:
        path: Directory.
        sort: Sort by name; otherwise the file system's order.

    Returns:
        Names of the entries.
    """
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that becomes ``path`` only when everything was written.

    Whoever reads ``path`` sees the old content or the new one, never a part, even after a kill
    or a power cut: the temporary file lies in the same directory, is synced, then renamed.

    Args:
        path: Destination; missing parent directories are created.
        mode: ``"w"`` for UTF-8 text or ``"wb"``.

    Yields:
        The open temporary file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_json(fpath: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Args:
        fpath: Path of the file.

    Returns:
        The parsed content.

    Raises:
        ValueError: Not valid JSON, or a key stands twice in an object; the message names the file.
    """
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{fpath} is not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; JSON's usual reader would keep the last of two silently."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} stands twice in one object; only one of them could count")
    return content


def write_json(obj: Any, fpath: str | os.PathLike[str]) -> None:
    """Write a JSON file atomically, creating its directory.

    Args:
        obj: Anything JSON can hold.
        fpath: Path of the file.
    """
    with atomic_write(fpath) as file:
        json.dump(obj, file, indent=4, separators=(",", ": "), ensure_ascii=False)
        file.write("\n")
