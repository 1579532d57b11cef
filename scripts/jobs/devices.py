"""The devices of a machine that jobs are given to: what ``--devices`` names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.jobs.job import Job


@dataclass(frozen=True)
class Device:
    """A place where jobs run."""

    name: str  # as given on the command line
    flags: tuple[str, ...]  # flags of ``train.py`` that choose it
    environment: dict[str, str]  # variables set for its jobs
    processes: int = 1  # per job, one for each of its GPUs
    srun: tuple[str, ...] = ()  # what starts the processes where they are on several machines

    def command(self, job: Job) -> list[str]:
        """Return the command line that runs a job here."""
        python, *rest = job.command(self.flags)
        if self.srun:
            return [*self.srun, python, *rest]  # train.py reads srun's variables
        if self.processes == 1:
            return [python, *rest]
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        return [python, *torchrun, f"--nproc_per_node={self.processes}", *rest]

    def shell_line(self, job: Job) -> str:
        """Return the command as a shell takes it, variables included."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command(job))])


def parse_devices(words: Sequence[str], jobs_per_device: int) -> list[Device]:
    """Read ``--devices``.

    A word is a GPU number as nvidia-smi counts (or its GPU-... name), several joined by ``+`` for
    one job on all of them; ``2x4`` for one job on two machines of an allocation of SLURM, with
    four GPUs each; ``cpu``, ``mps``, or ``auto``, which leaves the choice to ``train.py``.
    """
    parts = [[gpu.removeprefix("cuda:") for gpu in word.split("+")] for word in words]
    names = [name for part in parts for name in part]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--devices: {twice} is given twice; see --jobs-per-device.")
    return [_device(word, part, jobs_per_device) for word, part in zip(words, parts, strict=True)]


def check_machines(devices: Sequence[Device]) -> None:
    """Refuse a job on several machines outside of an allocation.

    Raises:
        ValueError: There is no srun, or it would have no machines to start on.
    """
    several = next((device for device in devices if device.srun), None)
    if several is not None and not (shutil.which("srun") and "SLURM_JOB_ID" in os.environ):
        raise ValueError(
            f"--devices: {several.name} is a job on several machines, which srun starts inside an "
            "allocation of SLURM (salloc or sbatch); elsewhere start train.py by torchrun on each "
            "machine, see docs/cluster.md."
        )


def _device(word: str, names: list[str], jobs_per_device: int) -> Device:
    name = ",".join(names)
    if all(gpu.isdecimal() or gpu.startswith(("GPU-", "MIG-")) for gpu in names):
        return Device(name, ("--device", "cuda"), {"CUDA_VISIBLE_DEVICES": name}, len(names))
    if name == "auto":
        return Device(name, (), {})
    machines = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if machines:
        return _machines(name, *map(int, machines.groups()))
    if name not in ("cpu", "mps"):
        raise ValueError(
            f"--devices: {word!r} is no device; give GPU numbers (0 1, or 0+1 for one job on "
            "both), 2x4 for one job on two machines with four GPUs each, cpu, mps or auto."
        )
    environment = {"CUDA_VISIBLE_DEVICES": ""} if name == "cpu" else {}
    if name == "cpu" and jobs_per_device > 1 and "OMP_NUM_THREADS" not in os.environ:
        # PyTorch uses all cores in each process; several jobs that do so slow each other down.
        threads = max(1, (os.cpu_count() or 1) // jobs_per_device)
        environment["OMP_NUM_THREADS"] = str(threads)
    return Device(name, ("--device", name), environment)


def _machines(name: str, nodes: int, gpus: int) -> Device:
    srun = (
        "srun",
        f"--nodes={nodes}",
        f"--ntasks-per-node={gpus}",
        f"--gpus-per-node={gpus}",
        "--kill-on-bad-exit=1",  # by default the other processes of a failed run go on
    )
    return Device(name, ("--device", "cuda"), {}, nodes * gpus, srun)
