"""Files: atomic writes, JSON, directory listings."""

from __future__ import annotations

import codecs
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
    "is_text",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_json",
    "read_text",
    "write_json",
]


def mkdir_if_missing(dirname: str | os.PathLike[str]) -> None:
    """Create a directory and its parents unless it is there."""
    os.makedirs(dirname or ".", exist_ok=True)


def check_isfile(fpath: str | os.PathLike[str]) -> bool:
    """Tell whether a file exists, warning if not.

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

    Raises:
        OSError: Writing failed; it names ``path``.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        # A name that is not Unicode is written as \udce9, which in JSON is its escape.
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with open(temporary, mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if (
            isinstance(error, OSError)
            and error.errno is not None
            and (error.filename in (None, str(temporary)))
        ):
            error.filename, error.filename2 = str(target), None
        raise


# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(fpath: str | os.PathLike[str]) -> str:
    r"""Read a text file that a person or another program wrote.

    UTF-8 with or without a byte order mark, and UTF-16 or UTF-32 with one. Others are named, not
    guessed: every file is valid Latin-1, whatever it was meant to be.

    Returns:
        Its text, lines ended by ``\n``.

    Raises:
        ValueError: Another encoding, or no text; the message names file and line.
    """
    try:
        return _decode(Path(fpath).read_bytes())
    except ValueError as error:
        raise ValueError(f"{fpath}, {error}") from None


def _decode(data: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise ValueError(f"line 1 on: damaged {encoding.upper()} ({error.reason})") from None
        number = data.count(b"\n", 0, error.start) + 1
        line = data.split(b"\n")[number - 1].strip()
        raise ValueError(
            f"line {number}: not UTF-8 (byte 0x{data[error.start]:02x}); if it is Latin-1 or "
            f"Windows-1252, where the line reads {line.decode('cp1252', 'replace')!r}, save it as "
            "UTF-8: iconv -f CP1252 -t UTF-8 OLD > NEW"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"line {text.count(chr(10), 0, text.index(chr(0))) + 1}: holds zero bytes, so it is no "
            "text, or UTF-16 without a byte order mark; save it as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_text(name: str) -> bool:
    """Whether a name is Unicode, unlike that of a file in another encoding than the system's.

    Python keeps the bytes of such a name as lone surrogates, which no file in UTF-8 can hold.

    Args:
        name: Of a file or directory, or a text of a JSON file.
    """
    return not any("\ud800" <= character <= "\udfff" for character in name)


def read_json(fpath: str | os.PathLike[str]) -> Any:
    """Read a JSON file, in an encoding that `read_text` reads.

    Returns:
        The parsed content.

    Raises:
        ValueError: Not valid JSON, or an object has a key twice; the message names the file.
    """
    data = Path(fpath).read_bytes()
    try:
        return json.loads(_decode(data), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{fpath} is not valid JSON, or no JSON at all: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; Python's own reader keeps the last of two silently."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (key, times), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} is there {times} times; keep the one that is meant")
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
