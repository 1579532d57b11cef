"""From command-line flags to the config of a run."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import clip
import datasets.folder
import datasets.table  # it registers the datasets
from clip.prompts import check_template
from dassl.config import get_cfg_default, merge_file, merge_options, read_layers, user_path
from dassl.config.defaults import OPTIONS as ENGINE_OPTIONS
from dassl.config.defaults import TOGETHER
from dassl.config.merge import shortened
from dassl.config.paths import path_flag
from dassl.config.schema import (
    PATH,
    TEXT,
    Option,
    add_options,
    check_config,
    count,
    expand_paths,
    number,
    trainer_options,
)
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.feature_cache import DEFAULT_DIR
from dassl.engine import TRAINER_REGISTRY
from dassl.names import nearest
from trainers.base.options import precision

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_BACKBONE = "ViT-B/16"
CLIP_TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")

OPTIONS = {
    "ALPHA": Option(1.5, number(0), "RAda: weight of the mask's regulariser"),  # top level, as
    "TEMP": Option(1.0, number(above=0), "RAda: temperature of the mask's attention"),  # released
    "FEATURE_CACHE.ENABLED": Option(False, None, "compute a frozen encoder's features once"),
    "FEATURE_CACHE.REQUIRED": Option(
        True, None, "False: a method whose image features change goes without"
    ),
    "FEATURE_CACHE.DIR": Option(DEFAULT_DIR, PATH, "folder that they are kept in"),
    "FEATURE_CACHE.VIEWS": Option(4, count(1, 10_000), "augmentations of each training image"),
    "FIRST_STAGE.CONFIG": Option("", TEXT, "such as RAdaFFT/fft; how scripts/run.py makes DIR"),
    "FIRST_STAGE.DIR": Option("", PATH, "directory of the run that a two-stage method starts from"),
    "FIRST_STAGE.EPOCH": Option(0, count(0), "its epoch, 0 for the last"),
}


def argument_parser() -> argparse.ArgumentParser:
    """CoOp's flags; every default is None, so that only flags that were given count."""
    parser = argparse.ArgumentParser(description="Adapt a vision-language model, or evaluate it.")
    parser.add_argument("--root", type=path_flag, help="folder of all datasets")
    parser.add_argument(
        "--output-dir", type=path_flag, help="folder of this run's logs, weights and result"
    )
    parser.add_argument(
        "--resume",
        type=path_flag,
        help="folder of another run to resume from (by default this one's own)",
    )
    parser.add_argument("--seed", type=int, help="0 is a seed; -1 draws one and records it")
    parser.add_argument(
        "--source-domains", nargs="+", help="for domain adaptation and generalisation sets"
    )
    parser.add_argument(
        "--target-domains", nargs="+", help="for domain adaptation and generalisation sets"
    )
    parser.add_argument("--transforms", nargs="+", help="training augmentation, by name")
    parser.add_argument(
        "--config-file",
        type=path_flag,
        help="YAML of the method, e.g. configs/trainers/LightRA/base2novel.yaml",
    )
    parser.add_argument(
        "--dataset-config-file",
        type=path_flag,
        help="YAML of the dataset, e.g. configs/datasets/dtd.yaml",
    )
    parser.add_argument("--trainer", help="name of the method, e.g. LightRA")
    parser.add_argument(
        "--backbone",
        type=path_flag,
        help="e.g. ViT-B/16, shapes, openclip:ViT-B-16@laion2b_s34b_b88k, a file",
    )
    parser.add_argument("--head", help="name of a head, for trainers that know MODEL.HEAD.NAME")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--eval-only", action="store_true", help="test the weights in --model-dir")
    parser.add_argument(
        "--model-dir",
        type=path_flag,
        default="",
        help="folder of a finished run, for --eval-only and --predict",
    )
    parser.add_argument(
        "--load-epoch", type=int, help="epoch of the weights to load; the last by default"
    )
    parser.add_argument(
        "--any-config",
        action="store_true",
        help="evaluate weights in --model-dir although they were trained with other options",
    )
    parser.add_argument("--no-train", action="store_true", help="build everything, train nothing")
    parser.add_argument(
        "--feature-cache",
        action="store_true",
        default=None,
        help="compute the features of a frozen image encoder once and keep them",
    )
    predict = parser.add_argument_group("predict", "classify pictures instead; trains nothing")
    predict.add_argument(
        "--predict",
        type=path_flag,
        nargs="+",
        metavar="IMAGES",
        help="files, folders and globs; with the run in --model-dir, else zero-shot. KEY VALUE "
        "pairs need -- or another flag before them",
    )
    predict.add_argument(
        "--classnames",
        type=path_flag,
        help="file of class names, one a line or a JSON list; else the run's own",
    )
    predict.add_argument("--top-k", type=int, help="classes per picture (5)")
    predict.add_argument("--predict-output", type=path_flag, help="file to write, .csv or .json")
    parser.add_argument(
        "--help-config",
        nargs="?",
        const="",
        metavar="KEY",
        help="print the config keys, with what they mean and may be: all, or those of a section",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="show where an error came from; in any program: DEBUG_ERRORS=1",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, applied last")
    return parser


def default_config() -> CfgNode:
    """The engine's defaults, plus every registered dataset's and trainer's own keys."""
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME = DEFAULT_BACKBONE
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = CLIP_TRANSFORMS
    add_options(cfg, OPTIONS)
    datasets.folder.extend_cfg(cfg)
    for name in TRAINER_REGISTRY.registered_names():
        extend = getattr(TRAINER_REGISTRY.get(name), "extend_cfg", None)
        if extend is not None:
            extend(cfg)
    return cfg


def config_options(cfg: CfgNode) -> dict[str, Option]:
    """What is allowed and what it means, by full key; undeclared keys are not among them.

    Args:
        cfg: Of :func:`default_config`.
    """
    options = {**ENGINE_OPTIONS, **OPTIONS}
    options |= {f"DATASET.{key}": option for key, option in datasets.folder.OPTIONS.items()}
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
    its PER_SHOTS section before PER_DATASET. Size, mean and deviation of the pictures are the
    backbone's own unless one of these sets them.

    Args:
        args: Of the command line.
        below: Sections of another run's config. What it says of the pictures stays with its
            backbone.

    Raises:
        FileNotFoundError: A config file does not exist.
        ValueError: An unknown key, a value of the wrong type or one that makes no sense, an unknown
            backbone.
    """
    cfg = default_config()
    explicit: set[str] = set()
    if below:
        merge_options(cfg, [item for pair in below.items() for item in pair])
        explicit |= set() if args.backbone else set(below.get("INPUT", {}))
    options = read_options(args.opts, cfg)
    shots = _given_shots(cfg, options)
    for flag, path in (
        ("--dataset-config-file", args.dataset_config_file),
        ("--config-file", args.config_file),
    ):
        if path:
            explicit |= _input_keys(path, flag)
            merge_file(cfg, path, shots=shots, known_datasets=DATASET_REGISTRY)
    _merge_flags(cfg, args)
    explicit |= {key.removeprefix("INPUT.") for key in options[::2]}
    merge_options(cfg, options)
    _require_names(cfg)
    options_of = config_options(cfg)
    cfg = expand_paths(cfg, options_of)
    check_config(cfg, options_of, TOGETHER)
    if cfg.DATASET.PROMPT_TEMPLATE:
        check_template(cfg.DATASET.PROMPT_TEMPLATE, "DATASET.PROMPT_TEMPLATE")
    _fill_input(cfg, explicit)
    cfg.freeze()
    return cfg


def read_options(words: Sequence[str], cfg: CfgNode) -> list[str]:
    """Check the form of the trailing KEY VALUE options, before their keys and values.

    Args:
        words: What follows the flags; ``--`` may be among them.
        cfg: Which keys there are.

    Returns:
        Keys and values in turn.

    Raises:
        ValueError: A flag stands among them, or a key has no value.
    """
    words = [word for word in words if word != "--"]
    values: dict[str, str] = {}
    for index in range(0, len(words), 2):
        key, value = words[index], words[index + 1] if index + 1 < len(words) else None
        for word in (key, value or ""):
            if re.match("--?[A-Za-z]", word):
                raise ValueError(_late_flag(word))
        name, equals, right = key.partition("=")
        if equals and is_key(cfg, name):
            raise ValueError(f"{key!r}: a key and its value are two words: {name} {right}")
        if value is None or (is_key(cfg, value) and "." in value):
            follows = f" ({value} follows)" if value else ""
            raise ValueError(
                f"{key} has no value{follows}: behind the flags, options are KEY VALUE pairs, "
                f"got {shortened(' '.join(words))}"
            )
        if values.get(key, value) != value:
            # The last counts, as in CoOp, whose scripts append what the user adds.
            said = f"{key} is given twice: {value!r} counts, not {values[key]!r} before it"
            print(said, file=sys.stderr)
        values[key] = value
    return words


def is_key(cfg: CfgNode, name: str) -> bool:
    """Whether a config has a value or a section of this full name, such as ``OPTIM.LR``."""
    node: Any = cfg
    for part in name.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return True


def _late_flag(word: str) -> str:
    flags = list(argument_parser()._option_string_actions)
    name = word.partition("=")[0]
    if any(flag.startswith(name) for flag in flags):
        return f"{word} comes after the KEY VALUE options; flags go first, so put it before them"
    return f"{word} stands among the KEY VALUE options and is no flag either.{nearest(name, flags)}"


def resolve(path: str) -> Path:
    """A file named in a config: as given, else relative to the repository."""
    given = Path(user_path(path))
    return given if given.exists() or given.is_absolute() else REPOSITORY / given


def _given_shots(cfg: CfgNode, options: Sequence[str]) -> int | None:
    """The trailing option DATASET.NUM_SHOTS, on which PER_SHOTS sections of the files depend."""
    given = dict(zip(options[::2], options[1::2], strict=False))
    if "DATASET.NUM_SHOTS" not in given:
        return None
    probe = cfg.clone()
    merge_options(probe, ["DATASET.NUM_SHOTS", given["DATASET.NUM_SHOTS"]])
    return probe.DATASET.NUM_SHOTS


def _require_names(cfg: CfgNode) -> None:
    for key, name, flags, folder in (
        ("TRAINER.NAME", cfg.TRAINER.NAME, "--trainer or --config-file", "configs/trainers"),
        ("DATASET.NAME", cfg.DATASET.NAME, "--dataset-config-file", "configs/datasets"),
    ):
        if not name:
            raise ValueError(f"{key} is not set: give {flags} (see {folder})")


def _input_keys(path: str, flag: str) -> set[str]:
    file = Path(path)
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        raise FileNotFoundError(
            f"{flag}: no file {path}" + (f"; {file.parent} has {near}" if near else "")
        )
    sections = (layer.content.get("INPUT") for layer in read_layers(path))
    return {key for section in sections if isinstance(section, dict) for key in section}


def _merge_flags(cfg: CfgNode, args: argparse.Namespace) -> None:
    flags: Sequence[tuple[str, object]] = (
        ("DATASET.ROOT", args.root),
        ("OUTPUT_DIR", args.output_dir),
        ("RESUME", args.resume),
        ("SEED", args.seed),
        ("DATASET.SOURCE_DOMAINS", args.source_domains),
        ("DATASET.TARGET_DOMAINS", args.target_domains),
        ("INPUT.TRANSFORMS", args.transforms),
        ("TRAINER.NAME", args.trainer),
        ("MODEL.BACKBONE.NAME", args.backbone),
        ("MODEL.HEAD.NAME", args.head),
        ("DEVICE", args.device),
        ("FEATURE_CACHE.ENABLED", args.feature_cache),
    )
    for flag in ("source_domains", "target_domains", "transforms"):
        for word in getattr(args, flag) or ():
            if is_key(cfg, word):
                raise ValueError(
                    f"--{flag.replace('_', '-')} takes all words up to the next flag, and so "
                    f"{word!r} too; put -- before the KEY VALUE options"
                )
    merge_options(cfg, [item for key, value in flags if value is not None for item in (key, value)])


def _fill_input(cfg: CfgNode, explicit: set[str]) -> None:
    if explicit >= {"SIZE", "PIXEL_MEAN", "PIXEL_STD"}:
        return
    spec = clip.input_spec(cfg.MODEL.BACKBONE.NAME)
    if "SIZE" not in explicit:
        cfg.INPUT.SIZE = (spec.size, spec.size)
    if "PIXEL_MEAN" not in explicit:
        cfg.INPUT.PIXEL_MEAN = list(spec.mean)
    if "PIXEL_STD" not in explicit:
        cfg.INPUT.PIXEL_STD = list(spec.std)
