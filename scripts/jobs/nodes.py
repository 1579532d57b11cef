"""What launchers of a cluster share: a job on a node, and the check that nodes see its folder."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from dassl.utils.files import atomic_write
from scripts.jobs.devices import Device
from scripts.jobs.job import Job
from scripts.jobs.launchers import Ended
from scripts.jobs.local import Slot
from scripts.jobs.work import Stop, run_job

_PATIENCE = 1.0  # seconds between looks at a job that another process works on
_SIGNS = ".seen"  # in the output folder: files that nodes have to find, one of each driver


def run_on_node(job: Job, device: Device, cwd: Path, stop: Stop, kind: type[Slot] = Slot) -> Ended:
    """Run a job that the engine has started, as it believes that the parent has ended well.

    A node cannot give a busy job back, so it waits for the other process: most often that is what
    is left of this job's own run before it was requeued.
    """
    if job.parent is not None and job.parent.to_do():
        return Ended("failed", f"its training run is not done: {job.parent.to_do()}")
    slot = kind(device, cwd)
    while True:
        ended = run_job(job, device, slot.start, stop)
        if ended.status != "busy" or stop.asked:
            return ended
        time.sleep(_PATIENCE)


def node_device(gpus: int) -> Device:
    """Return the device of a node's job: what the engine gives it, which needs no number.

    Without a number of GPUs, ``train.py`` takes what it finds there.
    """
    return (
        Device(f"{gpus} GPUs", ("--device", "cuda"), {}, gpus) if gpus else Device("auto", (), {})
    )


def leave_sign(output: Path) -> tuple[Path, str]:
    """Write a file into the output folder for nodes to read; return it and its one line."""
    content = uuid.uuid4().hex
    sign = output / _SIGNS / content[:8]
    with atomic_write(sign) as file:
        file.write(f"{content}\n")
    return sign, content


def unseen(output: Path) -> OSError:
    """Return the error of an output folder that a node does not see."""
    return OSError(
        f"--output: a node of the cluster does not see {output} with what was written there; "
        "name a folder that all nodes share, at the same path."
    )
