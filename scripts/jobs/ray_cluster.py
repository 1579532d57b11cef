"""Gives jobs to a Ray cluster as tasks and follows them; see :mod:`scripts.jobs.ray_tasks`."""

from __future__ import annotations

import logging
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.jobs.job import Job
from scripts.jobs.launchers import QUEUED, Ended
from scripts.jobs.nodes import leave_sign, node_device, unseen

_HEAD = "node:__internal_head__"  # a resource that every head node has
_PATIENCE = 10.0  # seconds for a cluster to answer at all


@dataclass(frozen=True)
class RayOptions:
    """What each job asks for.

    Attributes:
        address: Of the cluster, HOST:PORT; "auto" for the one that this machine is part of.
        gpus: GPUs of a job, which is one process on each.
        cpus: CPUs of a job; 0 for one.
    """

    address: str
    gpus: int
    cpus: int

    def of_task(self) -> dict[str, Any]:
        """Return them as Ray's options of a task."""
        # Only what Ray itself loses is retried: a node, or a worker process.
        return {"num_cpus": self.cpus or 1, "num_gpus": self.gpus, "max_retries": 10}


def task_lines(jobs: Sequence[Job], options: RayOptions) -> Iterator[str]:
    """Yield what would be submitted, for ``--dry-run``: each task, and the command that it runs."""
    device = node_device(options.gpus)
    words = shlex.join(f"{name}={value}" for name, value in options.of_task().items())
    for job in jobs:
        after = f" after {job.parent}" if job.parent in jobs else ""
        yield f"# ray task {words}{after}"
        yield device.shell_line(job)


def _knock(address: str) -> None:
    """Check that something listens at an address; Ray tries for minutes where nothing does.

    Raises:
        OSError: Nothing does, or this machine knows of no cluster.
        ValueError: It is no address.
    """
    try:
        from ray._private.services import canonicalize_bootstrap_address  # what ray.init asks too
    except ImportError:  # not Ray's public interface: without it, Ray's own patience is left
        return
    if "://" in address:  # of Ray's client, which has limits of its own
        return
    found = canonicalize_bootstrap_address(address)
    if found is not None:
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


class RayLauncher:
    """Runs jobs as tasks of Ray's; see :class:`scripts.jobs.launchers.Launcher`."""

    takes_waiting = True
    outlives_driver = True
    poll = 1.0  # seconds between looks at the tasks
    slowest = 60.0  # seconds for cancelled tasks to end

    def __init__(self, output: Path, cwd: Path, options: RayOptions) -> None:
        """Connect to the cluster.

        Args:
            output: Folder of all runs, which the nodes share.
            cwd: The repository, which they share too.
            options: What a job needs of the cluster.

        Raises:
            OSError: It cannot be reached.
        """
        self._output, self._cwd, self._options = output, cwd, options
        self._states: dict[str, str | Ended] = {}
        self._looked = 0.0
        self._sign: tuple[Path, str] | None = None
        self._connect()

    def _connect(self) -> None:
        import ray

        try:
            _knock(self._options.address)
            ray.init(
                self._options.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                ignore_reinit_error=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            said = str(error).splitlines() or [type(error).__name__]
            raise OSError(
                f"--ray-address: no Ray cluster answers at {self._options.address!r} ({said[0]}); "
                "run this on a machine of the cluster, and see ray status"
            ) from None

    def _sweep(self, make: bool = False) -> Any:
        """Return the actor that holds the tasks of the output folder; None if there is none."""
        import ray

        from scripts.jobs.ray_tasks import NAMESPACE, Sweep, sweep_name

        name = sweep_name(self._output)
        if make:
            return Sweep.options(  # type: ignore[attr-defined]
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                resources={_HEAD: 0.001},  # where it is lost, so is the cluster
                runtime_env={"env_vars": {"PYTHONPATH": str(self._cwd)}},  # of its tasks too
            ).remote()
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None

    def _ask(self, method: str, *arguments: Any, make: bool = False) -> Any:
        """Have the actor do something; OSError where it was lost."""
        import ray

        sweep = self._sweep(make)
        try:
            return ray.get(getattr(sweep, method).remote(*arguments))
        except (ray.exceptions.RayError, AttributeError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise OSError(
                f"the Ray cluster has lost this sweep ({said[-1]}), or does not see {self._cwd}, "
                "which all nodes must; the same command goes on from the last epochs"
            ) from None

    def room(self) -> int:
        """Return how many more jobs it takes: Ray has a queue for any number."""
        return sys.maxsize

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit jobs as tasks; one with a parent starts when that has ended."""
        from scripts.jobs.ray_tasks import Work, name_of

        self._sign = self._sign or leave_sign(self._output)
        device = node_device(self._options.gpus)
        works = [Work(job, device, self._cwd, self._sign) for job in jobs]
        self._ask("submit", works, self._options.of_task(), make=True)
        self._states |= {name_of(job): QUEUED for job in jobs}

    def state(self, job: Job) -> str | Ended:
        """Return a job's state as of a short while ago."""
        from scripts.jobs.ray_tasks import UNSEEN, name_of

        if time.monotonic() - self._looked > self.poll:
            self._states |= self._ask("states")
            self._looked = time.monotonic()
        state = self._states[name_of(job)]
        if state == UNSEEN:
            raise unseen(self._output)
        if isinstance(state, Ended):
            self._ask("forget", [name_of(job)])
        return state

    def cancel(self, jobs: Sequence[Job], hurry: Callable[[], bool]) -> None:
        """Cancel jobs and wait until nothing of them runs.

        A job's processes have their grace time on the node whether there is a hurry or not.
        """
        from scripts.jobs.ray_tasks import name_of

        names = [name_of(job) for job in jobs]
        self._ask("cancel", names)
        begun, pressed = time.monotonic(), False
        while any(not isinstance(self._ask("states").get(name), Ended | None) for name in names):
            waited = time.monotonic() - begun
            if waited > self.slowest:
                raise OSError("Ray has not stopped all tasks; see ray status")
            if waited > self.slowest / 2 and not pressed:
                # Such as one whose node was lost, and which waits for another.
                self._ask("cancel", names, True)
                pressed = True
            time.sleep(self.poll / 4)
        self._ask("forget", names)

    def close(self) -> None:
        """Leave the cluster; the actor too, if nothing is left for another driver to see."""
        import ray

        sweep = self._sweep()
        if sweep is not None and not self._ask("forget", []):
            ray.kill(sweep)
        ray.shutdown()

    def adopt(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs that were submitted and whose end no driver has seen."""
        from scripts.jobs.ray_tasks import name_of

        if self._sweep() is None:
            return []
        self._states = self._ask("states")
        return [job for job in jobs if name_of(job) in self._states]
