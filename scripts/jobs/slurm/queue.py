"""Asks SLURM by its own commands: which partitions there are, what became of jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from dassl.names import check_availability

# States in which a job will still run, or is about to end.
_WAITS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")
_RUNS = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
_TIMEOUT = 60.0  # seconds; the commands themselves wait for a controller that is busy


@dataclass(frozen=True)
class Entry:
    """What SLURM says of a job.

    Attributes:
        state: Its word, such as PENDING.
        reason: Why it waits or has ended, such as Priority.
        exit_code: Of the batch script; None if SLURM does not tell.
    """

    state: str
    reason: str = ""
    exit_code: int | None = None

    @property
    def waits(self) -> bool:
        """Whether it will start, or start again."""
        return self.state in _WAITS

    @property
    def runs(self) -> bool:
        """Whether it is at work, or is just being stopped."""
        return self.state in _RUNS


def ask(*command: str) -> str:
    """Return what one of SLURM's commands prints.

    Raises:
        OSError: It cannot be run, or says that it failed; the message has its first line.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]}: no answer in {_TIMEOUT:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(said[-1])
    return done.stdout


def check_cluster(partition: str) -> None:
    """Check that SLURM is here, answers, and has the partition ("" takes its default).

    Raises:
        ValueError: There is no such partition.
        OSError: There is no SLURM here, or it does not answer.
    """
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        raise OSError(
            "--launcher slurm: this machine has no sbatch and squeue; run it on a login node of a "
            "SLURM cluster, or use --launcher local."
        )
    try:
        found = ask("sinfo", "--noheader", "--format=%R").split()
    except OSError as error:
        raise OSError(
            f"--launcher slurm: SLURM does not answer ({error}); see `sinfo` and `scontrol ping`."
        ) from None
    if partition:
        for name in partition.split(","):
            check_availability(name, dict.fromkeys(found), "--partition", " (sinfo)")


def entries(ids: Iterable[str]) -> dict[str, Entry]:
    """Return what SLURM knows of jobs, by id (``12`` or, of an array, ``12_3``).

    It forgets a job minutes after its end; then its accounting tells, on clusters that have one.

    Raises:
        OSError: SLURM does not answer.
    """
    wanted = set(ids)
    # All jobs of the user: a list of ids with one that SLURM has forgotten would be an error.
    shown = "JobArrayID:40|,State:20|,exit_code:10|,Reason:60"
    found = {}
    for line in ask(
        *("squeue", "--noheader", "--array", "--states=all"),
        *(f"--user={os.getuid()}", f"--Format={shown}"),
    ).splitlines():
        words = [word.strip() for word in line.split("|")]
        if len(words) == 4:
            status = _number(words[2])
            exit_code = None if status is None else os.waitstatus_to_exitcode(status)
            found[words[0]] = Entry(words[1], words[3], exit_code)
    missing = wanted - found.keys()
    if missing:
        found |= _accounted(missing)
    return {name: found[name] for name in wanted & found.keys()}


def _accounted(ids: Iterable[str]) -> dict[str, Entry]:
    """Return what SLURM's accounting tells of jobs; nothing where there is none."""
    form = ("--noheader", "--allocations", "--parsable2", "--format=JobID,State,ExitCode")
    try:
        lines = ask("sacct", *form, "--jobs", ",".join(sorted(ids))).splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, state, code = line.split("|")
        # "CANCELLED by 1000"
        found[name] = Entry(state.split()[0], "", _number(code.split(":")[0]))
    return found


def _number(word: str) -> int | None:
    return int(word) if re.fullmatch(r"\d+", word) else None


def stop_jobs(ids: Iterable[str], *, kill: bool = False) -> None:
    """Cancel jobs; ``kill`` leaves them no time to end.

    Raises:
        OSError: SLURM does not answer.
    """
    how = ("--signal=KILL", "--full") if kill else ()
    names = sorted(ids)
    if names:
        try:
            ask("scancel", *how, *names)
        except OSError as error:
            # Said of jobs that have ended meanwhile; not of a controller that is out of reach.
            if "Kill job error" not in str(error):
                raise


def cancelled(name: str) -> bool:
    """Tell, in a job that was asked to stop, whether somebody wants it gone.

    A job that SLURM still counts as running was only signalled, or has to make room for others:
    it may start again.
    """
    try:
        state = ask("squeue", "--noheader", "--array", "--format=%T", f"--jobs={name}").strip()
    except OSError:
        return True
    return state != "RUNNING"
