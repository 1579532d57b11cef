"""What runs on a Ray cluster: a task per job, and the actor that has submitted them.

Ray ends the tasks of a driver that ends. So they are submitted by a detached actor on the head
node, one for each output folder, which lasts until no task is left that a driver has not seen end.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ray
from ray.exceptions import RayError, TaskCancelledError

from scripts.jobs.devices import Device
from scripts.jobs.job import Job
from scripts.jobs.launchers import QUEUED, RUNNING, Ended
from scripts.jobs.local import Slot
from scripts.jobs.nodes import run_on_node
from scripts.jobs.work import Stop

NAMESPACE = "sweeps"
UNSEEN = Ended("failed", "the node does not see the output folder")
_LOOK = 1.0  # seconds between a running task's questions whether it is still wanted
_BOUND = Path(__file__).with_name("bound.py")


def name_of(job: Job) -> str:
    """Return what a job is called on the cluster; its folder and all that decides its result."""
    return f"{job.directory} {job.fingerprint}"


def sweep_name(output: Path) -> str:
    """Return the name of the actor of an output folder."""
    return f"sweep-{hashlib.sha256(os.fsencode(output)).hexdigest()[:16]}"


@dataclass(frozen=True)
class Work:
    """A job as a task gets it.

    Attributes:
        job: The job.
        device: What the node's Ray has reserved for it.
        cwd: Its working directory, which all nodes see.
        sign: A file in the output folder, and the line that it has to hold.
    """

    job: Job
    device: Device
    cwd: Path
    sign: tuple[Path, str]

    def seen(self) -> bool:
        """Tell whether this node sees the output folder."""
        path, line = self.sign
        try:
            return path.read_text(encoding="utf-8").strip() == line
        except OSError:
            return False


class BoundSlot(Slot):
    """A slot whose processes stop when Ray ends the worker that has started them."""

    def popen(self, command: Sequence[str], stdin: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a process with the device's environment, bound to this one."""
        bound = [sys.executable, "-S", "-E", str(_BOUND), str(os.getpid())]
        return super().popen([*bound, *command], stdin, log)


@ray.remote
def run_task(work: Work, sweep: Any, parent: Ended | None) -> Ended:
    """Run a job; Ray starts it when the parent's task has ended, and again if its node is lost.

    Once it has begun it is stopped by the actor's word alone. Ray's own way, a KeyboardInterrupt
    in the middle of whatever runs, is sometimes lost, and then the job would run to its end.
    """
    if not work.seen():
        return UNSEEN
    name, stop, over = name_of(work.job), Stop(), threading.Event()
    # In a thread: what a task's own thread waits for, Ray takes as leave to run another task here.
    with ThreadPoolExecutor(1) as executor:
        node = ray.get_runtime_context().get_node_id()
        if not executor.submit(lambda: ray.get(sweep.began.remote(name, node))).result():
            return Ended("interrupted", "cancelled")
        executor.submit(_listen, sweep, name, stop, over)
        try:
            return run_on_node(work.job, work.device, work.cwd, stop, BoundSlot)
        finally:
            over.set()


def _listen(sweep: Any, name: str, stop: Stop, over: threading.Event) -> None:
    """Ask the actor now and then whether a job is still wanted, until its task is over."""
    while not over.wait(_LOOK) and not stop.asked:
        try:
            stop.asked = not ray.get(sweep.wanted.remote(name))
        except RayError:  # without the actor, Ray ends this process
            return


@ray.remote(num_cpus=0)
class Sweep:
    """Submits tasks and remembers them until a driver has seen their end."""

    def __init__(self) -> None:
        """Start without any."""
        self._tasks: dict[str, ray.ObjectRef] = {}
        self._nodes: dict[str, list[str]] = {}  # on which a job has begun, the latest last
        self._unwanted: set[str] = set()

    def submit(self, works: Sequence[Work], options: dict[str, Any]) -> None:
        """Submit jobs; a job whose parent is among the tasks starts after it."""
        own = ray.get_runtime_context().current_actor
        for work in works:
            name, parent = name_of(work.job), work.job.parent
            after = self._tasks.get(name_of(parent)) if parent is not None else None
            task = run_task.options(**options, name=str(work.job))
            self._tasks[name] = task.remote(work, own, after)
            self._nodes[name] = []
            self._unwanted.discard(name)  # left by a driver that was killed while it cancelled

    def began(self, name: str, node: str) -> bool:
        """Hear from a task that it has begun, and tell whether it may go on."""
        if name in self._nodes:
            self._nodes[name].append(node)
        return self.wanted(name)

    def wanted(self, name: str) -> bool:
        """Tell whether a job is still to be run."""
        return name in self._tasks and name not in self._unwanted

    def states(self) -> dict[str, str | Ended]:
        """Return the state of every task, by the job's name."""
        if not self._tasks:
            return {}
        refs = list(self._tasks.values())
        ended, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        over = set(ended)
        return {
            name: _end(ref) if ref in over else RUNNING if self._nodes[name] else QUEUED
            for name, ref in self._tasks.items()
        }

    def places(self) -> dict[str, list[str]]:
        """Return the nodes on which each job has begun."""
        return dict(self._nodes)

    def cancel(self, names: Sequence[str], begun: bool = False) -> None:
        """Ask tasks to stop; those that have ``begun`` by Ray's means only if this says so.

        They hear of it soon, and a KeyboardInterrupt meanwhile would break off their stopping.
        """
        self._unwanted |= {*names} & self._tasks.keys()
        for name in self._unwanted:
            if begun or not self._nodes[name]:
                ray.cancel(self._tasks[name], force=False)

    def forget(self, names: Sequence[str]) -> int:
        """Forget tasks whose end was seen; return how many are left."""
        for name in names:
            self._tasks.pop(name, None)
            self._nodes.pop(name, None)
            self._unwanted.discard(name)
        return len(self._tasks)


def _end(ref: ray.ObjectRef) -> Ended:
    """Return how a task ended, of which Ray may say that it could not do it."""
    try:
        return ray.get(ref)
    except TaskCancelledError:
        return Ended("interrupted", "cancelled")
    except RayError as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        return Ended("failed", f"Ray could not run it: {said[-1] if said else error!r}")
