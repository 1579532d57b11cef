"""Submits jobs to SLURM by submitit, and follows them by their files and by the queue."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from scripts.jobs.job import Job
from scripts.jobs.launchers import QUEUED, RUNNING, Ended
from scripts.jobs.nodes import leave_sign, node_device, unseen
from scripts.jobs.slurm.arrays import Array, make_arrays
from scripts.jobs.slurm.files import forget_queued, read_end, read_queued, write_queued
from scripts.jobs.slurm.options import SIGNAL, SlurmOptions
from scripts.jobs.slurm.queue import Entry, entries, stop_jobs
from scripts.jobs.slurm.work import Work

_FOLDER = ".slurm"  # in the output folder: submitit's files, and what its processes print
_UNSEEN = 97  # exit status of a node that does not see the output folder
_REQUEUES = 100  # times that a job may reach its time limit; each goes on from its last epoch


class SlurmLauncher:
    """Runs jobs as SLURM's; see :class:`scripts.jobs.launchers.Launcher`.

    A job's folder says which job of SLURM it is, so that another driver can go on with it.
    """

    takes_waiting = True
    outlives_driver = True
    poll = 2.0  # seconds between looks at the queue
    patience = 15.0  # seconds for a node's file to appear here
    slowest = 120.0  # seconds for cancelled jobs to end

    def __init__(self, output: Path, cwd: Path, options: SlurmOptions) -> None:
        """Prepare; nothing is submitted yet.

        Args:
            output: Folder of all runs, which the nodes share.
            cwd: The jobs' working directory, which they share too.
            options: What a job needs of the cluster.
        """
        self._output, self._cwd, self._options = output, cwd, options
        self._names: dict[Job, str] = {}  # as SLURM calls them: 12, or 12_3 of an array
        self._states: dict[Job, str | Ended] = {}
        self._wordless: dict[Job, float] = {}  # since when a job has ended that left no word
        self._looked = 0.0
        self._silent = False  # whether it did not answer the last time
        self._sign: tuple[Path, str] | None = None

    def room(self) -> int:
        """Return how many more jobs it takes: SLURM has a queue for any number."""
        return sys.maxsize

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit jobs as arrays; one with a parent starts when that has ended well."""
        for array in make_arrays(jobs, [job for job in self._names if self._is_open(job)]):
            for job, name in zip(array, self._submit(array), strict=True):
                self._follow(job, name)
                write_queued(job, name)

    def _submit(self, array: Array) -> list[str]:
        executor = submitit.SlurmExecutor(self._output / _FOLDER, max_num_timeout=_REQUEUES)
        parent = array[0].parent
        name = self._names[parent] if parent is not None and self._is_open(parent) else ""
        executor.update_parameters(
            **self._options.parameters(array, name, self._cwd), setup=self._setup()
        )
        work = Work(node_device(self._options.gpus_per_node), self._cwd)
        try:
            return [taken.job_id for taken in executor.map_array(work, array)]
        except FailedJobError as error:
            said = str(error).strip().splitlines() or ["no reason given"]
            raise ValueError(f"SLURM refuses the jobs: {said[-1]}") from None

    def _setup(self) -> list[str]:
        """Return what a node does before Python starts, for which it needs the output folder."""
        # Once for all arrays: nodes of the first may look after the last was submitted.
        self._sign = self._sign or leave_sign(self._output)
        sign, content = self._sign
        return [
            f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}",
            f"grep -qsx {content} {shlex.quote(str(sign))} || exit {_UNSEEN}",
        ]

    def _follow(self, job: Job, name: str) -> None:
        self._names[job], self._states[job] = name, QUEUED
        self._wordless.pop(job, None)

    def _is_open(self, job: Job) -> bool:
        """Tell whether a job was submitted and its end is unknown."""
        return not isinstance(self._states.get(job, Ended("done")), Ended)

    def state(self, job: Job) -> str | Ended:
        """Return a job's state as of a short while ago."""
        if time.monotonic() - self._looked > self.poll:
            self._look()
            self._looked = time.monotonic()
        state = self._states[job]
        if isinstance(state, Ended):
            forget_queued(job)
        return state

    def _look(self) -> None:
        """Look at the jobs' files, and in the queue for those that have left no word there."""
        names = dict(self._names)
        for job, name in self._names.items():
            ended = self._states[job] if isinstance(self._states[job], Ended) else None
            ended = ended or read_end(job, name)
            if ended is not None:
                self._states[job] = ended
                del names[job]
        try:
            found = entries(names.values())
            self._silent = False
        except OSError as error:
            # A controller that restarts; jobs go on meanwhile, and their files tell their ends.
            if not self._silent:
                print(f"SLURM does not answer ({error}); waiting for it", file=sys.stderr)
            self._silent = True
            return
        for job, name in names.items():
            entry = found.get(name)
            if entry is not None and entry.waits:
                self._states[job] = QUEUED
            elif entry is not None and entry.runs:
                self._states[job] = RUNNING
            else:
                self._states[job] = self._without_word(job, entry)

    def _without_word(self, job: Job, entry: Entry | None) -> str | Ended:
        """Judge a job that SLURM says has ended, while nothing in its folder says so."""
        name = self._names[job]
        log = self._output / _FOLDER / f"{name}_0_log.out"
        if entry is not None and entry.state == "CANCELLED":
            if job.parent is not None and self._is_open(job.parent):
                return QUEUED  # the parent's end, soon to be seen, will be the reason
            return Ended("failed", f"SLURM job {name} was cancelled")
        if entry is not None and entry.state == "FAILED" and entry.exit_code == _UNSEEN:
            raise unseen(self._output)
        since = self._wordless.setdefault(job, time.monotonic())
        if time.monotonic() - since < self.patience:
            return RUNNING
        if not log.exists() and entry is not None and entry.state == "FAILED":
            raise unseen(self._output)  # the node could not even write the log
        how = f"{entry.state}, {entry.reason}" if entry is not None else "it is no longer known"
        return Ended("failed", f"SLURM ended job {name} ({how}); see {log}")

    def cancel(self, jobs: Sequence[Job], hurry: Callable[[], bool]) -> None:
        """Cancel jobs and wait until nothing of them runs; in a hurry, kill them."""
        jobs = [job for job in jobs if job in self._names]
        names = [self._names[job] for job in jobs]
        stop_jobs(names)
        deadline = time.monotonic() + self.slowest
        while any(entry.waits or entry.runs for entry in entries(names).values()):
            if time.monotonic() > deadline:
                raise OSError(f"SLURM has not stopped all of {', '.join(names)}; see squeue --me")
            if hurry():
                stop_jobs(names, kill=True)
            time.sleep(self.poll / 4)
        for job in jobs:
            self._states[job] = Ended("interrupted", "cancelled")
            forget_queued(job)

    def close(self) -> None:
        """End nothing: between jobs, nothing is kept."""

    def adopt(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs whose folders say that they were submitted, and whose end is unseen."""
        adopted = []
        for job in jobs:
            name = read_queued(job)
            if name is not None:
                self._follow(job, name)
                adopted.append(job)
        return adopted
