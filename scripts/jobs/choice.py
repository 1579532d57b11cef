"""``--launcher``: which engine runs the jobs, and the flags that each of them has."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from functools import partial

from scripts.flags import refuse_flags
from scripts.jobs.devices import Device, check_machines, parse_devices
from scripts.jobs.launchers import Launcher
from scripts.jobs.local import LocalLauncher, Slot
from scripts.jobs.protocols import split_words, work_folder
from scripts.jobs.ray_cluster import RayLauncher, RayOptions
from scripts.jobs.settings import Settings
from scripts.jobs.slurm.options import SlurmOptions, read_minutes, read_others
from scripts.jobs.slurm.queue import check_cluster
from scripts.jobs.warm import WarmSlot, check_warm

# The flags that only some launchers know, by launcher.
FLAGS = {
    "local": ("--devices", "--jobs-per-device", "--warm"),
    "slurm": (
        *("--attach", "--detach", "--partition", "--time"),
        *("--gpus-per-node", "--cpus-per-task", "--slurm"),
    ),
    "ray": ("--attach", "--detach", "--gpus-per-node", "--cpus-per-task", "--ray-address"),
}
_ALL = tuple(dict.fromkeys(flag for flags in FLAGS.values() for flag in flags))
_HINTS = {"--devices": "; on a cluster, --gpus-per-node says how many GPUs a job gets"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where jobs run."""
    add = parser.add_argument_group("where jobs run").add_argument
    add("--launcher", choices=tuple(FLAGS), default="local", help="default: local")
    add(
        "--devices",
        "--gpus",
        nargs="+",
        default=["auto"],
        metavar="D",
        help="local: GPU numbers, cpu or mps: one job each at a time, 0+1 one job on two GPUs "
        "(torchrun), 2x4 one job on two machines with four each (srun); default: one job, where it "
        "likes",
    )
    add("--jobs-per-device", type=int, default=1, metavar="N", help="local; default: 1")
    add(
        "--warm",
        action="store_true",
        help="local: fork jobs from a process per device that has imported PyTorch once (Linux)",
    )
    add("--attach", action="store_true", help="go on with the jobs that this command submitted")
    add("--detach", action="store_true", help="submit the jobs and leave them")
    add("--partition", default="", metavar="NAME", help="slurm; default: the cluster's")
    add(
        "--time",
        default="4:00:00",
        metavar="T",
        help="slurm: limit for a job, which is requeued there and goes on; default: 4:00:00",
    )
    add("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of a job; default: none")
    add("--cpus-per-task", type=int, default=0, metavar="N", help="CPUs of a job")
    add(
        "--slurm",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further flags of sbatch, such as account=vision mem=16G",
    )
    add(
        "--ray-address",
        default="auto",
        metavar="HOST:PORT",
        help="ray: the cluster; default: the one that this machine is part of (RAY_ADDRESS)",
    )


def check_flags(
    parser: argparse.ArgumentParser, args: argparse.Namespace, argv: Sequence[str]
) -> None:
    """Refuse flags that the chosen launcher does not know, and values that make no sense.

    Raises:
        ValueError: With a line that names the flag.
    """
    foreign = [flag for flag in _ALL if flag not in FLAGS[args.launcher]]
    try:
        refuse_flags(parser, argv, foreign, f"with --launcher {args.launcher}")
    except ValueError as error:
        flag = str(error).split()[0]
        hint = _HINTS.get(flag, "") if args.launcher != "local" else ""
        raise ValueError(f"{error}{hint}.") from None
    if args.jobs_per_device < 1:
        raise ValueError(f"--jobs-per-device: {args.jobs_per_device} is below 1.")
    for flag in ("--gpus-per-node", "--cpus-per-task"):
        number = getattr(args, flag[2:].replace("-", "_"))
        if number < 0:
            raise ValueError(f"{flag}: {number} is below 0.")
    if args.attach and args.detach:
        raise ValueError("--attach waits for jobs, --detach leaves them; give one of the two.")


def read_local_devices(args: argparse.Namespace) -> list[Device]:
    """Read the devices of ``--launcher local``."""
    devices = parse_devices(split_words(args.devices), args.jobs_per_device)
    if args.warm:
        check_warm(devices)
    return devices


def read_slurm_options(args: argparse.Namespace) -> SlurmOptions:
    """Read the flags of ``--launcher slurm``."""
    return SlurmOptions(
        args.partition,
        read_minutes(args.time),
        args.gpus_per_node,
        args.cpus_per_task,
        read_others(args.slurm),
    )


def read_ray_options(args: argparse.Namespace) -> RayOptions:
    """Read the flags of ``--launcher ray``."""
    return RayOptions(args.ray_address, args.gpus_per_node, args.cpus_per_task)


def make_launcher(args: argparse.Namespace, settings: Settings) -> Launcher:
    """Return what runs the jobs.

    Raises:
        ValueError: A flag has a value that cannot be.
        OSError: What the launcher needs is not installed, or does not answer.
    """
    if args.launcher == "slurm":
        return _slurm(args, settings)
    if args.launcher == "ray":
        need("ray", "ray")
        return RayLauncher(settings.output, settings.repo, read_ray_options(args))
    slot = partial(WarmSlot, program=settings.train_command) if args.warm else Slot
    devices = read_local_devices(args)
    check_machines(devices)
    return LocalLauncher(
        devices, jobs_per_device=args.jobs_per_device, cwd=work_folder(settings.repo), slot=slot
    )


def _slurm(args: argparse.Namespace, settings: Settings) -> Launcher:
    need("submitit", "slurm")
    check_cluster(args.partition)
    from scripts.jobs.slurm.launcher import SlurmLauncher

    return SlurmLauncher(settings.output, settings.repo, read_slurm_options(args))


def need(package: str, launcher: str) -> None:
    """Check that a launcher's package is installed.

    Raises:
        OSError: It is not; the line names the command that installs it.
    """
    try:
        importlib.import_module(package)
    except ImportError:
        raise OSError(
            f"--launcher {launcher} needs {package}: pip install -r requirements-cluster.txt"
        ) from None
