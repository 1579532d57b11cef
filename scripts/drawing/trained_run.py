"""Build a finished run again from its directory alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import datasets.table  # noqa: F401 - registers the datasets
import trainers  # noqa: F401 - registers the methods
from dassl.config import merge_options
from dassl.engine import build_trainer
from dassl.results import RESULT_NAME, read_result
from dassl.utils import set_random_seed
from scripts.training.config import default_config


def read_run(directory: Path) -> dict[str, Any]:
    """Return the content of a finished run's ``result.json``.

    FileNotFoundError if there is no such directory, ValueError if it holds no finished run.
    """
    if not directory.is_dir():
        around = directory.parent
        there = sorted(p.name for p in around.iterdir() if p.is_dir()) if around.is_dir() else []
        raise FileNotFoundError(
            f"--model-dir: no directory {directory}" + (f"; {around} has {there}" if there else "")
        )
    result = read_result(directory)
    if result is None:
        runs = sorted(str(p.parent) for p in directory.rglob(RESULT_NAME))[:5]
        hint = f" Runs below it: {', '.join(runs)}." if runs else ""
        raise ValueError(
            f"--model-dir: {directory} holds no finished run: its {RESULT_NAME} is missing or "
            f"incomplete. Repeat the command that made it; it goes on where it stopped.{hint}"
        )
    return result


def load_run(directory: Path, *, root: str = "", device: str = "auto") -> Any:
    """Return the trainer of a finished run with its trained weights and data; nothing is written.

    Args:
        directory: The run's output directory.
        root: Folder of all datasets; "" takes the one the run recorded.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        FileNotFoundError: The directory, the data or the weights are missing.
        ValueError: The run is unfinished, or its config or weights do not fit this version.
    """
    result = read_run(directory)
    cfg = config_of(result, directory / RESULT_NAME)
    cfg.SEED, cfg.DEVICE, cfg.VERBOSE = result["seed"], device, False
    if root:
        cfg.DATASET.ROOT = root
    cfg.FEATURE_CACHE.ENABLED = False  # a few images are wanted, not the features of all
    with tempfile.TemporaryDirectory() as scratch:
        cfg.OUTPUT_DIR = scratch  # building a dataset records its few-shot draw there
        cfg.freeze()
        set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
    if result["trainable_parameters"]:
        # An --eval-only run, such as that on new classes, recorded where its weights are.
        weights = result["model_dir"] if result["eval_only"] else str(directory)
        if weights:
            trainer.any_config = True  # the run itself was evaluated with these weights
            trainer.load_model(weights, epoch=result["load_epoch"])
    return trainer


def config_of(result: dict[str, Any], source: Path) -> CfgNode:
    """Return the config that a result records, not frozen; ``source`` names it in the message."""
    cfg = default_config()
    try:
        merge_options(cfg, [item for pair in _leaves(result["config"]) for item in pair])
    except ValueError as error:
        raise ValueError(f"The config in {source} does not fit this version: {error}") from error
    return cfg


def _leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full keys and values of nested sections."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
