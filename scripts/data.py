#!/usr/bin/env python3
"""Check which datasets are there, complete and readable; download those that may be downloaded.

    python scripts/data.py check                              # all datasets
    python scripts/data.py check --protocol cross_dataset     # those that run.py would need
    python scripts/data.py check --datasets dtd eurosat --full --json
    python scripts/data.py check --dataset-config-file configs/datasets/birds.yaml
    python scripts/data.py list
    python scripts/data.py fetch dtd eurosat --root data

``check`` reads each dataset with the readers of a run and counts classes and images; ``--quick``
only looks for directories and split files, ``--full`` also decodes every image. Datasets that are
named, or that a protocol needs, are required. With neither, all are listed and none is required,
but one that is there must be complete.

``fetch`` downloads what is missing, resumes what was interrupted, and gives instructions where a
licence or a login forbids a download. Exit status: 0 if every required dataset is usable, 1 if not,
2 for bad input, 130 or 143 if stopped by Ctrl-C or SIGTERM.
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
from dassl.errors import INTERRUPTED, plain_main
from dassl.names import check_availability
from dassl.utils.logger import escape_unprintable
from datasets.downloads import Download, download_of
from datasets.row import DatasetRow
from datasets.rows import DOWNLOADS, ROWS
from scripts.data_tools import check as data_check
from scripts.data_tools import output as data_output
from scripts.data_tools.check import MISSING, Finding, Target, check, read_target
from scripts.data_tools.fetch import Order, alone, fetch, free_space, require_space
from scripts.data_tools.http import Policy
from scripts.jobs.protocols import PROTOCOLS, REPO, dataset_rank, split_words, work_folder
from scripts.jobs.settings import choose_datasets, config_stems
from scripts.remote.scrub import say, scrub

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
    checks = commands.add_parser("check", help="is the data there and whole?", allow_abbrev=False)
    checks.add_argument("--datasets", nargs="+", metavar="NAME", help="of configs/datasets")
    checks.add_argument(
        "--dataset-config-file",
        nargs="+",
        type=file_flag,
        default=[],
        metavar="FILE",
        help="YAML of data of your own that lies elsewhere",
    )
    depth = checks.add_mutually_exclusive_group()
    to_depth: dict[str, Any] = {"action": "store_const", "dest": "depth", "default": "normal"}
    depth.add_argument(
        "--quick", const="quick", help="only directories and split files", **to_depth
    )
    depth.add_argument("--full", const="full", help="decode every image", **to_depth)
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
    """Return the datasets that ``run.py --protocol P --datasets ...`` would read."""
    check_availability(protocol, PROTOCOLS, "--protocol")
    flags = argparse.Namespace(protocol=protocol, datasets=names, source=None, targets=None)
    sources, targets = choose_datasets(flags, existing)
    return list(dict.fromkeys([*sources, *targets]))


def named_datasets(
    args: argparse.Namespace, flag: str, words: Sequence[str] | None, existing: list[str]
) -> list[str]:
    """Return the configs of the datasets that are named, or that ``--protocol`` needs."""
    names = [find_config(flag, name, existing) for name in split_words(words)]
    return protocol_datasets(args.protocol, names, existing) if args.protocol else names


def find_config(flag: str, name: str, existing: list[str]) -> str:
    """Return a dataset's config, given its config or its class: EuroSAT is eurosat."""
    by_class = {row.name: row.config for row in ROWS}
    return check_availability(by_class.get(name, name), existing, flag, " (configs/datasets)")


def choose_targets(args: argparse.Namespace, configs: Path) -> tuple[list[Target], set[str]]:
    """Return the datasets to check, and the configs of those that are required."""
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers: {args.workers} is below 0.")
    existing = config_stems(configs)
    if args.root is not None and not args.root.is_dir():
        raise FileNotFoundError(f"--root: no directory {args.root}")
    root = data_root(args)
    names = named_datasets(args, "--datasets", args.datasets, existing)
    everything = not names and not args.dataset_config_file
    stems = existing if everything else names
    targets = [read_target(configs / f"{stem}.yaml", root) for stem in stems]
    if everything:
        # Files for users to copy, such as folder.yaml, describe no data.
        targets = [target for target in targets if not target.is_template]
    targets += [read_target(file, root) for file in args.dataset_config_file]
    required = set() if everything else {target.config for target in targets}
    return sorted(targets, key=lambda target: dataset_rank(target.config)), required


def data_root(args: argparse.Namespace) -> Path:
    """The data directory, absolute."""
    return (args.root or work_folder() / "data").absolute()


def satisfied(findings: Sequence[Finding], required: set[str]) -> bool:
    """Whether all required datasets are usable, and none of the others is damaged."""
    return all(
        finding.usable or (finding.status == MISSING and finding.target.config not in required)
        for finding in findings
    )


