"""Locks that go with their process, however it ends, and what processes that are gone left behind.

The lock is the operating system's, on an open file, so that none is ever stale; the file says who
has it. Worker processes do not inherit it. Where a file system has no locks, whoever asks goes on
without. Nothing here imports PyTorch.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "RUN_LOCK",
    "FileLock",
    "LockedError",
    "Owner",
    "acquire",
    "at_work",
    "is_old",
    "remove_leftovers",
    "runs_here",
]

OLD = 3600.0  # seconds after which nobody is still writing an unlocked temporary file
RUN_LOCK = ".run.lock"  # of a run's folder, held by the run itself
_PATIENCE = 0.5  # seconds for a lock that is only looked at, or whose process is just ending
_held: set[int] = set()  # descriptors of this process's locks
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@dataclass(frozen=True)
class Owner:
    """A process that works somewhere.

    Attributes:
        pid: Its number.
        host: Its machine.
        born: What tells it from a later process of that number; empty where unknown.
        since: When it began, as text.
    """

    pid: int
    host: str
    born: str
    since: str

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Return a process of this machine."""
        return cls(pid, socket.gethostname(), _birth(pid), time.strftime("%Y-%m-%d %H:%M:%S"))

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Return who a lock file names, if it does."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(found["pid"]), *(str(found[n]) for n in ("host", "born", "since")))
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def runs(self) -> bool:
        """Tell whether it is known to run: it does on this machine."""
        same = self.host == socket.gethostname()
        return same and runs_here(self.pid) and self.born in ("", _birth(self.pid))

    def __str__(self) -> str:
        """Say who it is."""
        return f"process {self.pid} on {self.host}, since {self.since}"


class LockedError(RuntimeError):
    """Another process has the lock.

    Attributes:
        owner: Who, if its file says so.
    """

    def __init__(self, path: Path) -> None:
        self.owner = Owner.read(path)
        super().__init__(f'"{path}" is locked by {self.owner or "another process"}')


class FileLock:
    """A lock that this process has; or, where there are none, stands for one.

    Attributes:
        held: Whether it keeps others out.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor
        if descriptor is not None:
            _held.add(descriptor)

    @property
    def held(self) -> bool:
        """Whether it keeps others out."""
        return self._descriptor is not None

    def record(self, owner: Owner) -> None:
        """Write into the file who is at work."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(vars(owner)).encode(), 0)

    def release(self, *, keep: bool = False) -> None:
        """Give the lock up.

        Args:
            keep: Leave the file and what it says.
        """
        if self._descriptor is None:
            return
        if not keep:
            self.path.unlink(missing_ok=True)
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> FileLock:
        """Return self; leaving the block releases it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.release()


def acquire(
    path: Path, *, wait: Callable[[], Any] | None = None, patience: float = _PATIENCE
) -> FileLock:
    """Take a lock; it lasts until it is released or this process ends.

    Args:
        path: Of the lock file; its folder is there.
        wait: Called once before waiting for another process to release it, however long.
        patience: Seconds to try without ``wait``.

    Raises:
        LockedError: Another process has it.
        OSError: The file cannot be made.
    """
    if fcntl is None:
        return FileLock(path, None)
    mode, deadline = fcntl.LOCK_EX | fcntl.LOCK_NB, time.monotonic() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, mode)
            # Who had it before may have removed the file: a lock on that one keeps nobody out.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return FileLock(path, descriptor)
        except BlockingIOError:
            if wait is not None:
                wait()
                mode = fcntl.LOCK_EX
            elif time.monotonic() >= deadline:
                os.close(descriptor)
                raise LockedError(path) from None
            else:
                time.sleep(0.05)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return FileLock(path, None)
        os.close(descriptor)


def at_work(directory: Path) -> str:
    """Say which process is at work in a run's folder; empty if none is.

    Args:
        directory: Of the run.
    """
    lock = directory / RUN_LOCK
    if not lock.exists():
        return ""
    try:
        acquire(lock, patience=0).release()
    except LockedError as busy:
        return str(busy.owner or "another process")
    return ""


def _forget_locks() -> None:
    """Close a forked process's copies of the locks, or they would outlive their owner."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def runs_here(pid: int) -> bool:
    """Tell whether a process of this machine runs; one that nobody has reaped yet does not.

    Args:
        pid: Its number.
    """
    stat = _proc_stat(pid)
    if stat is not None:
        return stat[0] not in ("Z", "X")
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _birth(pid: int) -> str:
    """Return when a process started, in the system's ticks; empty where that cannot be told."""
    stat = _proc_stat(pid)
    return stat[19] if stat is not None else ""


def _proc_stat(pid: int) -> list[str] | None:
    """Return the state of a process and what follows it in Linux's /proc/<pid>/stat."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return content.rsplit(")", 1)[1].split()


def remove_leftovers(folders: Iterable[Path], *, alone: bool) -> None:
    """Remove temporary files, ``.<name>.<pid>.tmp``, whose process is gone.

    Args:
        folders: Where to look; only files directly in them.
        alone: This process has the folders to itself, by a lock. Otherwise the process may be
            another machine's, and only files that are an hour old are removed.
    """
    for folder in folders:
        with suppress(OSError):
            for path in folder.iterdir():
                found = _TEMPORARY.fullmatch(path.name)
                if found and not _may_write(int(found[1]), path) and (alone or is_old(path)):
                    with suppress(OSError):
                        path.unlink()


def _may_write(pid: int, path: Path) -> bool:
    """Tell whether a process of this machine runs that is no younger than the file."""
    if not runs_here(pid):
        return False
    stat = _proc_stat(pid)
    if stat is None:
        return True
    # Numbers come again, in containers soon: this process may have that of the one before.
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - path.stat().st_mtime < running + 1


def is_old(path: Path) -> bool:
    """Tell whether nobody is still writing a temporary file or folder.

    Args:
        path: Last changed more than an hour ago.
    """
    return time.time() - path.stat().st_mtime > OLD
