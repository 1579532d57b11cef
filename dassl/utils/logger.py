"""Copying standard output into a log file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

__all__ = ["Logger", "escape_unprintable", "move_earlier_log", "setup_logger"]


class Logger:
    """A text stream that writes to a console stream and, flushed line by line, to a file."""

    def __init__(self, fpath: str | os.PathLike[str], console: TextIO | None = None) -> None:
        """Open the file for appending, making its folder; ``console`` is by default stdout."""
        closed = sys.stdout is None  # by the shell: >&-
        nowhere = open(os.devnull, "w", encoding="utf-8") if closed else sys.stdout  # noqa: SIM115
        self.console = console if console is not None else nowhere
        self.path = Path(fpath).absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(  # noqa: SIM115
            self.path, "a", encoding="utf-8", errors="backslashreplace"
        )
        self._start = self.path.stat().st_size  # the end of earlier processes' lines

    def write(self, text: str) -> int:
        """Write text to both and flush the file, so that a killed run keeps its log."""
        self.console.write(text)
        if not self.file.closed:
            try:
                self.file.write(text)
                self.file.flush()
            except OSError as error:
                error.filename = str(self.path)
                raise
        return len(text)

    def flush(self) -> None:
        """Flush both streams."""
        self.console.flush()
        if not self.file.closed:
            self.file.flush()

    def move_earlier_to(self, directory: str | os.PathLike[str]) -> None:
        """Move the log of earlier processes to a file of this name in an existing folder."""
        self.flush()
        content = self.path.read_bytes()
        (Path(directory) / self.path.name).write_bytes(content[: self._start])
        with open(self.path, "r+b") as file:  # in place: this process goes on writing to its end
            file.write(content[self._start :])
            file.truncate()
        self._start = 0

    def close(self) -> None:
        """Close the file; the console stays open."""
        self.file.close()

    def __getattr__(self, name: str) -> object:
        """Look up everything else (``isatty``, ``encoding``, ``fileno``) on the console."""
        if name in ("console", "file"):  # not set yet: opening the file failed
            raise AttributeError(name)
        return getattr(self.console, name)

    def __enter__(self) -> Logger:
        """Return self; leaving the block closes the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def escape_unprintable() -> None:
    r"""Write what standard output cannot encode as ``\xe9`` instead of ending the program.

    Such texts are class and file names, if the terminal is not UTF-8 or they are not valid Unicode.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def setup_logger(output: str | os.PathLike[str] | None = None) -> None:
    """Copy everything printed from now on into a log file.

    An existing file is continued, so that a resumed run has one log. Only standard output is
    copied: progress bars go to standard error and stay out of the file.

    Args:
        output: Directory (for ``log.txt``) or a path ending in ``.txt`` or ``.log``; None does
            nothing.
    """
    if output is None:
        return
    path = Path(output)
    if path.suffix not in (".txt", ".log"):
        path = path / "log.txt"
    console: TextIO = sys.stdout
    if isinstance(console, Logger):
        if console.path == path.absolute() and not console.file.closed:
            return
        console.close()
        console = console.console
    sys.stdout = Logger(path, console)


def move_earlier_log(directory: str | os.PathLike[str]) -> None:
    """Move the log of earlier runs, if output is copied to a file, to another folder."""
    if isinstance(sys.stdout, Logger):
        sys.stdout.move_earlier_to(directory)
