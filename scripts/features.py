#!/usr/bin/env python3
"""Show or remove the features that runs with --feature-cache keep; write features as files.

python scripts/features.py list
python scripts/features.py clear --dataset DescribableTextures
python scripts/features.py export --dataset-config-file configs/datasets/dtd.yaml --output data/dtd
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import REPOSITORY, file_flag, path_flag
from dassl.data.features.arrays import WRITTEN_SUFFIXES
from dassl.data.features.cache import (
    DEFAULT_DIR,
    FeatureEntry,
    clear_cache,
    list_cache,
    mebibytes,
)
from dassl.errors import plain_main
from dassl.utils.logger import escape_unprintable

_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


# Views are sorted as numbers: as text, view 10 would come before view 2.
def _place(entry: FeatureEntry) -> tuple[str, str, int]:
    key = entry.key
    return str(key["dataset"]), key["split"], key.get("view", 0)


def age(seconds: float) -> str:
    """Write a duration in its largest whole unit: 7300 -> ``2 h``."""
    unit, name = next((pair for pair in _AGES if seconds >= pair[0]), _AGES[-1])
    return f"{max(0, int(seconds // unit))} {name}"


def table(entries: Sequence[FeatureEntry], now: float) -> str:
    """Write entries as a table, with their total."""
    rows = []
    for entry in entries:
        key = entry.key
        split = f"{key['split']}, view {key['view']}" if "view" in key else key["split"]
        backbone = key.get("backbone", "")
        size = mebibytes(entry.size)
        rows.append(
            (key["dataset"], split, backbone, entry.shape[0], size, age(now - entry.created))
        )
    header = ("dataset", "split", "backbone", "images", "size", "age")
    align = ("left", "left", "left", "right", "right", "right")
    text = tabulate(rows, header, colalign=align if rows else None, disable_numparse=True)
    total = mebibytes(sum(entry.size for entry in entries))
    return f"{text}\n\n{len(entries)} entries, {total}"


def as_json(entries: Sequence[FeatureEntry]) -> str:
    """Write entries as JSON, with all they were made from."""
    return json.dumps(
        [
            {
                "path": str(entry.path),
                "dataset": entry.key["dataset"],
                "split": entry.key["split"],
                "backbone": entry.key.get("backbone"),
                "images": entry.shape[0],
                "unreadable": len(entry.missing),
                "bytes": entry.size,
                "created": entry.created,
                "key": entry.key,
            }
            for entry in entries
        ],
        indent=2,
    )


def clear(directory: Path, dataset: str | None) -> str:
    """Remove entries, all or those of one dataset, and say what was freed."""
    known = sorted({entry.key["dataset"] for entry in list_cache(directory)})
    if dataset is not None and dataset not in known:
        raise ValueError(
            f"--dataset: no features of {dataset!r}; there are {', '.join(known) or 'none'}"
        )
    removed, others = clear_cache(directory, dataset)
    # A wrong --dir could be any folder of the user's: what is not ours stays, and is named.
    left = f"left alone, no cache entries: {', '.join(path.name for path in others)}"
    if others and not removed:
        raise ValueError(f"--dir {directory} holds no cache entry; {left}")
    freed = mebibytes(sum(entry.size for entry in removed))
    lines = [*(f"removed {entry.path.name}" for entry in removed)]
    lines.append(f"{len(removed)} entries removed, {freed} freed")
    return "\n".join([*lines, left] if others else lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="features.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("list", "show the entries"), ("clear", "remove them")):
        command = commands.add_parser(name, help=what)
        command.add_argument(
            "--dir", type=file_flag, default=Path(DEFAULT_DIR), help="FEATURE_CACHE.DIR of the runs"
        )
        if name == "list":
            command.add_argument("--json", action="store_true", help="with all they were made from")
        else:
            command.add_argument("--dataset", metavar="NAME", help="only this dataset's")
    _add_export_flags(commands.add_parser("export", help="write a dataset's features as files"))
    return parser


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset-config-file", type=path_flag, required=True, help="YAML of the dataset")
    add("--root", type=path_flag, default="data", help="folder of all datasets (%(default)s)")
    add("--backbone", type=path_flag, help="model that encodes images and texts (ViT-B/16)")
    method = REPOSITORY / "configs/trainers/ZeroshotCLIP/base2novel.yaml"
    texts = "YAML of the method whose texts and batches are taken; by default zero-shot CLIP's"
    add("--config-file", type=path_flag, default=str(method), help=texts)
    add("--seed", type=int, default=1, help="of few-shot draw and augmentation (%(default)s)")
    add("--device", help="auto, cpu, cuda, cuda:1, mps")
    add("--output", type=file_flag, required=True, help="folder that the files are written to")
    add("--suffix", choices=WRITTEN_SUFFIXES, default=".npz", help="format (%(default)s)")
    views = "KEY VALUE pairs, such as FEATURE_CACHE.VIEWS 1 or DATASET.NUM_SHOTS 16"
    add("opts", nargs=argparse.REMAINDER, help=views)


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 when nothing could be done."""
    escape_unprintable()
    args = build_parser().parse_args(argv)
    if args.command == "export":
        # Methods and models take seconds to import, which the other commands do without.
        from scripts.training.feature_files import export

        print(export(args))
        return 0
    directory = args.dir
    if not directory.is_dir():
        raise FileNotFoundError(
            f"--dir: no folder {directory}; it is FEATURE_CACHE.DIR of the runs"
        )
    if args.command == "clear":
        print(clear(directory, args.dataset))
    else:
        entries = sorted(list_cache(directory), key=_place)
        print(as_json(entries) if args.json else table(entries, time.time()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
