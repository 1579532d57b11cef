"""Training of each method on frozen features, at the sizes of the field's 11 datasets.

    python scripts/bench.py frozen                            # hours, if all are asked for
    python scripts/bench.py frozen --trainers GDA LPPlusPlus --datasets dtd sun397

Data are random features of ViT-B/16's width, K classes of 16 images each, with ten views, and as
many validation images. Each method has its few-shot config, the dataset's own entries included, and
is timed from the first to the last line of its training, search and sweep included, test excluded.
Seconds of one run; each has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import datasets.table  # noqa: F401 - registers the datasets
import trainers  # noqa: F401 - registers the methods
from dassl.config.identity import flatten
from dassl.data.features.arrays import write_arrays
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.errors import plain_main
from datasets.rows import row_of
from scripts.benchmarks.command import (
    Columns,
    answer,
    check_methods,
    make_parser,
    measure_apart,
    print_methods,
    require_least,
)
from scripts.benchmarks.tools import peak_mib
from scripts.jobs.content import ContentReader
from scripts.jobs.protocols import FEW_SHOT_DATASETS, REPO
from scripts.training.config import build_config
from scripts.training.parser import argument_parser
from trainers.frozen.recipe import FittedHead

COMMAND = "frozen"
WIDTH, VIEWS = 512, 10
COLUMNS: Columns = {
    "method": ("method", ""),
    "input": ("dataset", ""),
    "classes": ("classes", "d"),
    "seconds": ("s", ".1f"),
    "mib": ("peak MiB", ".0f"),
}


def methods() -> list[str]:
    """Names of the methods whose head is fitted to frozen features."""
    kinds = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return sorted(
        name
        for name, kind in kinds.items()
        if issubclass(getattr(kind, "recipe_type", object), FittedHead)
    )


def write_features(root: Path, classes: int, shots: int, width: int, views: int) -> Path:
    """Write random features around K centres and texts near these; return the dataset's config."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width)).astype(np.float32)
    labels = np.repeat(np.arange(classes), shots)
    for part, form in (("train", (len(labels), views, width)), ("val", (len(labels), width))):
        # So far from their centres that no method tells all images right at once.
        noise = 2 * rng.normal(size=form).astype(np.float32)
        own = centres[labels] if len(form) == 2 else centres[labels][:, None]
        write_arrays(root / f"{part}.npz", {"features": own + noise, "labels": labels})
    test = {"features": centres, "labels": np.arange(classes)}  # not timed
    write_arrays(root / "test.npz", test)
    text = centres + rng.normal(size=centres.shape).astype(np.float32)
    write_arrays(root / "text.npz", {"text_features": text})
    files = {part.upper(): f"{part}.npz" for part in ("train", "val", "test", "text")}
    config = root / "features.yaml"
    section = {"DATASET": {"NAME": "Features", "DIR": str(root), "FEATURES": files}}
    config.write_text(yaml.safe_dump(section))
    return config


def own_options(method: str, dataset: str) -> list[object]:
    """KEY VALUE options of a method's few-shot config for one dataset."""
    file = REPO / "configs" / "trainers" / method / "few_shot.yaml"
    content = ContentReader(REPO, REPO).content(file, row_of(dataset).name)
    own = flatten(content.get("PER_DATASET") or {})
    return [word for pair in own.items() for word in pair]


def measure(
    method: str,
    kind: str,
    classes: int,
    shots: int,
    device: str,
    width: int = WIDTH,
    views: int = VIEWS,
    **_: Any,
) -> dict[str, Any]:
    """Seconds of a training and peak memory of this process.

    Args:
        method: Registered name.
        kind: Config stem of the dataset.
        classes: Its classes.
        shots: Images of each.
        device: auto, cpu, cuda...
        width: Of the features.
        views: Of each training image.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        config = write_features(root, classes, shots, width, views)
        file = REPO / "configs" / "trainers" / method / "few_shot.yaml"
        words: list[object] = ["--trainer", method, "--config-file", file, "--root", root]
        words += ["--dataset-config-file", config, "--output-dir", root / "run", "--seed", 1]
        words += ["--device", device, "DATASET.NUM_SHOTS", shots, "TEST.NO_TEST", True]
        words += ["TEST.ZERO_SHOT_CHECK", "none", "VERBOSE", False, "TRAIN.PRINT_FREQ", 0]
        words += own_options(method, kind)
        cfg = build_config(argument_parser().parse_args(list(map(str, words))))
        trainer = build_trainer(cfg)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    found = {"method": method, "input": kind, "classes": classes, "seconds": seconds}
    return {**found, "mib": peak_mib(trainer.device)}


def tasks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What to measure: each method on each dataset."""
    return [
        {
            **{"method": method, "kind": dataset, "batch": 0, "shots": args.shots},
            **{"classes": row_of(dataset).num_classes, "device": args.device},
        }
        for method in args.trainers
        for dataset in args.datasets
    ]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = make_parser(COMMAND, __doc__)
    add = parser.add_argument
    add("--trainers", nargs="+", default=methods(), metavar="NAME", help="default: all of these")
    add("--datasets", nargs="+", default=FEW_SHOT_DATASETS, metavar="NAME", help="default: all 11")
    add("--shots", type=int, default=16)
    add("--threads", type=int, default=2)
    add("--device", default="cpu", help="auto, cpu, cuda, cuda:1")
    add("--json", action="store_true", help="print the numbers as JSON")
    # What a process of its own is asked for; the command starts it, nobody types it.
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a method could not be measured."""
    parser = build_parser()
    args = parser.parse_args(argv)
    require_least(parser, args, {"shots": 1, "threads": 1})
    torch.set_num_threads(args.threads)
    if args.worker:
        return answer(partial(measure, **args.worker))
    check_methods(args.trainers, methods())
    check_methods(args.datasets, FEW_SHOT_DATASETS)
    found = [measure_apart(COMMAND, task, args.threads) for task in tasks(args)]
    return print_methods(found, COLUMNS, args.json)
