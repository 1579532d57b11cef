#!/usr/bin/env python3
"""Run a whole protocol: expand it into jobs, run what is not done, print the table.

    python scripts/run.py --protocol base2novel --trainer LightRA --datasets dtd eurosat
    python scripts/run.py --protocol few_shot --datasets shapes --shots 1 4 16 --devices cpu
    python scripts/run.py --protocol cross_dataset --devices 0 1 --seeds 1 -- OPTIM.LR 0.002
    python scripts/run.py --protocol eft --cfg eft table4_mlp --datasets shapes
    python scripts/run.py --protocol fft --trainer FT LPFT RAdaFT --source shapes
    python scripts/run.py --protocol base2novel --launcher slurm --partition gpu --gpus-per-node 1

``base2novel`` trains on the first half of the classes and evaluates that model on the second half.
``few_shot`` trains and tests on all classes with 1, 2, 4, 8 and 16 images each. ``cross_dataset``
trains on one source and evaluates on other datasets and on the source's shifts. ``eft``
is ``base2novel`` for RAda's efficient fine-tuning. ``fft`` is full fine-tuning: training on all
images of one source, evaluation on its shifts; a first stage that a method starts from runs first.
``ttt`` evaluates test-time training on a source's shifts. Several trainers, or several of their
config files, share a table.

Every job is one ``train.py`` process with a directory of its own under ``--output``; what it prints
goes to ``job.log`` there. With ``--warm``, jobs are forked from a process that has imported all
they need (``scripts/jobs/warm.py``). Finished jobs are not repeated (``scripts/jobs/job.py`` says
what counts as finished), unfinished ones resume, a failed one does not stop the others.
``--launcher`` gives the jobs to a cluster (``docs/cluster.md``). Exit status: 0 when all is done
or, with ``--detach``, submitted; 1 when a job failed; 2 for bad input; 130 or 143 when stopped by
Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import file_flag
from dassl.errors import plain_main
from scripts import report
from scripts.jobs.choice import (
    add_flags,
    check_flags,
    make_launcher,
    read_local_devices,
    read_ray_options,
    read_slurm_options,
)
from scripts.jobs.job import Job
from scripts.jobs.launchers import Ended, Launcher
from scripts.jobs.plan import Planner
from scripts.jobs.pool import JobPool, Outcome, last_lines
from scripts.jobs.protocols import PROTOCOLS, REPO
from scripts.jobs.ray_cluster import task_lines
from scripts.jobs.settings import CROSSING, Settings, read_settings
from scripts.jobs.slurm.arrays import make_arrays
from scripts.jobs.slurm.options import submission_lines


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of everything before ``--``."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Run a protocol's jobs and print its table.",
        epilog="What follows -- is passed to every job as KEY VALUE config options.",
        allow_abbrev=False,
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    add = parser.add_argument
    add("--protocol", required=True, help=" | ".join(PROTOCOLS))
    add("--trainer", help="default: the protocol's, such as LightRA", **several)
    add(
        "--cfg",
        nargs="+",
        metavar="STEM",
        help="configs/trainers/<Trainer>/STEM.yaml, a row each; default: the protocol's name",
    )
    add(
        "--rows",
        nargs="+",
        metavar="TRAINER/STEM",
        help="instead of --trainer and --cfg: configs/trainers/<TRAINER>/<STEM>.yaml, a row each",
    )
    add("--datasets", help="default: every real dataset with a config file", **several)
    add("--source", metavar="NAME", help=f"{CROSSING}: dataset to train on; default: imagenet")
    add("--targets", help=f"{CROSSING}: datasets to evaluate on; default: by source", **several)
    add("--shots", nargs="+", metavar="K", help="images per class, or all; default: by protocol")
    add("--seeds", nargs="+", default=["1 2 3"], metavar="N", help="default: 1 2 3")
    add("--root", type=file_flag, help="data directory; default: data in the repository")
    add("--output", type=file_flag, help="default: output in the repository")
    add("--track", nargs="+", metavar="NAME", help="trackers of every job; see train.py --help")
    add("--dry-run", action="store_true", help="print the commands and touch nothing")
    add("--no-report", action="store_true", help="print no table at the end")
    add_flags(parser)
    return parser


def print_commands(jobs: Sequence[Job], args: argparse.Namespace) -> None:
    """Print the command of every job that is not done, ready to be pasted into a shell."""
    to_do = [job for job in jobs if job.to_do()]
    how = ""
    if args.launcher == "slurm":
        arrays = make_arrays(to_do)
        for line in submission_lines(arrays, read_slurm_options(args)):
            print(line)
        how = f", in {len(arrays)} submissions to SLURM"
    elif args.launcher == "ray":
        for line in task_lines(to_do, read_ray_options(args)):
            print(line)
        how = ", as tasks of Ray"
    else:
        devices = read_local_devices(args)
        # Of several devices, a job gets the first that becomes free: no variable can name it yet.
        device = devices[0] if len(devices) == 1 else replace(devices[0], environment={})
        for job in to_do:
            print(device.shell_line(job))
        if args.warm:
            how = ", warm: forked from a process that has imported PyTorch"
    print(f"{len(to_do)} of {len(jobs)} jobs to run{how}", file=sys.stderr)


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Say on stderr what failed and why, with the end of each log."""
    count = {
        status: sum(outcome.status == status for outcome in outcomes)
        for status in ("ran", "done", "failed", "skipped", "interrupted")
    }
    words = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    print(f"{len(outcomes)} jobs: {words.replace('done', 'done before')}", file=sys.stderr)
    for outcome in outcomes:
        if outcome.status == "failed":
            print(f"\nFAILED {outcome.job}: {outcome.reason}", file=sys.stderr)
            for line in last_lines(outcome.job.log):
                print(f"    {line}", file=sys.stderr)
            print(f"  whole log: {outcome.job.log}", file=sys.stderr)
    for outcome in outcomes:
        if outcome.status == "skipped":
            print(f"SKIPPED {outcome.job}: {outcome.reason}", file=sys.stderr)


