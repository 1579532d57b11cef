"""Runs jobs as subprocesses, one per device at a time, and outlives the ones that fail."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from tqdm import tqdm

from dassl.locks import FileLock, LockedError, Owner, acquire, at_work
from dassl.results import read_result
from scripts.jobs.plan import Job

_TAIL_BYTES = 16384
_LOCK = ".job.lock"  # of a job's folder, held by the driver that runs it; names the job's process


@dataclass(frozen=True)
class Device:
    """A place where jobs run.

    Attributes:
        name: As given on the command line.
        flags: Flags of ``train.py`` that choose it.
        environment: Variables set for its jobs.
        processes: Processes of a job, one for each of its GPUs.
    """

    name: str
    flags: tuple[str, ...]
    environment: dict[str, str]
    processes: int = 1

    def command(self, job: Job) -> list[str]:
        """Return the command line that runs a job here."""
        python, *rest = job.command(self.flags)
        if self.processes == 1:
            return [python, *rest]
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        return [python, *torchrun, f"--nproc_per_node={self.processes}", *rest]


def parse_devices(words: Sequence[str], jobs_per_device: int) -> list[Device]:
    """Read ``--devices``.

    Args:
        words: GPU numbers as nvidia-smi counts them (or its GPU-... names), several joined by ``+``
            for one job on all of them; ``cpu``, ``mps``, or ``auto`` for one job at a time where
            ``train.py`` sees fit.
        jobs_per_device: Jobs that share a device.

    Raises:
        ValueError: Something else, or a device given twice.
    """
    devices: list[Device] = []
    names = [part.removeprefix("cuda:") for word in words for part in word.split("+")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--devices: {twice} is given twice; see --jobs-per-device.")
    for word in words:
        gpus = [part.removeprefix("cuda:") for part in word.split("+")]
        name = ",".join(gpus)
        if all(gpu.isdecimal() or gpu.startswith(("GPU-", "MIG-")) for gpu in gpus):
            visible = {"CUDA_VISIBLE_DEVICES": name}
            device = Device(name, ("--device", "cuda"), visible, len(gpus))
        elif name == "cpu":
            device = Device(name, ("--device", "cpu"), {"CUDA_VISIBLE_DEVICES": ""})
        elif name == "mps":
            device = Device(name, ("--device", "mps"), {})
        elif name == "auto":
            device = Device(name, (), {})
        else:
            raise ValueError(
                f"--devices: {word!r} is no device; give GPU numbers (0 1, or 0+1 for one job on "
                "both), cpu, mps or auto."
            )
        if name == "cpu" and jobs_per_device > 1 and "OMP_NUM_THREADS" not in os.environ:
            # One job takes all cores by itself; several that all do so only hinder each other.
            threads = max(1, (os.cpu_count() or 1) // jobs_per_device)
            device.environment["OMP_NUM_THREADS"] = str(threads)
        devices.append(device)
    return devices


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        status: ``ran``, ``done`` (nothing to do), ``failed``, ``skipped`` or ``interrupted``.
        reason: Why, for the last three.
    """

    job: Job
    status: str
    reason: str = ""


@dataclass
class _Running:
    job: Job
    device: Device
    process: subprocess.Popen[bytes]
    lock: FileLock
    started: float


