#!/usr/bin/env python3
"""Check the project against public CLIP outputs, and set its methods beside published numbers.

    python scripts/real_check.py --root ../real --quick
    python scripts/real_check.py --root ../real --save real.md

The folder is not part of the project: files of features, cosines, split files and few-shot draws
that others have published, laid out as ``docs/real-data.md`` says. Three things are looked at:

- zero-shot accuracies, against what is known of the files (``scripts/real_data/expected.yaml``);
- published few-shot draws, against our own from the same split files;
- without --quick, methods on the features, trained by the ordinary jobs (16 shots), beside what
  papers print. Jobs that are done in --output are not run again.

Exit status: 0 if all is equal and all jobs are done, 1 if not, 2 for a wrong command line, 3 if the
data is not there.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import file_flag
from dassl.errors import plain_main
from dassl.names import check_availability
from dassl.utils.files import atomic_write
from scripts.jobs.protocols import read_integers, split_words, work_folder
from scripts.real_data.arrays import EXPECTED, read_expected
from scripts.real_data.draws import DRAWS, compare_draws
from scripts.real_data.methods import METHODS, Plan, plan_jobs, run_jobs, write_datasets
from scripts.real_data.table import draws_part, methods_part, zero_shot_part
from scripts.real_data.zero_shot import compare
from scripts.run import print_summary

ABSENT = 3  # exit status


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="real_check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", type=file_flag, required=True, metavar="DIR", help="folder of the public files")
    add("--quick", action="store_true", help="zero-shot and draws alone, some seconds")
    add("--save", type=file_flag, metavar="FILE", help="write the Markdown there too")
    add(
        "--output",
        type=file_flag,
        default=work_folder() / "output" / "real_check",
        help="folder of the jobs; default: output/real_check in the repository",
    )
    add("--methods", nargs="+", default=list(METHODS), metavar="NAME", help="default: all of these")
    add("--seeds", nargs="+", default=["1 2 3"], metavar="N", help="default: 1 2 3")
    add("--device", default="auto", help="auto, cpu, mps or a GPU's number")
    add("--expected", type=file_flag, default=EXPECTED, metavar="FILE", help=f"default: {EXPECTED}")
    return parser


def check_draws(root: Path) -> tuple[str, bool]:
    """Compare the published draws; return what to print, and whether all are equal."""
    try:
        draws = list(compare_draws(root))
    except (OSError, ValueError) as error:
        return draws_part([], str(error)), False
    return draws_part(draws), not any(draw.problem for draw in draws)


def run_methods(root: Path, plan: Plan, published: dict[str, Any]) -> tuple[str, int]:
    """Run the methods; return their tables and the exit status."""
    problems = write_datasets(root, plan)
    for name, problem in problems.items():
        print(f"{name} is left out: {problem}", file=sys.stderr)
    plan = plan.without(problems)
    outcomes, signals = run_jobs(plan_jobs(plan), plan.device)
    print_summary(outcomes)
    if signals:
        return "", 128 + signal.Signals(signals[0])
    done = all(outcome.status in ("ran", "done") for outcome in outcomes)
    return methods_part(plan, published), int(bool(problems) or not done)


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; return the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        methods = [
            check_availability(name, METHODS, "--methods") for name in split_words(args.methods)
        ]
        seeds = read_integers("--seeds", args.seeds, least=0)
        expected = read_expected(args.expected)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    files = [DRAWS, *(row["file"] for row in expected["zero_shot"])]
    if not any((args.root / file).is_file() for file in files):
        print(
            f"--root: {args.root} has none of the files that are checked ({files[1]}, ...): "
            "nothing is checked. They are public, docs/real-data.md says where",
            file=sys.stderr,
        )
        return ABSENT
    zero_shot = list(compare(args.root, expected["zero_shot"]))
    draws, equal = check_draws(args.root)
    parts = [zero_shot_part(zero_shot), draws]
    status = int(not (equal and all(one.equal for one in zero_shot)))
    print("\n\n".join(parts), flush=True)
    if not args.quick:
        plan = Plan(expected["runs"], methods, seeds, args.output.absolute(), args.device)
        text, failed = run_methods(args.root, plan, expected["published"])
        status = failed if failed > 1 else max(status, failed)
        parts.append(text)
        print(f"\n{text}")
    if args.save:
        with atomic_write(args.save) as file:
            file.write("\n\n".join(part for part in parts if part) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
