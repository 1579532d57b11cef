"""Where jobs run: devices of this machine, and the seam for whatever else may run jobs.

The pool (:mod:`scripts.jobs.pool`) decides which job may start and what its end means; a launcher
turns a job into a process and tells how the process ended. It knows nothing of protocols or
parents: another launcher, such as one for a cluster's queue, only needs the methods of
:class:`Launcher`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from dassl.locks import Owner
from scripts.jobs.job import Job


@dataclass(frozen=True)
class Ended:
    """A job that a launcher has finished with."""

    job: Job
    status: int  # exit status; negative for the signal that killed it
    seconds: float


class Launcher(Protocol):
    """Runs jobs, several at a time if there is room."""

    def has_room(self) -> bool:
        """Tell whether another job can start now."""

    def start(self, job: Job, why: str) -> Owner:
        """Start a job, whose directory exists and is locked; return its process for other drivers.

        ``why`` is the reason for running it, for its log. OSError if it cannot be started.
        """

    def ended(self) -> list[Ended]:
        """Return the jobs that have ended since the last call."""

    def stop(self, hurry: Callable[[], bool]) -> list[Job]:
        """Stop all jobs, gently until ``hurry()`` is true, and return them."""


@dataclass(frozen=True)
class Device:
    """A place where jobs run."""

    name: str  # as given on the command line
    flags: tuple[str, ...]  # flags of ``train.py`` that choose it
    environment: dict[str, str]  # variables set for its jobs
    processes: int = 1  # per job, one for each of its GPUs

    def command(self, job: Job) -> list[str]:
        """Return the command line that runs a job here."""
        python, *rest = job.command(self.flags)
        if self.processes == 1:
            return [python, *rest]
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        return [python, *torchrun, f"--nproc_per_node={self.processes}", *rest]

    def shell_line(self, job: Job) -> str:
        """Return the command as a shell takes it, variables included."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command(job))])


def parse_devices(words: Sequence[str], jobs_per_device: int) -> list[Device]:
    """Read ``--devices``.

    A word is a GPU number as nvidia-smi counts (or its GPU-... name), several joined by ``+`` for
    one job on all of them; ``cpu``, ``mps``, or ``auto``, which leaves the choice to ``train.py``.
    """
    parts = [[gpu.removeprefix("cuda:") for gpu in word.split("+")] for word in words]
    names = [name for part in parts for name in part]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--devices: {twice} is given twice; see --jobs-per-device.")
    return [_device(word, part, jobs_per_device) for word, part in zip(words, parts, strict=True)]


def _device(word: str, names: list[str], jobs_per_device: int) -> Device:
    name = ",".join(names)
    if all(gpu.isdecimal() or gpu.startswith(("GPU-", "MIG-")) for gpu in names):
        return Device(name, ("--device", "cuda"), {"CUDA_VISIBLE_DEVICES": name}, len(names))
    if name == "auto":
        return Device(name, (), {})
    if name not in ("cpu", "mps"):
        raise ValueError(
            f"--devices: {word!r} is no device; give GPU numbers (0 1, or 0+1 for one job on "
            "both), cpu, mps or auto."
        )
    environment = {"CUDA_VISIBLE_DEVICES": ""} if name == "cpu" else {}
    if name == "cpu" and jobs_per_device > 1 and "OMP_NUM_THREADS" not in os.environ:
        # PyTorch uses all cores in each process; several jobs that do so slow each other down.
        threads = max(1, (os.cpu_count() or 1) // jobs_per_device)
        environment["OMP_NUM_THREADS"] = str(threads)
    return Device(name, ("--device", name), environment)


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
    """A job that is a child of the driver; see :class:`Process`."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.pid = child.pid
        self.poll = child.poll
        self.wait = child.wait

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group."""
        signal_group(self.pid, number)


@dataclass
class _Running:
    job: Job
    slot: Slot
    process: Process
    started: float


class LocalLauncher:
    """Runs jobs as processes of this machine, a fixed number on each device."""

    grace = 10.0  # seconds between asking processes to stop and killing them
    poll = 0.1  # seconds between looks at processes that were asked to stop

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        jobs_per_device: int = 1,
        cwd: Path,
        slot: Callable[[Device, Path], Slot] = Slot,
    ) -> None:
        # Round by round, so that no device gets its second job before all have their first.
        self._free = [slot(device, cwd) for _ in range(jobs_per_device) for device in devices]
        self._running: list[_Running] = []

    def has_room(self) -> bool:
        """Tell whether a device is free."""
        return bool(self._free)

    def start(self, job: Job, why: str) -> Owner:
        """Start a job on the first free device; see :class:`Launcher`."""
        slot = self._free[0]
        command = slot.device.command(job)
        with open(job.log, "ab") as log:
            job.begin(command)
            log.write(f"# {why}\n$ {slot.device.shell_line(job)}\n".encode())
            log.flush()
            process = slot.start(command, log)
        self._free.remove(slot)
        self._running.append(_Running(job, slot, process, time.monotonic()))
        return Owner.of(process.pid)

    def ended(self) -> list[Ended]:
        """Return the jobs whose processes have ended, and free their devices."""
        over = []
        for entry in list(self._running):
            status = entry.process.poll()
            if status is not None:
                self._running.remove(entry)
                self._free.append(entry.slot)
                over.append(Ended(entry.job, status, time.monotonic() - entry.started))
        return over

    def stop(self, hurry: Callable[[], bool]) -> list[Job]:
        """Ask all processes to stop; kill them after the grace time, or in a hurry at once."""
        for entry in self._running:
            entry.process.signal(signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        while any(entry.process.poll() is None for entry in self._running):
            if time.monotonic() > deadline or hurry():
                break
            time.sleep(self.poll)
        for entry in self._running:
            # Even if the leader has ended: a worker of its group may have ignored SIGTERM.
            entry.process.signal(signal.SIGKILL)
            entry.process.wait()
        for slot in [*self._free, *(entry.slot for entry in self._running)]:
            slot.close()
        stopped = [entry.job for entry in self._running]
        self._running.clear()
        return stopped


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to a process group, by the id of its first process."""
    # macOS raises PermissionError for a group in which only a zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
