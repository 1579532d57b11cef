#!/usr/bin/env python3
"""Say which datasets are there, whole and readable, and get those that can be downloaded.

    python scripts/data.py check                              # all of them
    python scripts/data.py check --protocol cross_dataset     # what run.py would need
    python scripts/data.py check --datasets dtd eurosat --full --json
    python scripts/data.py check --dataset-config-file configs/datasets/birds.yaml
    python scripts/data.py list
    python scripts/data.py fetch dtd eurosat --root data

``check`` reads each dataset with the readers of a run and counts classes and images; ``--quick``
only looks for directories and split files, ``--full`` also decodes every image. Datasets that a
protocol needs, or that are named, are required. Where neither is given, all are listed and none is
required, but one that is there must be whole.

``fetch`` downloads what is missing, resumes what was interrupted, and says what to do where a
licence or a login forbids. Exit status: 0 when every required dataset is usable, 1 when not, 2 for
bad input, 130 or 143 when stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import file_flag
from dassl.errors import plain_main
from dassl.names import check_availability
from dassl.utils.logger import escape_unprintable
from datasets.downloads import Download, download_of
from datasets.row import DatasetRow
from datasets.rows import DOWNLOADS, ROWS
from scripts.data_tools import check as data_check
from scripts.data_tools import output as data_output
from scripts.data_tools.check import MISSING, Finding, Target, check, read_target
from scripts.data_tools.fetch import Order, alone, fetch, free_space, require_space
from scripts.data_tools.http import LocalError, Policy
from scripts.data_tools.output import format_size
from scripts.jobs.protocols import PROTOCOLS, REPO, dataset_rank, split_words
from scripts.jobs.settings import choose_datasets, config_stems
from scripts.scrub import say, scrub

PATIENT = Policy()


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="data.py",
        description="Check, list and fetch datasets.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(__doc__.splitlines()[2:]),
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    checks = commands.add_parser("check", help="is the data there and whole?", allow_abbrev=False)
    checks.add_argument("--datasets", help="of configs/datasets", **several)
    checks.add_argument(
        "--dataset-config-file",
        nargs="+",
        type=file_flag,
        default=[],
        metavar="FILE",
        help="YAML of data of your own that lies elsewhere",
    )
    depth = checks.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="only directories and split files")
    depth.add_argument("--full", action="store_true", help="decode every image")
    checks.add_argument(
        "--workers", type=int, metavar="N", help="--full: processes; default: one per processor"
    )
    fetches = commands.add_parser("fetch", help="download what is missing", allow_abbrev=False)
    fetches.add_argument("names", nargs="*", metavar="NAME", help="of configs/datasets")
    fetches.add_argument("--yes", action="store_true", help="do not ask before downloading")
    fetches.add_argument("--keep", action="store_true", help="keep archives after unpacking")
    lists = commands.add_parser("list", help="all datasets and where they come from")
    for command in (checks, fetches):
        command.add_argument("--protocol", help=" | ".join(PROTOCOLS))
        command.add_argument("--root", type=file_flag, help="data directory; default: data")
    for command in (checks, lists):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser


def protocol_datasets(protocol: str, names: list[str], existing: list[str]) -> list[str]:
    """Return what ``run.py --protocol P --datasets ...`` would read.

    Raises:
        ValueError: An unknown name, or several sources of a transfer.
    """
    check_availability(protocol, PROTOCOLS, "--protocol")
    flags = argparse.Namespace(protocol=protocol, datasets=names, source=None, targets=None)
    sources, targets = choose_datasets(flags, existing)
    return list(dict.fromkeys([*sources, *targets]))


def find_config(flag: str, name: str, existing: list[str]) -> str:
    """Return the config of a dataset that is named by config or class: EuroSAT is eurosat.

    Raises:
        ValueError: There is none; the message has the nearest.
    """
    by_class = {row.name: row.config for row in ROWS}
    return check_availability(by_class.get(name, name), existing, flag, " (configs/datasets)")


def choose_targets(args: argparse.Namespace, configs: Path) -> tuple[list[Target], set[str]]:
    """Return the datasets to check, and the configs of those that are required.

    Raises:
        FileNotFoundError: A config file or the root is missing.
        ValueError: An unknown name, or a number of workers that cannot be.
    """
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers: {args.workers} is below 0.")
    existing = config_stems(configs)
    if args.root is not None and not args.root.is_dir():
        raise FileNotFoundError(f"--root: no directory {args.root}")
    root = data_root(args)
    names = [find_config("--datasets", name, existing) for name in split_words(args.datasets)]
    if args.protocol:
        names = protocol_datasets(args.protocol, names, existing)
    everything = not names and not args.dataset_config_file
    stems = existing if everything else names
    targets = [read_target(configs / f"{stem}.yaml", root) for stem in stems]
    if everything:
        targets = [target for target in targets if not target.is_template]
    targets += [read_target(file, root) for file in args.dataset_config_file]
    required = set() if everything else {target.config for target in targets}
    return sorted(targets, key=lambda target: dataset_rank(target.config)), required


def data_root(args: argparse.Namespace) -> Path:
    """The data directory, absolute."""
    return (args.root or REPO / "data").absolute()


def satisfied(findings: Sequence[Finding], required: set[str]) -> bool:
    """Whether all that is required is usable, and nothing that is there is broken."""
    return all(
        finding.usable or (finding.status == MISSING and finding.target.config not in required)
        for finding in findings
    )


def run_check(args: argparse.Namespace, targets: Sequence[Target], required: set[str]) -> int:
    """Check datasets and print what was found; return the exit status."""
    depth = "quick" if args.quick else "full" if args.full else "normal"
    workers = data_check.default_workers() if args.workers is None else args.workers
    findings = []
    with tqdm(targets, desc="checking", unit=" sets", disable=None, leave=False) as bar:
        for target in bar:
            bar.set_postfix_str(target.config)
            findings.append(check(target, depth, workers))
    ok = satisfied(findings, required)
    root = data_root(args)
    if args.json:
        content = data_output.check_json(findings, required, root, free_space(root), ok)
        print(json.dumps(content, indent=2))
    else:
        for line in data_output.check_text(findings, required, root, free_space(root)).split("\n"):
            say(line)
    return 0 if ok else 1


def run_list(args: argparse.Namespace, table: Sequence[Download]) -> int:
    """Print all datasets and where they come from; return the exit status."""
    rows = sorted(ROWS, key=lambda row: dataset_rank(row.config))
    if args.json:
        print(json.dumps(data_output.list_json(rows, table), indent=2))
    else:
        print(data_output.list_table(rows, table))
    return 0


def choose_orders(
    args: argparse.Namespace, configs: Path, table: Sequence[Download]
) -> list[tuple[DatasetRow, Download | None]]:
    """Return the datasets to fetch, with what is known about getting them.

    Raises:
        ValueError: An unknown name, data of the user's own, or nothing is named.
    """
    existing = config_stems(configs)
    names = [find_config("fetch", name, existing) for name in split_words(args.names)]
    if args.protocol:
        names = protocol_datasets(args.protocol, names, existing)
    if not names:
        raise ValueError("fetch: name datasets, or give --protocol; `data.py list` has the names.")
    rows = {row.config: row for row in ROWS}
    own = [name for name in names if name not in rows]
    if own:
        raise ValueError(f"fetch: {', '.join(own)}: data of your own, which nobody else has.")
    return [(rows[name], download_of(name, table)) for name in names]


def run_fetch(
    args: argparse.Namespace, configs: Path, table: Sequence[Download], policy: Policy
) -> int:
    """Fetch what can be fetched, then check it; return the exit status.

    Raises:
        ValueError: Bad input.
        LocalError: The disk cannot take it.
    """
    chosen = choose_orders(args, configs, table)
    root = data_root(args)
    orders = []
    for row, download in chosen:
        if row.prepare is not None:
            print(f"{row.config}: nothing to fetch; it is drawn on first use")
        elif download is None or not download.automatic:
            if not check(read_target(configs / f"{row.config}.yaml", root)).usable:
                print_instructions(row, download)
        elif Order(row, download, root).missing():
            orders.append(Order(row, download, root, keep=args.keep))
        else:
            print(f"{row.config}: everything is in place already")
    if orders:
        print_plan(orders)
        if not args.yes and not confirmed():
            print("Nothing was downloaded.")
            return 1
        fetch_all(orders, root, policy)
    print()
    targets = [read_target(configs / f"{row.config}.yaml", root) for row, _ in chosen]
    flags = argparse.Namespace(quick=False, full=False, workers=None, json=False, root=args.root)
    return run_check(flags, targets, {target.config for target in targets})


def fetch_all(orders: Sequence[Order], root: Path, policy: Policy) -> None:
    """Fetch datasets one after the other; one that fails does not stop the others.

    Raises:
        LocalError: The disk cannot take them.
    """
    with alone(root):
        require_space(root, sum(file.size for o in orders for group in o.missing()
                                for file in group[:1]))  # fmt: skip
        for order in orders:
            print(f"\n{order.row.config} -> {order.directory}")
            failures = fetch(order, policy)
            for failure in failures:
                say(f"  FAILED {failure}", file=sys.stderr)
            if any(not failure.startswith("optional") for failure in failures):
                print_instructions(order.row, order.download)


def print_plan(orders: Sequence[Order]) -> None:
    """Say what would be downloaded, from where and under which licence."""
    for order in orders:
        print(f"{order.row.config} (licence: {order.download.licence}; {order.download.page})")
        for group in order.missing():
            for number, file in enumerate(group):
                size = f", about {format_size(file.size)}" if file.size else ""
                checksum = "" if file.md5 else ", no known checksum"
                print(f"  {'or ' if number else ''}{file.name}{size}{checksum}")
                for address in file.addresses:
                    print(f"    {address.url}{'' if address.listed_by else ' (unverified)'}")


def print_instructions(row: DatasetRow, download: Download | None) -> None:
    """Say how a person gets what a program cannot."""
    print(f"{row.config}: to be had by hand.")
    if download is None:
        print(f"  {row.source}")
        return
    print(f"  Licence: {download.licence}. Page: {download.page}")
    for file in download.files:
        if not file.addresses:
            size = f", about {format_size(file.size)}" if file.size else ""
            print(f"  {file.name}{size}, MD5 {file.md5}")
    for line in (download.by_hand or row.source).splitlines():
        print(f"  {line}")
    print("  The layout is in DATASETS.md.")


def confirmed() -> bool:
    """Ask whether to go on.

    Raises:
        ValueError: Nobody is there to answer.
    """
    if not sys.stdin.isatty():
        raise ValueError("fetch: give --yes where there is no terminal to ask on.")
    return input("Download this? [y/N] ").strip().lower() in ("y", "yes")


@plain_main
def main(
    argv: Sequence[str] | None = None,
    *,
    configs: Path = REPO / "configs" / "datasets",
    table: Sequence[Download] = DOWNLOADS,
    policy: Policy = PATIENT,
) -> int:
    """Run the command line.

    Args:
        argv: Arguments; None takes the process's.
        configs: Directory of the datasets' config files.
        table: Where datasets can be had.
        policy: How stubborn downloads are.

    Returns:
        Exit status (module docstring).
    """
    parser = build_parser()
    escape_unprintable()
    args = parser.parse_args(argv)
    stopped: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop) if args.command == "fetch" else None
    try:
        if args.command == "list":
            return run_list(args, table)
        if args.command == "fetch":
            return run_fetch(args, configs, table, policy)
        targets = choose_targets(args, configs)
        if args.workers is not None and not args.full:
            raise ValueError(f"--workers {args.workers} does nothing without --full; leave it out.")
        return run_check(args, *targets)
    except (ValueError, FileNotFoundError) as error:
        parser.error(scrub(str(error)))
    except LocalError as error:
        say(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        on = "; the same command goes on from here" if args.command == "fetch" else ""
        print(f"\nStopped{on}.", file=sys.stderr)
        return 128 + (stopped or [signal.SIGINT])[0]
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