class JobPool:
    """Runs jobs until all have ended or a signal asks to stop.

    Args:
        jobs: Jobs in starting order; a job's parent is among them.
        devices: Where to run.
        jobs_per_device: Jobs that share a device.
        cwd: Directory the jobs run in.
    """

    grace = 10.0  # seconds between asking children to stop and killing them
    poll = 0.1  # seconds between looks at the children
    patience = 1.0  # seconds between looks at a job that another driver's process runs

    def __init__(
        self,
        jobs: Sequence[Job],
        devices: Sequence[Device],
        *,
        jobs_per_device: int = 1,
        cwd: Path,
    ) -> None:
        """Prepare; nothing starts before ``run``."""
        self.waiting = list(jobs)
        self.running: list[_Running] = []
        self.outcomes: dict[Job, Outcome] = {}
        self.signals: list[int] = []
        self._reasons: dict[Job, str] = {}
        self._busy: dict[Job, float] = {}  # jobs that other processes run, and when to look again
        self._free = [device for _ in range(jobs_per_device) for device in devices]
        self._cwd = cwd

    def run(self) -> list[Outcome]:
        """Run everything and return the outcomes in the order of the jobs."""
        jobs = list(self.waiting)
        bar = tqdm(total=len(jobs), unit="job", file=sys.stderr, dynamic_ncols=True, disable=None)
        with self._catch_signals(), bar:
            try:
                while (self.waiting or self.running) and not self.signals:
                    self._start_ready(bar)
                    self._reap(bar)
                    if self.running or self.waiting:
                        time.sleep(self.poll)
            finally:
                self._stop_running()
        for job in self.waiting:
            self.outcomes[job] = Outcome(job, "interrupted", "not started")
        return [self.outcomes[job] for job in jobs]

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        # Only noted here and acted on between two steps: an exception raised at any line could
        # lose a child that has just been started.
        def note(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)

        # What is ignored stays so: nohup ignores SIGHUP, a background shell job SIGINT.
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        old = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _start_ready(self, bar: tqdm) -> None:
        for job in list(self.waiting):
            if self.signals:
                return
            parent = self.outcomes.get(job.parent) if job.parent is not None else None
            if job.parent is not None and parent is None:
                continue
            if time.monotonic() < self._busy.get(job, 0):
                continue
            if parent is not None and parent.status not in ("ran", "done"):
                self._end(Outcome(job, "skipped", f"{parent.job} {parent.status}"), bar)
            elif not self._reason(job):
                self._end(Outcome(job, "done"), bar)
            elif self._free:
                self._start(job, bar)

    def _reason(self, job: Job) -> str:
        """Look once why a job has to run: waiting for a device changes nothing about it."""
        if job not in self._reasons:
            self._reasons[job] = job.to_do()
        return self._reasons[job]

    def _start(self, job: Job, bar: tqdm) -> None:
        lock = None
        try:
            job.directory.mkdir(parents=True, exist_ok=True)
            found = self._take(job)
            if isinstance(found, str):
                self._wait_for(job, found, bar)
                return
            lock = found
            if job.to_do():
                self._run(job, lock, bar)
                return
            # Another driver finished it between our look and the lock.
            self._end(Outcome(job, "done"), bar)
        except OSError as error:
            self._end(Outcome(job, "failed", f"could not be started: {error}"), bar)
        if lock is not None:
            lock.release()

    def _take(self, job: Job) -> FileLock | str:
        """Return a job's lock, or which process is at work on it."""
        path = job.directory / _LOCK
        try:
            lock = acquire(path, patience=0)
        except LockedError as busy:
            return str(busy.owner or "another driver")
        # A driver that was killed leaves its job behind, which goes on.
        left = Owner.read(path)
        others = str(left) if left is not None and left.runs() else at_work(job.directory)
        if others:
            lock.release(keep=True)
            return others
        return lock

    def _wait_for(self, job: Job, others: str, bar: tqdm) -> None:
        if job not in self._busy:
            bar.write(f"{job}: waiting, {others} is running it", file=sys.stderr)
        self._busy[job] = time.monotonic() + self.patience
        self._reasons.pop(job, None)  # it may be done then

    def _run(self, job: Job, lock: FileLock, bar: tqdm) -> None:
        device = self._free[0]
        with open(job.log, "ab") as log:
            process = self._launch(job, device, log)
        self.waiting.remove(job)
        self._free.remove(device)
        self.running.append(_Running(job, device, process, lock, time.monotonic()))
        with contextlib.suppress(OSError):  # it only tells others who is at work
            lock.record(Owner.of(process.pid))
        bar.set_postfix(running=len(self.running), refresh=True)

    def _launch(self, job: Job, device: Device, log: BinaryIO) -> subprocess.Popen[bytes]:
        command = device.command(job)
        job.begin(command)
        variables = [f"{name}={shlex.quote(value)}" for name, value in device.environment.items()]
        line = " ".join([*variables, shlex.join(command)])
        log.write(f"# {self._reason(job)}\n$ {line}\n".encode())
        log.flush()
        return subprocess.Popen(
            command,
            cwd=self._cwd,
            env={**os.environ, **device.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own process group, so that its data loading workers stop with it.
            start_new_session=True,
        )

    def _reap(self, bar: tqdm) -> None:
        for entry in list(self.running):
            status = entry.process.poll()
            if status is None:
                continue
            self.running.remove(entry)
            self._free.append(entry.device)
            job = entry.job
            others = at_work(job.directory) if status > 0 else ""
            entry.lock.release()
            if others:  # they were there first, unseen, and the job would not disturb them
                self.waiting.append(job)
                self._wait_for(job, others, bar)
                continue
            result = read_result(job.directory)
            if status < 0:
                outcome = Outcome(job, "failed", f"killed by {signal.Signals(-status).name}")
            elif status > 0:
                outcome = Outcome(job, "failed", f"exit status {status}")
            elif result is None:
                outcome = Outcome(job, "failed", "ended without a complete result.json")
            else:
                outcome = Outcome(job, "ran")
                seconds = time.monotonic() - entry.started
                accuracy = result["metrics"]["accuracy"]
                bar.write(f"{job}: {accuracy:.2f} % in {seconds:.0f} s", file=sys.stderr)
            self._end(outcome, bar)

    def _end(self, outcome: Outcome, bar: tqdm) -> None:
        self.outcomes[outcome.job] = outcome
        if outcome.job in self.waiting:
            self.waiting.remove(outcome.job)
        if outcome.status in ("failed", "skipped"):
            bar.write(f"{outcome.job}: {outcome.status}, {outcome.reason}", file=sys.stderr)
        bar.set_postfix(running=len(self.running), refresh=False)
        bar.update()

    def _stop_running(self) -> None:
        """Ask all children to stop; kill them after the grace time or at a second signal."""
        seen = len(self.signals)
        for entry in self.running:
            _signal_group(entry.process, signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        while any(entry.process.poll() is None for entry in self.running):
            if time.monotonic() > deadline or len(self.signals) > seen:
                break
            time.sleep(self.poll)
        for entry in self.running:
            # Also when the leader is gone: a worker of its group may have ignored the request.
            _signal_group(entry.process, signal.SIGKILL)
            entry.process.wait()
            entry.lock.release()
            self.outcomes[entry.job] = Outcome(entry.job, "interrupted", "stopped while running")
        self.running.clear()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # PermissionError is how macOS answers for a group of which only a zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def last_lines(path: Path, count: int = 15) -> list[str]:
    """Return the last non-empty lines of a log, progress bars as their last state."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
    return [line for line in lines if line][-count:]
