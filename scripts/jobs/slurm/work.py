"""What a SLURM job does on its node: one job of the sweep, told in a file how it ended.

SLURM or submitit may want the node back: before the time limit comes a signal of submitit's, and
a preempted job gets SIGTERM. The job's processes are then stopped, and the job is queued
again; there it resumes from its last epoch, as every job does.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from scripts.jobs.devices import Device
from scripts.jobs.job import Job
from scripts.jobs.launchers import Ended
from scripts.jobs.nodes import run_on_node
from scripts.jobs.slurm.files import write_end
from scripts.jobs.slurm.options import SIGNAL
from scripts.jobs.slurm.queue import cancelled
from scripts.jobs.work import Stop

_SIGNALLED = 2.0  # seconds in which a signal arrives that has killed the job's processes


@dataclass(frozen=True)
class Work:
    """Runs a job on the node where it is called; submitit calls it, and `checkpoint`."""

    device: Device
    cwd: Path

    def __call__(self, job: Job) -> None:
        """Run a job and leave its end in its folder; exit status 1 if it has failed.

        SLURM starts what builds on it only after exit status 0.
        """
        name = JobEnvironment().job_id
        signal.signal(signal.SIGTERM, self._asked_to_stop)
        try:
            ended = run_on_node(job, self.device, self.cwd, Stop())
            if ended.status == "failed":
                # Clusters signal all processes of a job. If that was its end, our own signal
                # follows, and the handler leaves this function.
                time.sleep(_SIGNALLED)
        except UncompletedJobError as error:  # of submitit: requeued too often
            ended = Ended("failed", f"{error}")
        write_end(job, name, ended)
        if ended.status not in ("ran", "done"):
            raise SystemExit(1)

    def checkpoint(self, job: Job) -> DelayedSubmission:
        """Return what runs after the job was requeued: the same again, which resumes."""
        _hear_no_more()
        return DelayedSubmission(self, job)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        _hear_no_more()
        if cancelled(JobEnvironment().job_id):
            raise SystemExit(128 + number)
        signal.raise_signal(signal.Signals[f"SIG{SIGNAL}"])  # submitit requeues the job and exits


def _hear_no_more() -> None:
    # SLURM asks again when a job is requeued; that must not disturb the stopping of its processes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
