"""From a table's name to the job driver's command lines, and to the jobs that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.names import check_availability
from scripts import run
from scripts.jobs.job import Job
from scripts.jobs.plan import Planner
from scripts.jobs.pool import last_lines
from scripts.jobs.protocols import PROTOCOLS, REPO, SUITE, Protocol
from scripts.jobs.settings import read_settings
from scripts.papers.catalogue import PICTURES, SOURCE, Entry, Row

# Flags of run.py that the table itself decides.
DECIDED = ("--protocol", "--trainer", "--cfg", "--rows", "--source", "--targets", "--shots")
BACKBONE = "MODEL.BACKBONE.NAME"


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    datasets: tuple[str, ...] = ()  # empty: the table's own
    seeds: tuple[str, ...] = ("1", "2", "3")
    root: Path = REPO / "data"
    output: Path = REPO / "output"
    flags: tuple[str, ...] = ()  # further ones of run.py
    options: tuple[str, ...] = ()  # KEY VALUE, for every job
    repo: Path = REPO
    train_command: tuple[str, ...] | None = None  # tests have a stand-in

    @property
    def device(self) -> str:
        """The first of the devices, as a single run names it: where trained masks are drawn."""
        words = [*self.flags, "--devices", "auto"]
        first = words[words.index("--devices") + 1].partition("+")[0]
        return f"cuda:{first}" if first.isdecimal() else first

    @property
    def hooks(self) -> dict[str, Any]:
        """What tests replace."""
        return {"repo": self.repo, "train_command": self.train_command}


def chosen_datasets(entry: Entry, asked: Sequence[str]) -> list[str]:
    """Return a table's datasets that are asked for, in its order, a source in front.

    Raises:
        ValueError: A name is none of the table's, or the suite is mixed with real datasets.
    """
    if not asked:
        return entry.datasets()
    known = entry.available()
    for name in asked:
        check_availability(name, known, "--datasets", f" for {entry.name}")
    suite = [name for name in asked if name in SUITE]
    if suite and len(suite) < len(asked):
        raise ValueError(
            f"--datasets: {suite[0]} is a demonstration, which shares no table with real datasets; "
            "run it by itself"
        )
    if not entry.protocol.crosses:
        return [name for name in known if name in asked]
    source = SOURCE if suite else "imagenet"
    # The source alone stands for itself and all of its shifts.
    shifts = [name for name in entry.protocol.targets_of(source) if name in asked]
    shifts = shifts or entry.protocol.targets_of(source)
    return [*([source] if entry.protocol.train_stage else []), *shifts]


def commands(entry: Entry, datasets: Sequence[str], request: Request) -> list[list[str]]:
    """Return the words of the ``run.py`` commands that make a table, one for each protocol."""
    found = []
    for name in dict.fromkeys(row.protocol for row in entry.rows):
        rows = [row.run for row in entry.rows if row.run and row.protocol == name]
        words = ["--protocol", name, "--rows", *dict.fromkeys(rows)]
        words += _places(entry, PROTOCOLS[name], datasets)
        # A picture is of one trained mask.
        words += ["--seeds", *(request.seeds[:1] if entry.kind in PICTURES else request.seeds)]
        words += ["--root", str(request.root), "--output", str(request.output), *request.flags]
        found.append(words)
    return found


def _places(entry: Entry, protocol: Protocol, datasets: Sequence[str]) -> list[str]:
    """Flags for what a protocol trains on and tests."""
    if not protocol.crosses:
        return ["--datasets", *datasets]
    source = SOURCE if datasets[0] in SUITE else "imagenet"
    if entry.protocol is not protocol:  # a row of another protocol needs one example
        return ["--source", source, "--targets", protocol.targets_of(source)[0]]
    return ["--source", source, "--targets", *(name for name in datasets if name != source)]


def plan(words: Sequence[str], request: Request) -> list[Job]:
    """Return the jobs of a command; ValueError or SystemExit for flags that run.py refuses."""
    parser = run.build_parser()
    parser.prog = "paper.py"  # where the words come from
    args = parser.parse_args(list(words))
    options = list(request.options)
    return Planner(read_settings(args, options, request.repo, request.train_command)).jobs()


def start(words: Sequence[str], request: Request, *extra: str) -> int:
    """Hand a command to the job driver; return its exit status."""
    options = ["--", *request.options] if request.options else []
    return run.main([*words, *extra, *options], **request.hooks)


def without_data(datasets: Sequence[str], request: Request) -> dict[str, str]:
    """Return why datasets cannot be read, for those that cannot; only their layout is looked at."""
    # Its readers load PyTorch, which a dry run does without.
    from scripts.data_tools.check import check, read_target

    missing = {}
    for name in datasets:
        file = request.repo / "configs" / "datasets" / f"{name}.yaml"
        finding = check(read_target(file, request.root), depth="quick")
        if not finding.usable:
            missing[name] = f"{name} is not there: {finding.problem}"
    return missing


class Work:
    """All jobs behind a table, each looked at once: that reads the data's folders."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.undone = {job for job in jobs if job.to_do()}

    def done(self) -> list[Job]:
        """Return the finished jobs."""
        return [job for job in self.jobs if job not in self.undone]

    def of_row(self, row: Row) -> list[Job]:
        """Return the jobs whose results are a row's, without those that they start from."""
        stages = PROTOCOLS[row.protocol].stages
        return [
            job
            for job in self.jobs
            if (job.key.trainer, job.key.cfg) == (row.trainer, row.cfg) and job.key.stage in stages
        ]


def why_not(job: Job) -> str:
    """Say why a job has no result: the last line that it, or what it starts from, has printed."""
    first = job
    while first.parent is not None and first.parent.to_do():
        first = first.parent
    return (last_lines(first.log, 1) or [first.to_do()])[0].strip()
