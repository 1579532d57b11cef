"""Jobs without their imports: a worker per device that has imported PyTorch and forks each job.

Half of a short job is the import of PyTorch and open_clip. A worker (``scripts/jobs/worker.py``)
does that once; a job is a fork of it, which runs ``train.py`` with its own arguments, log and
process group, as a new process would. This file is the driver's side.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from scripts.jobs.devices import Device
from scripts.jobs.local import Slot, signal_group

WORKER = Path(__file__).with_name("worker.py")


def check_warm(devices: Sequence[Device]) -> None:
    """Refuse ``--warm`` where a fork of a process could not do a job.

    Raises:
        ValueError: The system cannot fork one, or a device would not work in a fork.
    """
    # macOS has fork, but its own libraries do not work in a fork.
    if not hasattr(os, "fork") or sys.platform == "darwin":
        raise ValueError(
            f"--warm: {sys.platform} cannot fork a process that has imported PyTorch, as Linux "
            "can; leave it out."
        )
    for device in devices:
        if device.processes > 1:
            raise ValueError(
                f"--warm: a job on several GPUs ({device.name.replace(',', '+')}) is started by "
                "torchrun or srun, which import for themselves; leave it out, or give GPUs for "
                "one job each."
            )


class Worker:
    """The driver's end of a worker process.

    A line in JSON asks for a job (``arguments`` and ``log``). The fork that does it answers with
    its ``pid``, and the worker with the ``status`` that it has ended with.
    """

    patience = 5.0  # seconds for an idle worker to end

    def __init__(self, slot: Slot, program: Sequence[str], log: IO[bytes]) -> None:
        """Start it; what its imports print goes to the log of the first job.

        Args:
            slot: Where it runs.
            program: Python with its flags, and ``train.py``.
            log: The first job's log.
        """
        *python, script = program
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*python, str(WORKER), script]
            self.process = slot.popen(command, theirs.fileno(), log)
        self._channel = ours
        self._unread = b""

    def ask(self, arguments: Sequence[str], log: str) -> WarmJob:
        """Have it do a job."""
        request = json.dumps({"arguments": arguments, "log": log})
        self._channel.sendall(f"{request}\n".encode())
        return WarmJob(self)

    def answers(self, *, to_the_end: bool) -> Iterator[dict[str, Any]]:
        """Yield what has come since the last call; of a worker that has died, all that comes."""
        # A fork holds the channel until it has answered, so that the end comes after that.
        self._channel.setblocking(to_the_end)
        try:
            while received := self._channel.recv(4096):
                self._unread += received
        except (BlockingIOError, ConnectionResetError):
            pass
        self._channel.setblocking(True)
        *lines, self._unread = self._unread.split(b"\n")
        yield from map(json.loads, lines)

    def close(self) -> None:
        """End it; it ends by itself when the channel is closed, as it does if the driver dies."""
        self._channel.close()
        try:
            self.process.wait(self.patience)
        except subprocess.TimeoutExpired:
            signal_group(self.process.pid, signal.SIGKILL)
            self.process.wait()


class WarmJob:
    """A job of a worker; see :class:`scripts.jobs.work.Process`."""

    def __init__(self, worker: Worker) -> None:
        # Other drivers wait for the worker: it is there before the job, and stops it when it ends.
        self.pid = worker.process.pid
        self._worker = worker
        self._leader: int | None = None  # of the job's process group
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status; None while the job runs, or waits for the imports."""
        if self._status is not None:
            return self._status
        died = self._worker.process.poll()
        for answer in self._worker.answers(to_the_end=died is not None):
            self._leader = answer.get("pid", self._leader)
            self._status = answer.get("status")
        if self._status is None and died is not None:
            # The job would go on, and nobody could tell its end.
            if self._leader is not None:
                signal_group(self._leader, signal.SIGKILL)
            self._status = died or 1
        return self._status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the job's process group; before the job has begun, to the worker."""
        self.poll()
        if self._leader is not None:
            signal_group(self._leader, number)
        elif self._status is None:
            signal_group(self.pid, number)

    def wait(self) -> int:
        """Wait for its end and return the exit status."""
        while (status := self.poll()) is None:
            time.sleep(0.01)
        return status


class WarmSlot(Slot):
    """Room for one job at a time on a device; a worker does them all, one after the other."""

    def __init__(self, device: Device, cwd: Path, *, program: Sequence[str]) -> None:
        """Prepare; the first job starts the worker.

        Args:
            device: Where the jobs run.
            cwd: Their working directory.
            program: Python with its flags, and ``train.py``; every job's command starts so.
        """
        super().__init__(device, cwd)
        self._program = tuple(program)
        self._worker: Worker | None = None

    def start(self, command: Sequence[str], log: IO[bytes]) -> WarmJob:
        """Have the worker do a command; another one, if it has died."""
        if self._worker is not None and self._worker.process.poll() is not None:
            self.close()
        if self._worker is None:
            self._worker = Worker(self, self._program, log)
        return self._worker.ask(command[len(self._program) :], log.name)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
