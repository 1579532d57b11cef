"""From command-line flags to the config of a run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import clip
import datasets.features
import datasets.folder
import datasets.table  # registers the datasets
from clip.prompts import check_template
from dassl.config import get_cfg_default, merge_file, merge_options
from dassl.config.defaults import OPTIONS as ENGINE_OPTIONS
from dassl.config.defaults import TOGETHER
from dassl.config.merge import full_keys
from dassl.config.schema import Option, add_options, check_config, expand_paths, trainer_options
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from scripts.training.parser import CONFIG_KEYS, read_options
from trainers.base.options import OPTIONS, precision

DEFAULT_BACKBONE = "ViT-B/16"
CLIP_TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
# Keys that only say where a run lay and trained: whoever builds on its config has its own.
PLACE_KEYS = ("OUTPUT_DIR", "RESUME", "DEVICE", "USE_CUDA", "FEATURE_CACHE")


def default_config() -> CfgNode:
    """The engine's defaults, plus every registered dataset's and trainer's own keys."""
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME = DEFAULT_BACKBONE
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = CLIP_TRANSFORMS
    add_options(cfg, OPTIONS)
    datasets.folder.extend_cfg(cfg)
    datasets.features.extend_cfg(cfg)
    for name in TRAINER_REGISTRY.registered_names():
        extend = getattr(TRAINER_REGISTRY.get(name), "extend_cfg", None)
        if extend is not None:
            extend(cfg)
    return cfg


def config_options(cfg: CfgNode) -> dict[str, Option]:
    """Return each declared config key's default, rule and meaning, for a :func:`default_config`."""
    options = {**ENGINE_OPTIONS, **OPTIONS}
    options |= {f"DATASET.{key}": option for key, option in datasets.folder.OPTIONS.items()}
    for key, option in datasets.features.OPTIONS.items():
        options[f"DATASET.FEATURES.{key}"] = option
    for name in TRAINER_REGISTRY.registered_names():
        options |= trainer_options(name, TRAINER_REGISTRY.get(name))
    for section, keys in cfg.TRAINER.items():
        if isinstance(keys, CfgNode) and "PREC" in keys:
            options.setdefault(f"TRAINER.{section}.PREC", precision(keys.PREC))
    return options


def build_config(args: argparse.Namespace, below: Mapping[str, Any] | None = None) -> CfgNode:
    """The config of a run, frozen.

    Precedence: defaults < ``below`` < dataset file < method file (with its PER_DATASET section) <
    flags that were given < trailing options. A file's ``_BASE_`` goes before the file itself, and
    its PER_SHOTS section before PER_DATASET. Size, mean and deviation of the images are the
    backbone's own unless one of these sets them.

    Args:
        args: Flags of :func:`scripts.training.parser.argument_parser`.
        below: Sections of another run's config. Its image size, mean and deviation are dropped
            when the flags choose another backbone.

    Raises:
        FileNotFoundError: A config file does not exist.
        ValueError: An unknown key or backbone, or a value that is not allowed.
    """
    cfg = default_config()
    given: set[str] = set()
    if below:
        taken = merge_options(cfg, [item for pair in below.items() for item in pair])
        # The other run's image size and statistics belong to its backbone.
        given |= set() if args.backbone else taken
    options = read_options(args.opts, set(full_keys(cfg)))
    shots = _take_shots(cfg, options)
    for flag, path in (
        ("--dataset-config-file", args.dataset_config_file),
        ("--config-file", args.config_file),
    ):
        if path:
            _require_file(path, flag)
            given |= merge_file(cfg, path, shots=shots, known_datasets=DATASET_REGISTRY)
    _merge_flags(cfg, args)
    given |= merge_options(cfg, options)
    if shots is not None:  # the option wins over the files merged since it was taken
        cfg.DATASET.NUM_SHOTS = shots
    _require_names(cfg)
    allowed = config_options(cfg)
    cfg = expand_paths(cfg, allowed)
    check_config(cfg, allowed, TOGETHER)
    if cfg.DATASET.PROMPT_TEMPLATE:
        check_template(cfg.DATASET.PROMPT_TEMPLATE, "DATASET.PROMPT_TEMPLATE")
    _fill_input(cfg, given)
    cfg.freeze()
    return cfg


def _take_shots(cfg: CfgNode, options: list[str]) -> int | None:
    """Take DATASET.NUM_SHOTS out of the options: PER_SHOTS sections of the files depend on it.

    ``cfg`` gets the number too, until the files are merged. None if it is not among the options.
    """
    pairs = list(zip(options[::2], options[1::2], strict=True))
    for key, value in pairs:
        if key == "DATASET.NUM_SHOTS":  # merging checks its type
            merge_options(cfg, [key, value])
    options[:] = [word for pair in pairs if pair[0] != "DATASET.NUM_SHOTS" for word in pair]
    return cfg.DATASET.NUM_SHOTS if len(options) < 2 * len(pairs) else None


def _require_names(cfg: CfgNode) -> None:
    for key, name, flags, folder in (
        ("TRAINER.NAME", cfg.TRAINER.NAME, "--trainer or --config-file", "configs/trainers"),
        ("DATASET.NAME", cfg.DATASET.NAME, "--dataset-config-file", "configs/datasets"),
    ):
        if not name:
            raise ValueError(f"{key} is not set: give {flags} (see {folder})")


def _require_file(path: str, flag: str) -> None:
    file = Path(path)
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        raise FileNotFoundError(
            f"{flag}: no file {path}" + (f"; {file.parent} has {near}" if near else "")
        )


def _merge_flags(cfg: CfgNode, args: argparse.Namespace) -> None:
    # A flag with nargs="+" also swallows the KEY VALUE options behind it; without this check they
    # would pass for its values.
    keys = set(full_keys(cfg))
    for flag, key in CONFIG_KEYS.items():
        value = getattr(args, flag)
        for word in value if isinstance(value, list) else ():
            if word in keys:
                raise ValueError(
                    f"--{flag.replace('_', '-')} takes all words up to the next flag, and so "
                    f"{word!r} too; put -- before the KEY VALUE options"
                )
        if value is not None:
            merge_options(cfg, [key, value])


def _fill_input(cfg: CfgNode, given: set[str]) -> None:
    """Give the images the backbone's size, mean and deviation where nothing else does."""
    if given >= {"INPUT.SIZE", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD"}:
        return
    spec = clip.input_spec(cfg.MODEL.BACKBONE.NAME)
    for key, value in (
        ("SIZE", (spec.size, spec.size)),
        ("PIXEL_MEAN", list(spec.mean)),
        ("PIXEL_STD", list(spec.std)),
    ):
        if f"INPUT.{key}" not in given:
            cfg.INPUT[key] = value
