"""Locks that end with their process, and the removal of what killed processes left behind.

The lock itself is `filelock`'s: the operating system's lock on an open file. A killed process loses
it and its workers do not inherit it, so no lock is ever stale. In addition, the file says who holds
the lock, it is removed together with the lock, and a file system without locks does not stop
anybody. Nothing here imports PyTorch.
"""

from __future__ import annotations

import errno
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

import filelock

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
_PATIENCE = 0.5  # seconds; the holder may just be ending, or only be looking (`at_work`)
# What network and user-space file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        pid: Process id.
        host: Machine.
        born: Start time in the system's ticks, which differs for a later process with the same id;
            empty if unknown.
        since: When the lock was taken, as text.
    """

    pid: int
    host: str
    born: str
    since: str

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Return the owner's record for a process of this machine."""
        return cls(pid, socket.gethostname(), _birth(pid), time.strftime("%Y-%m-%d %H:%M:%S"))

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Return the process that a lock file names; None if it does not name one."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(found["pid"]), *(str(found[n]) for n in ("host", "born", "since")))
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def runs(self) -> bool:
        """Tell whether the process is known to run; only its own machine can know that."""
        same = self.host == socket.gethostname()
        return same and runs_here(self.pid) and self.born in ("", _birth(self.pid))

    def __str__(self) -> str:
        """Return a phrase for messages."""
        return f"process {self.pid} on {self.host}, since {self.since}"


class LockedError(RuntimeError):
    """Another process has the lock; ``owner`` is that process, if the lock file names it."""

    def __init__(self, path: Path) -> None:
        self.owner = Owner.read(path)
        super().__init__(f'"{path}" is locked by {self.owner or "another process"}')


class FileLock:
    """A lock that this process holds, or its stand-in where the file system has no locks."""

    def __init__(self, path: Path, lock: filelock.BaseFileLock | None) -> None:
        self.path = path
        self._lock = lock

    @property
    def held(self) -> bool:
        """Whether the lock keeps others out."""
        return self._lock is not None

    def record(self, owner: Owner) -> None:
        """Write into the file which process is at work."""
        if self.held:
            self.path.write_text(json.dumps(vars(owner)), encoding="utf-8")

    def release(self, *, keep: bool = False) -> None:
        """Release the lock; ``keep`` leaves the file, as it may name a process still at work."""
        if self._lock is None:
            return
        if not keep:
            # Before the lock is released: afterwards the file could belong to the next holder. A
            # process that waits for it notices that the file is gone, and makes another.
            with suppress(OSError):
                self.path.unlink()
        self._lock.release()
        self._lock = None

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
        path: The lock file, in an existing folder.
        wait: Called once if another process holds the lock; then this one waits, however long it
            takes.
        patience: Seconds to try for, without ``wait``.

    Raises:
        LockedError: Another process has it.
        OSError: The file cannot be made.
    """
    # No fallback to lock files without a lock: those outlive a process that is killed. Not bound to
    # a thread, since a loader's or a timer's thread may release it.
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0 if wait else patience)
        except filelock.Timeout:
            if wait is None:
                raise LockedError(path) from None
            wait()
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        with suppress(OSError):
            path.unlink()  # where nobody can lock it, nobody would ever remove it
        return FileLock(path, None)
    return FileLock(path, lock)


def at_work(directory: Path) -> str:
    """Return the process that is at work in a run's folder, as a phrase; "" if there is none."""
    lock = directory / RUN_LOCK
    if not lock.exists():
        return ""
    try:
        acquire(lock, patience=0).release()
    except LockedError as busy:
        return str(busy.owner or "another process")
    return ""


def runs_here(pid: int) -> bool:
    """Tell whether a process of this machine runs; a zombie does not."""
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
    """Return a process's start time in the system's ticks; "" if the system does not tell."""
    stat = _proc_stat(pid)
    return stat[19] if stat is not None else ""


def _proc_stat(pid: int) -> list[str] | None:
    """Return the fields of Linux's /proc/<pid>/stat from the process's state on."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The field before, the program's name in parentheses, may itself hold blanks and parentheses.
    return content.rsplit(")", 1)[1].split()


def remove_leftovers(folders: Iterable[Path], *, alone: bool) -> None:
    """Remove temporary files, ``.<name>.<pid>.tmp``, whose process is gone; not in subfolders.

    With ``alone``, a lock keeps all others out of the folders. Without, the process may run on
    another machine, so only files older than an hour are removed.
    """
    for folder in folders:
        with suppress(OSError):
            for path in folder.iterdir():
                found = _TEMPORARY.fullmatch(path.name)
                if found and not _may_write(int(found[1]), path) and (alone or is_old(path)):
                    with suppress(OSError):
                        path.unlink()


def _may_write(pid: int, path: Path) -> bool:
    """Tell whether process ``pid`` runs on this machine and started before the file was written."""
    if not runs_here(pid):
        return False
    stat = _proc_stat(pid)
    if stat is None:
        return True
    # Ids are reused, soon in containers: a running process may have a killed one's id.
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - path.stat().st_mtime < running + 1


def is_old(path: Path) -> bool:
    """Tell whether a temporary file or folder was last changed more than an hour ago."""
    return time.time() - path.stat().st_mtime > OLD
