#!/usr/bin/env python3
"""Make a paper's table or figure: run what is missing, print ours beside the paper's numbers.

    python scripts/paper.py table2 --datasets dtd eurosat --root /path/to/data
    python scripts/paper.py lightra --devices 0 1 2 3 --root /path/to/data
    python scripts/paper.py figure6 --datasets shapes --seeds 1 --devices cpu
    python scripts/paper.py table4 --dry-run

Names are table1 to table10 and figure3 to figure6 of RAda (arXiv:2507.15480), and lightra
(doi:10.1109/TMM.2026.3676654). Jobs are those of ``scripts/run.py``, whose other flags, such as
--jobs-per-device, are passed on: finished ones are not repeated, unfinished ones resume. Every cell
is ours / the paper's / the difference; footnotes say what is missing and why, what is a misprint
and what the paper's authors have not released. Written as Markdown, LaTeX and PNG (figures: PNG and
PDF) to <output>/papers/<name>/. On the bundled suite (--datasets shapes) it is a demonstration,
without the paper's numbers. docs/papers.md has more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import file_flag
from dassl.errors import plain_main
from scripts.jobs.protocols import REPO, split_words, work_folder
from scripts.papers.catalogue import Entry, find_entry, read_catalogue
from scripts.papers.making import make
from scripts.papers.runs import (
    BACKBONE,
    DECIDED,
    Request,
    chosen_datasets,
    commands,
    plan,
    start,
    without_data,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of everything before ``--`` that run.py does not get unread."""
    parser = argparse.ArgumentParser(
        prog="paper.py",
        description=__doc__,
        epilog="Other flags are scripts/run.py's. What follows -- is passed to every job as KEY "
        "VALUE config options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", help=" | ".join(read_catalogue()))
    add("--datasets", nargs="+", default=[], metavar="NAME", help="default: all of the table's")
    add("--seeds", nargs="+", default=["1 2 3"], metavar="N", help="default: 1 2 3")
    add("--backbone", metavar="NAME", help="for all jobs; its numbers compare with no paper's")
    add("--devices", "--gpus", nargs="+", metavar="D", help="as of run.py, such as 0 1, or cpu")
    add("--root", type=file_flag, help="data directory; default: data in the repository")
    add("--output", type=file_flag, help="default: output in the repository")
    add("--dry-run", action="store_true", help="print the commands and touch nothing")
    add("--report-only", action="store_true", help="run nothing; print from what is finished")
    return parser


def read_request(
    words: Sequence[str], repo: Path, train_command: Sequence[str] | None
) -> tuple[argparse.Namespace, Entry, Request]:
    """Check the command line; errors name flag, value and what is allowed."""
    cut = words.index("--") if "--" in words else len(words)
    args, flags = build_parser().parse_known_args(words[:cut])
    entry = find_entry(args.name)
    for flag in (*DECIDED, "--no-report"):
        if flag in (word.partition("=")[0] for word in flags):
            raise ValueError(f"{flag} is decided by {entry.name}; leave it out")
    if args.dry_run and args.report_only:
        raise ValueError("--dry-run and --report-only: both run nothing; give one of them")
    options = list(words[cut + 1 :])
    if args.backbone:
        if entry.backbones:
            raise ValueError(f"--backbone is what the rows of {entry.name} differ in; leave it out")
        options += [BACKBONE, args.backbone]
    if args.devices:
        flags += ["--devices", *split_words(args.devices)]
    request = Request(
        datasets=tuple(split_words(args.datasets)),
        seeds=tuple(split_words(args.seeds)),
        root=(args.root or work_folder(repo) / "data").absolute(),
        output=(args.output or work_folder(repo) / "output").absolute(),
        flags=tuple(flags),
        options=tuple(options),
        repo=repo,
        train_command=tuple(train_command) if train_command else None,
    )
    return args, entry, request


def usable(
    entry: Entry, datasets: Sequence[str], missing: Mapping[str, str], request: Request
) -> list[str]:
    """Return the datasets that are there; FileNotFoundError if nothing can be run on them."""
    present = [name for name in datasets if name not in missing]
    sourceless = entry.protocol.crosses and entry.protocol.train_stage and datasets[0] in missing
    if present and not sourceless:
        return present
    where = f"--root {request.root}"
    what = f"{datasets[0]}, which it trains on, is not" if sourceless else "none of its datasets is"
    raise FileNotFoundError(
        f"{entry.name}: {what} under {where} ({', '.join(missing)}). Fetch it (python "
        f"scripts/data.py fetch {next(iter(missing))} {where}), or give --datasets shapes"
    )


@plain_main
def main(
    argv: Sequence[str] | None = None,
    *,
    repo: Path = REPO,
    train_command: Sequence[str] | None = None,
) -> int:
    """Run the command line; return 0 when every job of the table is done.

    Tests replace the repository and ``train.py``, as those of ``run.py`` do.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args, entry, request = read_request(words, repo, train_command)
        datasets = chosen_datasets(entry, request.datasets)
        for words in commands(entry, datasets, request):
            plan(words, request)  # refuses bad flags before anything runs
    except (ValueError, FileNotFoundError) as error:
        build_parser().error(str(error))
    if args.dry_run:
        return max(
            start(words, request, "--dry-run") for words in commands(entry, datasets, request)
        )
    missing = without_data(datasets, request)
    present = usable(entry, datasets, missing, request)
    status = 0
    wanted = commands(entry, present, request)
    for words in [] if args.report_only else wanted:
        status = max(status, start(words, request, "--no-report"))
        if status > 128:  # stopped by a signal
            return status
    jobs = [job for words in wanted for job in plan(words, request)]
    for line in make(entry, datasets, missing, jobs, request):
        print(line)
    return status


if __name__ == "__main__":
    sys.exit(main())
