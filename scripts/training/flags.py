"""Flags that would do nothing beside the others are errors, never ignored."""

from __future__ import annotations

import argparse
from inspect import unwrap
from pathlib import Path
from typing import Any, NamedTuple

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import read_result
from dassl.engine.checkpoint import trainable_state
from dassl.engine.trainer import SimpleTrainer
from trainers.base import CLIPTrainer
from trainers.base.recipe import Recipe
from trainers.zeroshot import ZeroshotCLIP

__all__ = ["check_effect", "check_flags"]


class _Use(NamedTuple):
    """What a flag is for."""

    # Among predict, export, eval-only, no-train, train: where it has an effect.
    modes: tuple[str, ...]
    fix: str  # what to do in the others


_USES = {
    "eval_only": _Use(("eval-only",), "--eval-only tests on a dataset; give only one of the two"),
    "no_train": _Use(
        ("no-train",), "--no-train only builds what training needs; give only one of the two"
    ),
    "export": _Use(("export",), "--export only writes a run; give only one of the two"),
    "export_parts": _Use(("export",), "--export-parts is for --export"),
    "model_dir": _Use(
        ("predict", "export", "eval-only"),
        "--model-dir names weights to test (add --eval-only), to classify with (--predict) or to "
        "write for use elsewhere (--export). To "
        "go on with an unfinished training, repeat its command or give --resume; a second stage "
        "starts from FIRST_STAGE.DIR",
    ),
    "load_epoch": _Use(
        ("predict", "export", "eval-only"),
        "--load-epoch chooses among the weights in --model-dir, with --eval-only, --predict or "
        "--export",
    ),
    "resume": _Use(("train",), "--resume goes on with a training; weights to test: --model-dir"),
    "transforms": _Use(
        ("train", "no-train"),
        "--transforms is for training pictures; the option INPUT.TRANSFORMS also says whether test "
        "pictures are normalised",
    ),
    "classnames": _Use(
        ("predict", "export"),
        "--classnames is for --predict and --export; a dataset has its own class names",
    ),
    "top_k": _Use(("predict",), "--top-k is for --predict"),
    "predict_output": _Use(("predict",), "--predict-output is for --predict; see --output-dir"),
    "output_dir": _Use(
        ("train", "eval-only", "no-train"),
        "no run is written; --predict-output FILE keeps what --predict finds, --export DIR names "
        "its own folder",
    ),
    "feature_cache": _Use(
        ("train", "eval-only", "no-train"), "each picture is encoded once in any case"
    ),
    "track": _Use(("train", "eval-only"), "only trainings and tests are tracked; leave it out"),
    "device": _Use(
        ("predict", "train", "eval-only", "no-train"),
        "an export is made and checked on the CPU; leave it out",
    ),
    "head": _Use(("train", "eval-only", "no-train"), "a run's own head is taken"),
    "source_domains": _Use(("train", "eval-only", "no-train"), "leave it out"),
    "target_domains": _Use(("train", "eval-only", "no-train"), "leave it out"),
}


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that do nothing beside the others, before anything is read."""
    for mode in ("predict", "export", "eval_only", "no_train"):
        if getattr(args, mode):
            break
    else:
        mode = "train"
    mode = mode.replace("_", "-")
    beside = f"beside --{mode}" if mode != "train" else "in a training run"
    for name, use in _USES.items():
        value = getattr(args, name)
        given = not (value is None or value is False or value == "")  # 0 is given
        if given and mode not in use.modes:
            flag = "--" + name.replace("_", "-")
            shown = "" if value is True else f" {_words(value)}"
            raise ValueError(f"{flag}{shown} does nothing {beside}: {use.fix}")
    if args.load_epoch is not None and not args.model_dir:
        raise ValueError(
            f"--load-epoch {args.load_epoch} does nothing without --model-dir, the folder of the "
            "run whose weights are meant"
        )


def check_effect(args: argparse.Namespace, trainer: Any) -> None:
    """Refuse flags without effect on this method or dataset, and untrained weights as a result.

    The trainer is built, but nothing is loaded yet.
    """
    cfg = trainer.cfg
    name = cfg.TRAINER.NAME
    trains = any(trainable_state(model) for model in trainer._models.values())
    # Our methods have fixed heads; Dassl trainers of others may read the key.
    if args.head and type(trainer).__module__.partition(".")[0] == "trainers":
        raise ValueError(
            f"--head {args.head} does nothing: {name} has its own head and does not read "
            "MODEL.HEAD.NAME; leave it out"
        )
    domains = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "domains", None)
    for flag, given in (("source", args.source_domains), ("target", args.target_domains)):
        if given and domains is not None and not domains:
            raise ValueError(
                f"--{flag}-domains {_words(given)} does nothing: {cfg.DATASET.NAME} has no "
                "domains; leave it out"
            )
    for flag, value in (("transforms", args.transforms), ("resume", args.resume)):
        if value and not trains:
            raise ValueError(
                f"--{flag} {_words(value)} does nothing: {name} trains nothing; leave it out"
            )
    if args.eval_only:
        _check_weights(args, trainer, trains)


def _check_weights(args: argparse.Namespace, trainer: Any, trains: bool) -> None:
    name = trainer.cfg.TRAINER.NAME
    if trains and not args.model_dir and not trainer.cfg.MODEL.INIT_WEIGHTS:
        raise ValueError(
            f"--eval-only needs --model-dir, the folder of a finished run of {name}: the method "
            "has to be trained, and what it is before that is no result. Train it (leave "
            f"--eval-only out), or test the pre-trained model (--trainer {ZeroshotCLIP.__name__})"
        )
    # A method that trains nothing may still read a run, as test-time training does.
    recipe = getattr(trainer, "recipe", None)  # a trainer made for Dassl has none
    known = (unwrap(SimpleTrainer.load_model), unwrap(CLIPTrainer.load_model))
    reads = unwrap(type(trainer).load_model) not in known
    reads = reads or (recipe is not None and type(recipe).load is not Recipe.load)
    if not args.model_dir or trains or (reads and getattr(recipe, "start", name)):
        return
    if not Path(args.model_dir).is_dir():
        raise FileNotFoundError(f"--model-dir: no directory {args.model_dir}")
    # Protocols give --model-dir for methods that train nothing too: then the run must be theirs.
    result = read_result(args.model_dir)
    if args.load_epoch is not None or result is None or result["trainer"] != name:
        given = f"--model-dir {args.model_dir}"
        if args.load_epoch is not None:
            given = f"--load-epoch {args.load_epoch}"
        raise ValueError(f"{given} does nothing: {name} trains nothing to load; leave it out")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
