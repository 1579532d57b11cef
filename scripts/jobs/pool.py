"""Decides which job is submitted when, by its parent and the launcher's room, until all have ended.

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

from scripts.jobs.job import Job
from scripts.jobs.launchers import RUNNING, Ended, Launcher

_TAIL_BYTES = 16384


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    status: str  # ran, done (nothing to do), failed, skipped or interrupted
    reason: str = ""  # for the last three


class JobPool:
    """Runs jobs until all have ended or a signal asks to stop; a job's parent comes before it."""

    poll = 0.1  # seconds between looks at the submitted jobs
    patience = 1.0  # seconds between looks at a job that another driver's process runs

    def __init__(
        self, jobs: Sequence[Job], launcher: Launcher, *, submitted: Sequence[Job] = ()
    ) -> None:
        """Prepare; nothing starts before ``run``.

        Args:
            jobs: A job's parent comes before it.
            launcher: Runs them.
            submitted: Those that the launcher has already, from an earlier driver.
        """
        self.waiting = [job for job in jobs if job not in submitted]
        self.submitted = list(submitted)
        self.outcomes: dict[Job, Outcome] = {}
        self.signals: list[int] = []
        self.left = False  # whether submitted jobs go on without this driver
        self._jobs = list(jobs)
        self._launcher = launcher
        self._reasons: dict[Job, str] = {}
        self._running = 0
        self._busy: dict[Job, float] = {}  # jobs that other processes run, and when to look again

    def run(self) -> list[Outcome]:
        """Run everything and return the outcomes in the order of the jobs."""
        total = len(self._jobs)
        bar = tqdm(total=total, unit="job", file=sys.stderr, dynamic_ncols=True, disable=None)
        with self._catch_signals(), bar:
            try:
                while (self.waiting or self.submitted) and not self.signals:
                    self._submit_ready(bar)
                    self._look(bar)
                    if self.submitted or self.waiting:
                        time.sleep(self.poll)
            finally:
                self._stop_submitted()
        for job in self.waiting:
            self.outcomes[job] = Outcome(job, "interrupted", "not started")
        return [self.outcomes[job] for job in self._jobs]

    def submit_all(self) -> int:
        """Submit every job, for a launcher that outlives this driver, and return their number."""
        with tqdm(disable=True) as bar:
            self._submit_ready(bar)
        return len(self.submitted)

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

    def _submit_ready(self, bar: tqdm) -> None:
        """Submit or end every waiting job that need not wait any longer."""
        ready: list[Job] = []
        for job in list(self.waiting):
            if self.signals:
                break
            parent = self.outcomes.get(job.parent) if job.parent is not None else None
            if job.parent is not None and parent is None:
                known = job.parent in ready or job.parent in self.submitted
                if not (self._launcher.takes_waiting and known):
                    continue
            if time.monotonic() < self._busy.get(job, 0):
                continue
            if parent is not None and parent.status not in ("ran", "done"):
                self._end(Outcome(job, "skipped", f"{parent.job} {parent.status}"), bar)
            elif not self._reason(job):
                self._end(Outcome(job, "done"), bar)
            elif len(ready) < self._launcher.room():
                ready.append(job)
        if ready and not self.signals:
            self.submitted += ready  # before, so that those taken are stopped if others are refused
            self.waiting = [job for job in self.waiting if job not in self.submitted]
            self._launcher.submit(ready)

    def _reason(self, job: Job) -> str:
        """Return why a job has to run; asked once, as waiting for a device does not change it."""
        if job not in self._reasons:
            self._reasons[job] = job.to_do()
        return self._reasons[job]

    def _look(self, bar: tqdm) -> None:
        """Look at every submitted job."""
        running = 0
        for job in list(self.submitted):
            if self._orphaned(job):
                self._launcher.cancel([job], hurry=lambda: False)
                self.submitted.remove(job)
                self.waiting.append(job)  # to be skipped
                continue
            state = self._launcher.state(job)
            if isinstance(state, Ended):
                self.submitted.remove(job)
                self._finish(job, state, bar)
            else:
                running += state == RUNNING
        if running != self._running:
            self._running = running
            bar.set_postfix(running=running)

    def _orphaned(self, job: Job) -> bool:
        """Tell whether the job that a submitted one builds on has failed."""
        parent = self.outcomes.get(job.parent) if job.parent is not None else None
        return parent is not None and parent.status not in ("ran", "done")

    def _finish(self, job: Job, ended: Ended, bar: tqdm) -> None:
        if ended.status == "busy":
            self.waiting.append(job)
            self._wait_for(job, ended.reason, bar)
            return
        if ended.accuracy is not None:
            took = f"{ended.accuracy:.2f} % in {ended.seconds:.0f} s"
            bar.write(f"{job}: {took}", file=sys.stderr)
        self._end(Outcome(job, ended.status, ended.reason), bar)

    def _wait_for(self, job: Job, others: str, bar: tqdm) -> None:
        if job not in self._busy:
            bar.write(f"{job}: waiting, {others} is running it", file=sys.stderr)
        self._busy[job] = time.monotonic() + self.patience
        self._reasons.pop(job, None)  # look again: the other process may have finished it

    def _end(self, outcome: Outcome, bar: tqdm) -> None:
        self.outcomes[outcome.job] = outcome
        if outcome.job in self.waiting:
            self.waiting.remove(outcome.job)
        if outcome.status in ("failed", "skipped"):
            bar.write(f"{outcome.job}: {outcome.status}, {outcome.reason}", file=sys.stderr)
        bar.update()

    def _stop_submitted(self) -> None:
        """Stop what has not ended (nothing at an ordinary end); a second signal hurries.

        The end of the terminal (SIGHUP) stops nothing that can go on without this driver.
        """
        seen = len(self.signals)
        self.left = self._launcher.outlives_driver and self.signals[:1] == [signal.SIGHUP]
        if self.submitted and not self.left:
            self._launcher.cancel(self.submitted, hurry=lambda: len(self.signals) > seen)
        for job in self.submitted:
            reason = "left to go on" if self.left else "stopped while running"
            self.outcomes[job] = Outcome(job, "interrupted", reason)
        self.submitted.clear()
        self._launcher.close()


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
