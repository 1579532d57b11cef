"""What the sub-commands of bench.py share: flags, processes that measure, tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

import clip
from dassl.names import check_availability
from scripts.benchmarks.tools import RANDOM_VIT, backbone_name, write_pictures
from scripts.jobs.protocols import REPO

Columns = dict[str, tuple[str, str]]  # key -> (heading, format)


def make_parser(command: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of a sub-command, whose help is its module's docstring."""
    return argparse.ArgumentParser(
        prog=f"bench.py {command}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def require_least(
    parser: argparse.ArgumentParser, args: argparse.Namespace, least: Mapping[str, int]
) -> None:
    """End with a message if a flag, or one of its numbers, is below its least value."""
    for name, bound in least.items():
        given = getattr(args, name)
        number = min(given) if isinstance(given, list) else given
        if number < bound:
            parser.error(f"--{name} must be at least {bound}, got {number}")


def answer(measure: Callable[[], Any]) -> int:
    """Print a measurement as JSON, the answer of a ``--worker`` process."""
    with contextlib.redirect_stdout(sys.stderr):  # what the engine prints
        found = measure()
    print(json.dumps(found))
    return 0


def ask_process(*words: object, stderr: int | None = None) -> Any:
    """Return the answer of ``bench.py`` with these words, in a process of its own."""
    command = [sys.executable, str(REPO / "scripts" / "bench.py"), *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False)
    done.check_returncode()
    # Libraries may print before it.
    return json.loads(done.stdout.splitlines()[-1])


def measure_apart(command: str, task: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return the result of a sub-command's ``measure(**task)`` in a process of its own.

    If it fails, the task with the reason as ``error``: one method must not stop the others. Each is
    also printed on standard error at once, since the table comes after the last one: a command that
    takes hours shows that it works, and loses nothing if it is interrupted.
    """
    words = (command, "--worker", json.dumps(task), "--threads", threads)
    try:
        found = ask_process(*words, stderr=subprocess.PIPE)
    except subprocess.CalledProcessError as failed:
        reason = [line for line in failed.stderr.splitlines() if line.strip()][-1:]
        error = reason[0] if reason else f"ended with status {failed.returncode}"
        own = {"method": task["method"], "input": task["kind"], "batch": task["batch"]}
        found = {**own, "error": error}
    tqdm.write(json.dumps(found), file=sys.stderr)
    return found


def method_parser(command: str, doc: str | None, methods: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a sub-command that prints one row per method, without ``--batch``."""
    parser = make_parser(command, doc)
    add = parser.add_argument
    add(
        "--backbone",
        default=RANDOM_VIT,
        help=f"default {RANDOM_VIT}: that architecture of open_clip with random weights; or any "
        "name or file that train.py takes",
    )
    add("--classes", type=int, default=100, metavar="K")
    add("--trainers", nargs="+", default=methods, metavar="NAME", help="default: all of these")
    add("--steps", type=int, default=3, help="timed steps, after one warm-up")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--json", action="store_true", help="print the numbers as JSON")
    # What a process of its own is asked for; the commands start it, nobody types it.
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


def check_methods(names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse unknown methods; what follows a colon is one of the method's files."""
    for name in names:
        check_availability(name.partition(":")[0], known)


def measure_methods(
    command: str,
    args: argparse.Namespace,
    tasks: Callable[[Path, str], Sequence[dict[str, Any]]],
    prepare: Callable[[Path, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure tasks one after the other, on generated pictures.

    Args:
        command: Sub-command whose ``measure`` takes them.
        args: Of `method_parser`.
        tasks: Returns, for a directory of pictures and a backbone, what to measure: each a method,
            the kind of its input and its batch.
        prepare: Writes, for the same two, what several processes need.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        backbone = backbone_name(args.backbone, root)
        wanted = tasks(root, backbone)
        each = -(-max(task["batch"] for task in wanted) // args.classes)  # enough for a batch
        write_pictures(root, args.classes, each, each, clip.input_spec(backbone).size)
        if prepare:
            with contextlib.redirect_stdout(sys.stderr):  # what the engine prints
                prepare(root, backbone)
        common = {"root": temporary, "backbone": backbone, "device": args.device}
        common["steps"] = args.steps
        return [
            measure_apart(command, {**task, **common}, args.threads)
            for task in tqdm(wanted, disable=None)
        ]


def print_methods(results: Sequence[dict[str, Any]], columns: Columns, as_json: bool) -> int:
    """Print what was measured; return 1 if a method could not be."""
    print(json.dumps(results, indent=2) if as_json else render(results, columns))
    return int(any("error" in one for one in results))


def render(found: Sequence[dict[str, Any]], columns: Columns) -> str:
    """Return the table of results by column, and below it why a method has none."""
    forms = [(key, form) for key, (_, form) in columns.items()]
    rows = [
        ["-" if one.get(key) is None else format(one[key], form) for key, form in forms]
        for one in found
    ]
    texts = ("method", "input", "precision")
    align = ["left" if key in texts else "right" for key in columns]
    heads = [heading for heading, _ in columns.values()]
    table = tabulate(rows, heads, colalign=align, disable_numparse=True)
    errors = [
        f"{one['method']} ({one['input']}, batch {one['batch']}): {one['error']}"
        for one in found
        if "error" in one
    ]
    return "\n".join([table, *errors])
