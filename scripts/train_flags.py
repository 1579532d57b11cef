"""The words behind ``train.py``: CoOp's flags, then KEY VALUE options.

No PyTorch here: ``--help`` and a mistyped flag are answered at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Sequence

from dassl.config.merge import shortened
from dassl.config.paths import path_flag
from dassl.utils.registry import nearest

__all__ = ["CONFIG_KEYS", "argument_parser", "read_options"]

# The config key that a flag stands for.
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
}


def argument_parser() -> argparse.ArgumentParser:
    """CoOp's flags; every default is None, so that only flags that were given count."""
    parser = argparse.ArgumentParser(description="Adapt a vision-language model, or evaluate it.")
    _add_config_flags(parser)
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
    _add_predict_flags(parser)
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


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that stand for a config key or name a file of keys."""
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


def _add_predict_flags(parser: argparse.ArgumentParser) -> None:
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


def read_options(words: Sequence[str], keys: Collection[str]) -> list[str]:
    """Check the form of the trailing KEY VALUE options, before their keys and values.

    Args:
        words: What follows the flags; ``--`` may be among them.
        keys: Full keys of the config's sections and values.

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
        if equals and name in keys:
            raise ValueError(f"{key!r}: a key and its value are two words: {name} {right}")
        if value is None or ("." in value and value in keys):
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


def _late_flag(word: str) -> str:
    flags = list(argument_parser()._option_string_actions)
    name = word.partition("=")[0]
    if any(flag.startswith(name) for flag in flags):
        return f"{word} comes after the KEY VALUE options; flags go first, so put it before them"
    return f"{word} stands among the KEY VALUE options and is no flag either.{nearest(name, flags)}"
