"""Works on one job, from its lock to its end; the same on this machine and on a cluster's node."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from dassl.locks import FileLock, LockedError, Owner, acquire, at_work
from dassl.results import read_result
from scripts.jobs.devices import Device
from scripts.jobs.job import Job
from scripts.jobs.launchers import Ended

_LOCK = ".job.lock"  # in a job's folder, held by whoever works on it; names the job's process
_POLL = 0.05  # seconds between looks at a running process
_GRACE = 10.0  # seconds between asking a process to stop and killing it


class Process(Protocol):
    """A job at work."""

    @property
    def pid(self) -> int:
        """Process that lives as long as the job does."""

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the job and to the processes that it has started."""

    def wait(self) -> int:
        """Wait for its end and return the exit status."""


@dataclass
class Stop:
    """A request to stop a job, made by another thread.

    Plain values that are looked at now and then: an event could be set by a handler of signals
    just while its lock is held.
    """

    asked: bool = False
    hurry: bool = False  # at once


Start = Callable[[Sequence[str], IO[bytes]], Process]  # a command, and where its output goes


def run_job(job: Job, device: Device, start: Start, stop: Stop) -> Ended:
    """Run a job if it still has to run; nothing of it is left at the return.

    Args:
        job: Its parent, if there is one, has ended.
        device: Where it runs.
        start: Starts a command in a process group of its own; OSError if it cannot.
        stop: Looked at while the job runs.
    """
    lock = None
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        found = _take(job)
        if isinstance(found, str):
            return Ended("busy", found)
        lock = found
        return _run_locked(job, device, start, stop, lock)
    except OSError as error:
        return Ended("failed", f"could not be started: {error}")
    finally:
        if lock is not None:
            lock.release()


def _run_locked(job: Job, device: Device, start: Start, stop: Stop, lock: FileLock) -> Ended:
    why = job.to_do()
    if not why:
        return Ended("done")  # somebody else finished it between the driver's look and the lock
    command = device.command(job)
    with open(job.log, "ab") as log:
        job.begin(command)
        log.write(f"# {why}\n$ {device.shell_line(job)}\n".encode())
        log.flush()
        begun = time.monotonic()
        process = start(command, log)
    try:
        with contextlib.suppress(OSError):  # the lock holds; the owner's name is for messages
            lock.record(Owner.of(process.pid))
        while (status := process.poll()) is None and not stop.asked:
            time.sleep(_POLL)
    except BaseException:  # such as the exit that a handler of signals raises
        _end(process, stop)
        raise
    if status is None:
        _end(process, stop)
        return Ended("interrupted", "stopped while running")
    others = at_work(job.directory) if status > 0 else ""
    if others:  # train.py refused to run beside a process that started meanwhile
        return Ended("busy", others)
    return judge(job, status, time.monotonic() - begun)


def _take(job: Job) -> FileLock | str:
    """Return a job's lock, or which process is at work on it."""
    path = job.directory / _LOCK
    left = Owner.read(path)  # read first: older versions of filelock empty the file they lock
    try:
        lock = acquire(path, patience=0)
    except LockedError as busy:
        return str(busy.owner or "another driver")
    # A driver that was killed has released its lock, but its job may go on.
    if left is not None and left.runs():
        lock.record(left)
        lock.release(keep=True)
        return str(left)
    others = at_work(job.directory)
    if others:
        lock.release()
        return others
    return lock


def judge(job: Job, status: int, seconds: float) -> Ended:
    """Judge how a job ended: by its result, not by its exit status alone.

    ``status`` is negative for the signal that killed it.
    """
    result = read_result(job.directory)
    if status < 0:
        return Ended("failed", f"killed by {signal.Signals(-status).name}", seconds=seconds)
    if status > 0:
        return Ended("failed", f"exit status {status}", seconds=seconds)
    if result is None:
        return Ended("failed", "ended without a complete result.json", seconds=seconds)
    return Ended("ran", accuracy=result["metrics"]["accuracy"], seconds=seconds)


def _end(process: Process, stop: Stop) -> None:
    """Ask a process to stop; kill it after the grace time, or in a hurry at once."""
    process.signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    while process.poll() is None and time.monotonic() < deadline and not stop.hurry:
        time.sleep(_POLL)
    # Even if the leader has ended: a worker of its group may have ignored SIGTERM.
    process.signal(signal.SIGKILL)
    process.wait()
