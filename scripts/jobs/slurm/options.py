"""What a job needs of a SLURM cluster, as flags of ``sbatch`` and of submitit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.jobs.job import Job
from scripts.jobs.nodes import node_device
from scripts.jobs.slurm.arrays import Array

SIGNAL = "USR1"  # sent before the time limit, so that the job can be stopped and requeued
_NOTICE = 90  # seconds before the limit
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


@dataclass(frozen=True)
class SlurmOptions:
    """What each job asks for.

    Attributes:
        partition: Empty for the cluster's default.
        minutes: Time limit.
        gpus_per_node: GPUs of a job, which is one process on each.
        cpus_per_task: CPUs of a job; 0 for the cluster's default.
        others: Further flags of ``sbatch``, by name without dashes.
    """

    partition: str
    minutes: int
    gpus_per_node: int
    cpus_per_task: int
    others: dict[str, str]

    def flags(self, array: Array, parent: str) -> dict[str, Any]:
        """Return the flags of ``sbatch`` that say what an array needs, and what it waits for.

        ``parent`` is SLURM's name of the first job's parent; empty if it waits for none.
        """
        flags: dict[str, Any] = {"job-name": array[0].key.stage, "time": self.minutes}
        if self.partition:
            flags["partition"] = self.partition
        if self.gpus_per_node:
            flags["gpus-per-node"] = self.gpus_per_node
        if self.cpus_per_task:
            flags["cpus-per-task"] = self.cpus_per_task
        if parent and len(array) > 1:
            flags["dependency"] = f"aftercorr:{parent.split('_')[0]}"
        elif parent:
            flags["dependency"] = f"afterok:{parent}"
        return {**flags, **self.others}

    def parameters(self, array: Array, parent: str, cwd: Path) -> dict[str, Any]:
        """Return the same as parameters of submitit's executor, with what requeuing needs."""
        flags = self.flags(array, parent)
        name = flags.pop("job-name")  # submitit has one of its own, which would win
        notice = min(_NOTICE, self.minutes * 60 // 4)
        # By srun, CPUs are not inherited from the allocation.
        cpus = [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []
        return {
            "job_name": name,
            "time": self.minutes,
            "stderr_to_stdout": True,
            "array_parallelism": len(array),
            "srun_args": cpus,
            "additional_parameters": {
                "chdir": str(cwd),
                "requeue": True,
                "signal": f"{SIGNAL}@{notice}",
                # What builds on a failed job would stay in the queue for ever.
                "kill-on-invalid-dep": "yes",
                **flags,
            },
        }


def submission_lines(arrays: Sequence[Array], options: SlurmOptions) -> Iterator[str]:
    """Yield what would be submitted: a comment for each array, and its jobs' commands."""
    names: dict[Job | None, str] = {None: ""}
    for number, array in enumerate(arrays, start=1):
        names |= {job: f"ARRAY{number}_{index}" for index, job in enumerate(array)}
        flags = options.flags(array, names.get(array[0].parent, ""))
        words = [f"--{name}={value}" for name, value in flags.items()]
        yield f"# ARRAY{number}: {shlex.join(['sbatch', f'--array=0-{len(array) - 1}', *words])}"
        device = node_device(options.gpus_per_node)
        yield from (device.shell_line(job) for job in array)


def read_minutes(text: str) -> int:
    """Read ``--time`` as SLURM writes it: minutes, minutes:seconds, [days-]hours[:minutes[:s]].

    Raises:
        ValueError: It is none of these, or nothing.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(
            f"--time: {text!r} is no time; give minutes (90), hours:minutes:seconds (1:30:00) or "
            "days-hours (1-12)."
        )
    parts = [int(part) for part in found["rest"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        minutes += (int(found["days"]) * 24 + hours) * 60
    elif len(parts) == 3:
        minutes, seconds = parts[0] * 60 + parts[1], parts[2]
    else:
        minutes, seconds = (*parts, 0)[:2]
    minutes += -(-seconds // 60)
    if minutes < 1:
        raise ValueError(f"--time: {text!r} leaves a job no time.")
    return minutes


def read_others(words: Sequence[str]) -> dict[str, str]:
    """Read ``--slurm``: NAME=VALUE pairs, such as account=vision or exclusive=.

    Raises:
        ValueError: A word is no such pair.
    """
    others = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z-]*", name):
            raise ValueError(f"--slurm: {word!r} is no NAME=VALUE of sbatch, such as account=me.")
        others[name] = value
    return others
