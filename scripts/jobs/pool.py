"""Decides which job starts when, by its parent's end and the launcher's room, until all have ended.

A failed job stops only those that build on it. A job that another driver or a run started by hand
is working on is waited for, not run twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from dassl.locks import FileLock, LockedError, Owner, acquire, at_work
from dassl.results import read_result
from scripts.jobs.job import Job
from scripts.jobs.launchers import Ended, Launcher

_TAIL_BYTES = 16384
_LOCK = ".job.lock"  # in a job's folder, held by the driver that runs it; names the job's process


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    status: str  # ran, done (nothing to do), failed, skipped or interrupted
    reason: str = ""  # for the last three


class JobPool:
    """Runs jobs until all have ended or a signal asks to stop; a job's parent comes before it."""

    poll = 0.1  # seconds between looks at the running jobs
    patience = 1.0  # seconds between looks at a job that another driver's process runs

    def __init__(self, jobs: Sequence[Job], launcher: Launcher) -> None:
        """Prepare; nothing starts before ``run``."""
        self.waiting = list(jobs)
        self.running: dict[Job, FileLock] = {}
        self.outcomes: dict[Job, Outcome] = {}
        self.signals: list[int] = []
        self._launcher = launcher
        self._reasons: dict[Job, str] = {}
        self._busy: dict[Job, float] = {}  # jobs that other processes run, and when to look again

    def run(self) -> list[Outcome]:
        """Run everything and return the outcomes in the order of the jobs."""
        jobs = list(self.waiting)
        bar = tqdm(total=len(jobs), unit="job", file=sys.stderr, dynamic_ncols=True, disable=None)
        with self._catch_signals(), bar:
            try:
                while (self.waiting or self.running) and not self.signals:
                    self._start_ready(bar)
                    for ended in self._launcher.ended():
                        self._finish(ended, bar)
                    if self.running or self.waiting:
                        time.sleep(self.poll)
            finally:
                self._stop_running()
        for job in self.waiting:
            self.outcomes[job] = Outcome(job, "interrupted", "not started")
        return [self.outcomes[job] for job in jobs]

    @contextlib.contextmanager
    def _catch_signals(self) -> Iterator[None]:
        # Only noted here and acted on between two steps: an exception that a handler raises at any
        # line could lose track of a process that has just been started.
        def note(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)

        # Ignored signals stay ignored: nohup ignores SIGHUP, a background shell job SIGINT.
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        old = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _start_ready(self, bar: tqdm) -> None:
        """Start or end every waiting job that need not wait any longer."""
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
            elif self._launcher.has_room():
                self._start(job, bar)

    def _reason(self, job: Job) -> str:
        """Return why a job has to run; asked once, as waiting for a device does not change it."""
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
                self._launch(job, lock, bar)
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

    def _wait_for(self, job: Job, others: str, bar: tqdm) -> None:
        if job not in self._busy:
            bar.write(f"{job}: waiting, {others} is running it", file=sys.stderr)
        self._busy[job] = time.monotonic() + self.patience
        self._reasons.pop(job, None)  # look again: the other process may have finished it

    def _launch(self, job: Job, lock: FileLock, bar: tqdm) -> None:
        owner = self._launcher.start(job, self._reason(job))
        self.waiting.remove(job)
        self.running[job] = lock
        with contextlib.suppress(OSError):  # the lock holds; the owner's name is only for messages
            lock.record(owner)
        bar.set_postfix(running=len(self.running), refresh=True)

    def _finish(self, ended: Ended, bar: tqdm) -> None:
        """Judge how a job ended: by its result, not by its exit status alone."""
        job = ended.job
        others = at_work(job.directory) if ended.status > 0 else ""
        self.running.pop(job).release()
        if others:  # train.py refused to run beside a process that started meanwhile
            self.waiting.append(job)
            self._wait_for(job, others, bar)
            return
        result = read_result(job.directory)
        if ended.status < 0:
            reason = f"killed by {signal.Signals(-ended.status).name}"
        elif ended.status > 0:
            reason = f"exit status {ended.status}"
        elif result is None:
            reason = "ended without a complete result.json"
        else:
            accuracy = result["metrics"]["accuracy"]
            bar.write(f"{job}: {accuracy:.2f} % in {ended.seconds:.0f} s", file=sys.stderr)
            self._end(Outcome(job, "ran"), bar)
            return
        self._end(Outcome(job, "failed", reason), bar)

    def _end(self, outcome: Outcome, bar: tqdm) -> None:
        self.outcomes[outcome.job] = outcome
        if outcome.job in self.waiting:
            self.waiting.remove(outcome.job)
        if outcome.status in ("failed", "skipped"):
            bar.write(f"{outcome.job}: {outcome.status}, {outcome.reason}", file=sys.stderr)
        bar.set_postfix(running=len(self.running), refresh=False)
        bar.update()

    def _stop_running(self) -> None:
        """Stop what still runs (nothing at an ordinary end); a second signal hurries."""
        seen = len(self.signals)
        for job in self._launcher.stop(hurry=lambda: len(self.signals) > seen):
            self.running.pop(job).release()
            self.outcomes[job] = Outcome(job, "interrupted", "stopped while running")


def last_lines(path: Path, count: int = 15) -> list[str]:
    """Return the last non-empty lines of a log; of a progress bar only its last state."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
    return [line for line in lines if line][-count:]