def print_report(settings: Settings) -> None:
    """Print the protocol's table over the runs this command line stands for."""
    selection = report.Selection(
        protocol=settings.protocol.name,
        output=settings.output,
        trainers=settings.trainers,
        datasets=(*settings.datasets, *settings.targets),
        cfg=settings.cfgs,
        rows=settings.rows,
        shots=settings.shots,
        seeds=settings.seeds,
        must_exist=False,  # failed jobs leave rows out, which is no error of the user's
    )
    try:
        print(report.build(selection).render("text"))
    except LookupError as error:
        print(error, file=sys.stderr)


@plain_main
def main(
    argv: Sequence[str] | None = None,
    *,
    repo: Path = REPO,
    train_command: Sequence[str] | None = None,
) -> int:
    """Run the driver; return the exit status. Tests replace the repository and ``train.py``."""
    words = list(sys.argv[1:] if argv is None else argv)
    # argparse would append what follows -- to a preceding flag that takes several values.
    cut = words.index("--") if "--" in words else len(words)
    parser = build_parser()
    args = parser.parse_args(words[:cut])
    try:
        if args.dry_run and args.no_report:
            raise ValueError("--no-report does nothing beside --dry-run; leave it out.")
        check_flags(parser, args, words[:cut])
        settings = read_settings(args, words[cut + 1 :], repo, train_command)
        jobs = Planner(settings).jobs()
        if args.dry_run:
            print_commands(jobs, args)
            return 0
        launcher = make_launcher(args, settings)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    return run_jobs(jobs, launcher, args, settings)


def run_jobs(
    jobs: Sequence[Job], launcher: Launcher, args: argparse.Namespace, settings: Settings
) -> int:
    """Have the jobs run, print what became of them and the table; return the exit status."""
    before = launcher.adopt(jobs)
    if not args.attach:
        refuse_twice(before, launcher)
        before = []
    pool = JobPool(jobs, launcher, submitted=before)
    if args.detach:
        print(f"{pool.submit_all()} jobs submitted; --attach waits for them.", file=sys.stderr)
        return 0
    outcomes = pool.run()
    print_summary(outcomes)
    if pool.signals:
        again = "--attach goes back to them" if pool.left else "the same command goes on from here"
        print(f"{'Left' if pool.left else 'Stopped'}; {again}.", file=sys.stderr)
        return 128 + signal.Signals(pool.signals[0])
    if not args.no_report:
        print_report(settings)
    return 1 if any(outcome.status in ("failed", "skipped") for outcome in outcomes) else 0


def refuse_twice(before: Sequence[Job], launcher: Launcher) -> None:
    """Refuse to submit jobs that an earlier driver has submitted and that have not ended."""
    going_on = [job for job in before if not isinstance(launcher.state(job), Ended)]
    if going_on:
        raise ValueError(
            f"{len(going_on)} of these jobs were submitted before and have not ended, such as "
            f"{going_on[0]}; --attach goes on with them (and Ctrl-C then cancels them)."
        )


if __name__ == "__main__":
    sys.exit(main())
