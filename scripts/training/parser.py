"""Flags of ``train.py``: CoOp's, then KEY VALUE options.

No PyTorch here: ``--help`` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Sequence

from dassl.config.merge import shortened
from dassl.config.paths import path_flag
from dassl.names import nearest
from dassl.tracking.available import TRACKERS

__all__ = ["CONFIG_KEYS", "EXPORT_PARTS", "argument_parser", "read_options"]

# What --export-parts may name.
EXPORT_PARTS = ("onnx", "pt2", "weights", "adapter")
# Flags that only stand for a config key.
CONFIG_KEYS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
    "device": "DEVICE",
    "feature_cache": "FEATURE_CACHE.ENABLED",
    "track": "TRACK",
}


def argument_parser() -> argparse.ArgumentParser:
    """CoOp's flags; every default is None, so that only flags that were given count."""
    parser = argparse.ArgumentParser(description="Adapt a vision-language model, or evaluate it.")
    _add_config_flags(parser)
    add = parser.add_argument
    add("--eval-only", action="store_true", help="test the weights in --model-dir")
    of = "folder of a finished run, or of an export, for --eval-only, --predict and --export"
    add("--model-dir", type=path_flag, default="", help=of)
    add("--load-epoch", type=int, help="epoch of the weights to load; the last by default")
    told = "evaluate weights in --model-dir although they were trained with other options"
    add("--any-config", action="store_true", help=told)
    add("--no-train", action="store_true", help="build everything, train nothing")
    cache = "compute the features of a frozen image encoder once and keep them"
    add("--feature-cache", action="store_true", default=None, help=cache)
    _add_predict_flags(parser)
    _add_export_flags(parser)
    keys = "print the config keys, with what they mean and may be: all, or those of a section"
    add("--help-config", nargs="?", const="", metavar="KEY", help=keys)
    debug = "show where an error came from; in any program: DEBUG_ERRORS=1"
    add("--debug", action="store_true", help=debug)
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, applied last")
    return parser


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that stand for a config key or name a file of keys."""
    add = parser.add_argument
    add("--root", type=path_flag, help="folder of all datasets")
    add("--output-dir", type=path_flag, help="folder of this run's logs, weights and result")
    other = "folder of another run to resume from (default: this one)"
    add("--resume", type=path_flag, help=other)
    add("--seed", type=int, help="0 is a seed; -1 draws one and records it")
    for flag in ("--source-domains", "--target-domains"):
        add(flag, nargs="+", help="for domain adaptation and generalisation datasets")
    add("--transforms", nargs="+", help="training augmentation, by name")
    method = "YAML of the method, e.g. configs/trainers/LightRA/base2novel.yaml"
    add("--config-file", type=path_flag, help=method)
    dataset = "YAML of the dataset, e.g. configs/datasets/dtd.yaml"
    add("--dataset-config-file", type=path_flag, help=dataset)
    add("--trainer", help="name of the method, e.g. LightRA")
    backbone = "e.g. ViT-B/16, shapes, openclip:ViT-B-16@laion2b_s34b_b88k, a file"
    add("--backbone", type=path_flag, help=backbone)
    add("--head", help="name of a head, for trainers that know MODEL.HEAD.NAME")
    add("--device", help="auto, cpu, cuda, cuda:1, mps")
    trackers = f"{', '.join(TRACKERS)}, several at once; where scalars and results go"
    add("--track", nargs="+", metavar="TRACKER", help=trackers)


def _add_predict_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "predict", "classify images instead; trains nothing"
    ).add_argument
    images = (
        "files, folders and globs of images, or files of features; with the run in --model-dir, "
        "else zero-shot. KEY VALUE pairs need -- or another flag before them"
    )
    add("--predict", type=path_flag, nargs="+", metavar="IMAGES", help=images)
    names = "file of class names, one a line or a JSON list; else the run's own"
    add("--classnames", type=path_flag, help=names)
    add("--top-k", type=int, help="classes per image (5)")
    add("--predict-output", type=path_flag, help="file to write, .csv or .json")


def _add_export_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "export", "write a run for use without this project; trains nothing"
    ).add_argument
    folder = "new folder for ONNX, PyTorch and safetensors files of the run in --model-dir"
    add("--export", type=path_flag, default="", metavar="DIR", help=folder)
    some = "files to write; all that the method allows by default"
    add("--export-parts", nargs="+", choices=EXPORT_PARTS, metavar="PART", help=some)


def read_options(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """Check the form of the trailing KEY VALUE options and return them without ``--``.

    Args:
        words: What follows the flags; ``--`` may be among them.
        keys: Full keys of the config's sections and values.
    """
    words = [word for word in words if word != "--"]
    values: dict[str, str] = {}
    for index in range(0, len(words), 2):
        key, value = words[index], words[index + 1] if index + 1 < len(words) else None
        for word in (key, value or ""):
            if re.match("--?[A-Za-z]", word):  # argparse takes flags after the first option too
                raise ValueError(_late_flag(word))
        name, equals, right = key.partition("=")
        if equals and name in keys:  # KEY=VALUE, as other programs take it
            raise ValueError(f"{key!r}: a key and its value are two words: {name} {right}")
        # A key in the place of a value: the value before it was forgotten.
        if value is None or ("." in value and value in keys):
            follows = f" ({value} follows)" if value else ""
            raise ValueError(
                f"{key} has no value{follows}: behind the flags, options are KEY VALUE pairs, "
                f"got {shortened(' '.join(words))}"
            )
        if values.get(key, value) != value:
            # The last one counts, as in CoOp, whose scripts append the user's options.
            said = f"{key} is given twice: {value!r} counts, not {values[key]!r} before it"
            print(said, file=sys.stderr)
        values[key] = value
    return words


def _late_flag(word: str) -> str:
    flags = list(argument_parser()._option_string_actions)
    name = word.partition("=")[0]
    if any(flag.startswith(name) for flag in flags):
        return f"{word} comes after the KEY VALUE options; flags go first, so put it before them"
    return f"{word} stands among the KEY VALUE options and is no flag either.{nearest(name, flags)}"
