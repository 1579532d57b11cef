"""What runs jobs, seen from the pool: an engine that takes them, tells their state, stops them.

The pool (:mod:`scripts.jobs.pool`) decides which jobs may be submitted and what their ends mean for
others. A launcher has them worked on by :func:`scripts.jobs.work.run_job`, here or elsewhere: on
this machine (:mod:`scripts.jobs.local`), or on nodes of a cluster that share this file system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from scripts.jobs.job import Job

QUEUED, RUNNING = "queued", "running"


@dataclass(frozen=True)
class Ended:
    """How a job has ended; plain data, as it is told where the job ran and read elsewhere.

    Attributes:
        status: "ran"; "done": there was nothing to do; "failed"; "interrupted": stopped because
            somebody asked for it; "busy": another process is at work on it, so it was not begun.
        reason: Why it failed or was interrupted; of a busy job, the process that is at work on it.
        accuracy: In percent, of a job that ran.
        seconds: How long it ran.
    """

    status: str
    reason: str = ""
    accuracy: float | None = None
    seconds: float = 0.0


class Launcher(Protocol):
    """Takes jobs, tells their state, and stops them.

    Attributes:
        takes_waiting: Whether it takes a job whose parent has not ended yet, and starts it then.
        outlives_driver: Whether jobs go on without the driver, which may come back to them.
    """

    takes_waiting: bool
    outlives_driver: bool

    def room(self) -> int:
        """Return how many more jobs it takes now."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs, to start them in this order as room allows.

        The parent (``job.parent``) of each is done, or was submitted, before or in the same call;
        it is not waited for here unless ``takes_waiting``.

        Raises:
            ValueError: The engine refuses them, for a reason that a flag can change.
            OSError: The engine cannot be reached.
        """

    def state(self, job: Job) -> str | Ended:
        """Return QUEUED, RUNNING or how a submitted job ended; asked often, so it must be cheap."""

    def cancel(self, jobs: Sequence[Job], hurry: Callable[[], bool]) -> None:
        """Stop jobs and return when nothing of them is left.

        Gently at first; when ``hurry()`` becomes true, at once. After a ``submit`` that raised an
        error, some may never have been submitted.
        """

    def close(self) -> None:
        """End what it keeps between jobs; no job is running, or the driver leaves those that do."""

    def adopt(self, jobs: Sequence[Job]) -> list[Job]:
        """Return those of the jobs that an earlier driver submitted, as if they were submitted now.

        Only launchers that outlive a driver find any.
        """
