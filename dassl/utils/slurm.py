"""SLURM's ``srun`` as a launcher: what it tells its tasks, in the words that PyTorch reads."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

__all__ = ["first_host", "read_srun"]

# Outside of the range from which Linux takes ports for connections that programs open.
_PORTS = range(10000, 30000)


def read_srun(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the tasks of an ``srun`` be the processes of one run, as ``torchrun`` would start them.

    Does nothing for a single task, or where ``torchrun`` has started this process. MASTER_ADDR and
    MASTER_PORT keep values that they have.

    Args:
        environment: Read and changed.

    Raises:
        ValueError: A variable of SLURM has no value that is understood.
    """
    # Of the step that ``srun`` made: SLURM_NTASKS is there in a batch script too, in which one
    # process alone runs.
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    if tasks == 1 or "RANK" in environment:
        return
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    several = _number(environment, "SLURM_STEP_NUM_NODES", 1) > 1
    # Several runs may share an allocation: each step has a port of its own.
    step = _number(environment, "SLURM_JOB_ID") * 101 + _number(environment, "SLURM_STEP_ID")
    found = {
        "RANK": _number(environment, "SLURM_PROCID"),
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": _number(environment, "SLURM_LOCALID"),
        "LOCAL_WORLD_SIZE": _own_tasks(environment),
        "MASTER_ADDR": first_host(nodes) if several else "127.0.0.1",
        "MASTER_PORT": _PORTS[step % len(_PORTS)],
    }
    for name, value in found.items():
        environment.setdefault(name, str(value))


def first_host(nodes: str) -> str:
    """Return the first of SLURM's compressed host names: ``gpu[03-05,9],login`` -> ``gpu03``."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _number(environment: MutableMapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        raise ValueError(
            f"srun has started this process, but {name} is {value!r}, not a number; start it by "
            "torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and "
            "MASTER_PORT"
        )
    return int(value)


def _own_tasks(environment: MutableMapping[str, str]) -> int:
    """Return the number of tasks on this node, from the counts of all: ``4(x2),1``."""
    counts: list[int] = []
    for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    ):
        counts += [int(count)] * int(times or 1)
    node = _number(environment, "SLURM_NODEID")
    if node >= len(counts):
        raise ValueError(
            f"srun has started this process on node {node}, but SLURM_STEP_TASKS_PER_NODE is "
            f"{environment.get('SLURM_STEP_TASKS_PER_NODE')!r}; start it by torchrun"
        )
    return counts[node]