def run_check(
    targets: Sequence[Target],
    required: set[str],
    root: Path,
    *,
    depth: str = "normal",
    workers: int | None = None,
    as_json: bool = False,
) -> int:
    """Check datasets, print the findings, return the exit status."""
    workers = data_check.default_workers() if workers is None else workers
    findings = []
    with tqdm(targets, desc="checking", unit=" sets", disable=None, leave=False) as bar:
        for target in bar:
            bar.set_postfix_str(target.config)
            findings.append(check(target, depth, workers))
    ok = satisfied(findings, required)
    if as_json:
        content = data_output.check_json(findings, required, root, free_space(root), ok)
        print(json.dumps(content, indent=2))
    else:
        for line in data_output.check_text(findings, required, root, free_space(root)).split("\n"):
            say(line)
    return 0 if ok else 1


def run_list(args: argparse.Namespace, table: Sequence[Download]) -> int:
    """Print all datasets and their sources; return the exit status."""
    rows = sorted(ROWS, key=lambda row: dataset_rank(row.config))
    if args.json:
        print(json.dumps(data_output.list_json(rows, table), indent=2))
    else:
        print(data_output.list_table(rows, table))
    return 0


def choose_orders(
    args: argparse.Namespace, configs: Path, table: Sequence[Download]
) -> list[tuple[DatasetRow, Download | None]]:
    """Return the datasets to fetch, each with its download if one is known."""
    existing = config_stems(configs)
    names = named_datasets(args, "fetch", args.names, existing)
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
    """Fetch what can be fetched, then check it; return the exit status."""
    chosen = choose_orders(args, configs, table)
    root = data_root(args)
    orders = []
    for row, download in chosen:
        if row.prepare is not None:
            print(f"{row.config}: nothing to fetch; it is drawn on first use")
        elif download is None or not download.automatic:
            # Only a person can obtain it: say how, unless it is there already.
            if not check(read_target(configs / f"{row.config}.yaml", root)).usable:
                print(data_output.instructions(row, download))
        elif Order(row, download, root).missing():
            orders.append(Order(row, download, root, keep=args.keep))
        else:
            print(f"{row.config}: everything is in place already")
    if orders:
        for order in orders:
            print(data_output.plan(order.row, order.download, order.missing()))
        if not args.yes and not confirmed():
            print("Nothing was downloaded.")
            return 1
        try:
            fetch_all(orders, root, policy)
        except BrokenPipeError:
            raise  # the reader of our output has gone
        except OSError as error:  # it may quote names in archives, so it is scrubbed
            say(f"error: {error}", file=sys.stderr)
            return 1
    print()
    # An archive that was unpacked without an error may still lack images.
    targets = [read_target(configs / f"{row.config}.yaml", root) for row, _ in chosen]
    return run_check(targets, {target.config for target in targets}, root)


def fetch_all(orders: Sequence[Order], root: Path, policy: Policy) -> None:
    """Fetch datasets one after the other; one that fails does not stop the others."""
    with alone(root):
        # One file of each group of alternatives is downloaded: the first, unless it fails.
        require_space(root, sum(group[0].size for o in orders for group in o.missing()))
        for order in orders:
            print(f"\n{order.row.config} -> {order.directory}")
            failures = fetch(order, policy)
            for failure in failures:
                say(f"  FAILED {failure}", file=sys.stderr)
            # A missing optional list, which only a user's own split needs, is no reason to send
            # people to the web page.
            if any(not failure.startswith("optional") for failure in failures):
                print(data_output.instructions(order.row, order.download))


def confirmed() -> bool:
    """Ask whether to download; an error where there is no terminal to ask on."""
    if not sys.stdin.isatty():
        raise ValueError("fetch: give --yes where there is no terminal to ask on.")
    return input("Download this? [y/N] ").strip().lower() in ("y", "yes")


def interruptible_fetch(
    args: argparse.Namespace, configs: Path, table: Sequence[Download], policy: Policy
) -> int:
    """Fetch; on Ctrl-C or SIGTERM say that the fetch can be continued. Return the exit status."""
    received = [signal.SIGINT.value]

    # Cluster schedulers send SIGTERM, for which Python raises no KeyboardInterrupt by itself.
    def stop(number: int, frame: object) -> None:
        received[0] = number
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        return run_fetch(args, configs, table, policy)
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 128 + received[0]
    finally:
        signal.signal(signal.SIGTERM, previous)


@plain_main
def main(
    argv: Sequence[str] | None = None,
    *,
    configs: Path = REPO / "configs" / "datasets",
    table: Sequence[Download] = DOWNLOADS,
    policy: Policy = PATIENT,
) -> int:
    """Run the command line and return the exit status; tests replace all but ``argv``."""
    parser = build_parser()
    escape_unprintable()
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            return run_list(args, table)
        if args.command == "fetch":
            return interruptible_fetch(args, configs, table, policy)
        targets, required = choose_targets(args, configs)
        if args.workers is not None and args.depth != "full":
            raise ValueError(f"--workers {args.workers} does nothing without --full; leave it out.")
        flags = {"depth": args.depth, "workers": args.workers, "as_json": args.json}
        return run_check(targets, required, data_root(args), **flags)
    except (ValueError, FileNotFoundError) as error:
        parser.error(scrub(str(error)))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
