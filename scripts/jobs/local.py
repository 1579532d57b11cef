"""Runs jobs on this machine: processes on its devices, a fixed number on each."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from scripts.jobs.devices import Device
from scripts.jobs.job import Job
from scripts.jobs.launchers import RUNNING, Ended
from scripts.jobs.work import Process, Stop, run_job


class Slot:
    """Room for one job at a time on a device; each job is a new process."""

    def __init__(self, device: Device, cwd: Path) -> None:
        self.device = device
        self.cwd = cwd
        self.environment = {**os.environ, **device.environment}

    def start(self, command: Sequence[str], log: IO[bytes]) -> Process:
        """Start a command whose output goes to a log; OSError if it cannot be started."""
        return OwnProcess(self.popen(command, subprocess.DEVNULL, log))

    def popen(self, command: Sequence[str], stdin: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a process with the device's environment."""
        return subprocess.Popen(
            command,
            cwd=self.cwd,
            env=self.environment,
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own process group, so that its data loading workers stop with it.
            start_new_session=True,
        )

    def close(self) -> None:
        """End what the slot keeps between jobs: nothing."""


class OwnProcess:
    """A job that is a child of this process; see :class:`scripts.jobs.work.Process`."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.pid = child.pid
        self.poll = child.poll
        self.wait = child.wait

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group."""
        signal_group(self.pid, number)


class LocalLauncher:
    """Runs jobs as processes of this machine; see :class:`scripts.jobs.launchers.Launcher`.

    A thread per running job waits for its process; what it needs of the device is a slot.
    """

    takes_waiting = False
    outlives_driver = False
    poll = 0.05  # seconds between looks at jobs that were asked to stop

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        jobs_per_device: int = 1,
        cwd: Path,
        slot: Callable[[Device, Path], Slot] = Slot,
    ) -> None:
        # Round by round, so that no device gets its second job before all have their first.
        self._slots = [slot(device, cwd) for _ in range(jobs_per_device) for device in devices]
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for one in self._slots:
            self._free.put(one)
        self._executor = ThreadPoolExecutor(len(self._slots), thread_name_prefix="job")
        self._futures: dict[Job, Future[Ended]] = {}
        self._stops: dict[Job, Stop] = {}

    def room(self) -> int:
        """Return how many devices are free."""
        return len(self._slots) - sum(not future.done() for future in self._futures.values())

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs on the first free devices."""
        for job in jobs:
            self._stops[job] = Stop()
            self._futures[job] = self._executor.submit(self._run, job, self._stops[job])

    def _run(self, job: Job, stop: Stop) -> Ended:
        slot = self._free.get()
        try:
            return run_job(job, slot.device, slot.start, stop)
        finally:
            self._free.put(slot)

    def state(self, job: Job) -> str | Ended:
        """Return RUNNING, or how a job has ended."""
        future = self._futures[job]
        return future.result() if future.done() else RUNNING

    def cancel(self, jobs: Sequence[Job], hurry: Callable[[], bool]) -> None:
        """Ask the jobs' processes to stop; they are killed after a grace time, or in a hurry."""
        jobs = [job for job in jobs if job in self._futures]
        for job in jobs:
            self._stops[job].asked = True
        while not all(self._futures[job].done() for job in jobs):
            if hurry():
                for job in jobs:
                    self._stops[job].hurry = True
            time.sleep(self.poll)

    def close(self) -> None:
        """End the threads, and what slots keep between jobs."""
        self._executor.shutdown()
        for slot in self._slots:
            slot.close()

    def adopt(self, jobs: Sequence[Job]) -> list[Job]:
        """Return none: a job that a killed driver left behind is waited for by its lock."""
        return []


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to a process group, by the id of its first process."""
    # macOS raises PermissionError for a group in which only a zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
