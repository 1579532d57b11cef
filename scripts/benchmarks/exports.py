"""How far what is exported of every method is from the trained run, or why it is not exported.

    python scripts/bench.py exports
    python scripts/bench.py exports --trainers LightRA RAda

Each method by its own config for the first of its protocols, on Shapes: 20 classes, one shot, one
epoch, first stages included; then `train.py --export`. Numbers are the greatest differences over
seven pictures. The table is Markdown, as docs/exporting.md has it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.errors import ending
from scripts.benchmarks.command import check_methods, make_parser
from scripts.exporting.export import run_export
from scripts.exporting.parts import FILES
from scripts.jobs.protocols import REPO
from scripts.training.config import build_config
from scripts.training.parser import argument_parser
from trainers.base import CLIPTrainer

COMMAND = "exports"
# How well a method is trained does not matter to its graph, that its weights have moved does.
_SMALL = (
    *("DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATALOADER.NUM_WORKERS", "0"),
    *("TEST.ZERO_SHOT_CHECK", "none", "VERBOSE", "False"),
)


class _Runs:
    """Trains methods on Shapes in folders below ``place``; each first stage once."""

    def __init__(self, root: str, place: Path) -> None:
        self.root, self.place = root, place
        # Several methods start from the same run, and a first stage has none of its own.
        self._first_stage = functools.cache(self.trained)

    def trained(self, method_file: str) -> str:
        """Train by a file below configs/trainers and return the run's folder."""
        cfg = self._config(method_file)
        if cfg.FIRST_STAGE.CONFIG:
            cfg = self._config(method_file, self._first_stage(cfg.FIRST_STAGE.CONFIG))
        build_trainer(cfg).train()
        return str(cfg.OUTPUT_DIR)

    def _config(self, method_file: str, first_stage: str = "") -> Any:
        words = ["--root", self.root, "--output-dir", str(self.place / method_file), "--seed", "1"]
        words += ["--dataset-config-file", str(REPO / "configs/datasets/shapes.yaml")]
        words += ["--config-file", str(REPO / f"configs/trainers/{method_file}.yaml")]
        words += ["--device", "cpu", *_SMALL, "FIRST_STAGE.DIR", first_stage]
        return build_config(argument_parser().parse_args(words))


def methods() -> list[str]:
    """Names of all registered methods of this project."""
    names = TRAINER_REGISTRY.registered_names()
    return [name for name in names if issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer)]


def measure(name: str, runs: _Runs) -> dict[str, Any]:
    """Export a method and return the content of its ``export.json``, or why there is none."""
    kind = TRAINER_REGISTRY.get(name)
    if kind.recipe_type.no_graph:
        return {"error": kind.recipe_type.no_graph}
    # The same words that a user types, so that the table is of what users get.
    folder = runs.place / "exported" / name
    words = ["--export", str(folder), "--model-dir", runs.trained(f"{name}/{kind.protocols[0]}")]
    run_export(argument_parser().parse_args(words))
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))


def row(name: str, about: dict[str, Any]) -> list[str]:
    """A method's row: differences of each file, whether cosines make its logits, what lacks."""
    if "error" in about:
        return [name, "-", "-", "-", "-", about["error"]]
    found = about["agreement"]

    def worst(part: str) -> str:
        values = found.get(FILES[part])
        return "-" if values is None else f"{max(values.values()):.1e}"

    lacks = "; ".join(f"`{FILES[part]}`: {why}" for part, why in about["left_out"].items())
    cosine = "yes" if about["cosine"] else "no"
    return [name, worst("onnx"), worst("pt2"), worst("weights"), cosine, lacks]


def guarded(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``run`` returns, or its error as a line: one method must not stop the others."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the engine prints
            return run()
    except Exception as error:
        found = ending(error)
        if found is None:  # a mistake in the code, which no row of a table may hide
            raise
        return {"error": re.sub(r"\s+", " ", found.line), "failed": True}


def main(argv: Sequence[str]) -> int:
    """Print the table; return 1 if a method failed that gives no reason against an export."""
    parser = make_parser(COMMAND, __doc__)
    add = parser.add_argument
    add("--trainers", nargs="+", default=methods(), metavar="NAME", help="default: all")
    add("--root", default="data", help="folder of all datasets; Shapes is drawn there if need be")
    args = parser.parse_args(argv)
    check_methods(args.trainers, methods())
    # In one process: what is imported takes longer than the exports of a tiny model.
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as place:
        runs = _Runs(args.root, Path(place))
        for name in tqdm(args.trainers, disable=None):
            about = guarded(functools.partial(measure, name, runs))
            failed |= about.get("failed", False)
            rows.append(row(name, about))
    heads = ["method", *(f"`{FILES[part]}`" for part in ("onnx", "pt2", "weights"))]
    heads += ["logits are cosines", "not there, and why"]
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))
    return int(failed)
