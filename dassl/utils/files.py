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
    """Tell whether a file exists; warn if not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str | os.PathLike[str], sort: bool = False) -> list[str]:
    """List the names in a directory without dot files; unsorted, in the file system's order."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces ``path`` only when everything was written.

    A reader of ``path`` sees the old content or the new one, never a part, even after a kill or a
    power cut: the temporary file lies in the same directory, is synced, then renamed.

    Args:
        path: Destination; missing parent directories are created.
        mode: ``"w"`` for UTF-8 text or ``"wb"``.

    Raises:
        OSError: Writing failed; the error names ``path``.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # With the process id, by which `dassl.locks.remove_leftovers` knows whose file it is.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        # A file name with invalid bytes becomes \udce9, which JSON reads back as the same name.
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with open(temporary, mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            # Before the rename: after a power cut the new name could otherwise show an empty file.
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
    r"""Read a text file that a person or another program wrote; lines end with ``\n``.

    It may be UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one. Other encodings
    are not guessed: every file is valid Latin-1, whatever it was meant to be.

    Raises:
        ValueError: Another encoding, or not a text; the message names file and line.
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
    """Tell whether a file name or a text from JSON is valid Unicode.

    Python keeps the bytes of a file name in another encoding as lone surrogates, which no file in
    UTF-8 can hold.
    """
    return not any("\ud800" <= character <= "\udfff" for character in name)


def read_json(fpath: str | os.PathLike[str]) -> Any:
    """Read a JSON file, in an encoding that `read_text` reads.

    Raises:
        ValueError: Not valid JSON, or an object has a key twice; the message names the file.
    """
    data = Path(fpath).read_bytes()
    try:
        return json.loads(_decode(data), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{fpath} is not valid JSON, or no JSON at all: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's pairs; Python's own reader silently keeps the last of two."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (key, times), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} is there {times} times; keep the one that is meant")
    return content


def write_json(obj: Any, fpath: str | os.PathLike[str]) -> None:
    """Write what JSON can hold to a file, atomically, creating its directory."""
    with atomic_write(fpath) as file:
        json.dump(obj, file, indent=4, separators=(",", ": "), ensure_ascii=False)
        file.write("\n")
