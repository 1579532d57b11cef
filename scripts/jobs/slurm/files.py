"""What a job's folder tells of SLURM: which job it is there, and how that has ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dassl.results import read_object
from dassl.utils.files import atomic_write
from scripts.jobs.job import Job
from scripts.jobs.launchers import Ended

_QUEUED = ".queued.json"  # of the driver, until it has seen the job's end
_ENDED = ".ended.json"  # of the node


def write_queued(job: Job, name: str) -> None:
    """Note that a job was submitted, and is ``name`` to SLURM."""
    _write(job.directory / _QUEUED, {"id": name, "fingerprint": job.fingerprint})


def read_queued(job: Job) -> str | None:
    """Return SLURM's name of a job whose end no driver has seen; None if there is none."""
    found = read_object(job.directory / _QUEUED) or {}
    return found.get("id") if found.get("fingerprint") == job.fingerprint else None


def forget_queued(job: Job) -> None:
    """Note that a job's end was seen."""
    (job.directory / _QUEUED).unlink(missing_ok=True)


def write_end(job: Job, name: str, ended: Ended) -> None:
    """Leave on a node how the job that is ``name`` to SLURM ended."""
    _write(job.directory / _ENDED, {"id": name, "host": os.uname().nodename, **vars(ended)})


def read_end(job: Job, name: str) -> Ended | None:
    """Return how the job that is ``name`` to SLURM ended; None if its node left no word."""
    found = read_object(job.directory / _ENDED) or {}
    if found.get("id") != name:  # of an earlier submission
        return None
    return Ended(found["status"], found["reason"], found["accuracy"], found["seconds"])


def _write(path: Path, content: dict[str, object]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content) + "\n")
