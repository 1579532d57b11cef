"""Printing what the keys of a config mean and may be: ``train.py --help-config [KEY]``."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Any

from dassl.config.identity import flatten
from dassl.config.merge import full_keys
from dassl.config.schema import Option, allowed_words
from dassl.names import nearest
from scripts.training.config import config_options, default_config

WIDTH = 100


def print_config_help(wanted: str) -> int:
    """Print keys, defaults, what is allowed and what it means.

    Args:
        wanted: A key such as ``OPTIM.LR``, a section such as ``OPTIM`` or ``TRAINER.LightRA``;
            empty for all of them. Case does not matter.

    Returns:
        Exit status: 0, or 2 if there is no such key or section, with the nearest on stderr.
    """
    cfg = default_config()
    defaults = flatten(cfg)
    options = config_options(cfg)
    prefix = wanted.strip().rstrip(".").upper()
    chosen = {
        key: value
        for key, value in defaults.items()
        if not prefix or key.upper() == prefix or key.upper().startswith(f"{prefix}.")
    }
    if not chosen:
        hint = nearest(wanted, full_keys(cfg))
        print(f"--help-config: no config key or section {wanted!r}.{hint}", file=sys.stderr)
        return 2
    try:
        for key, value in chosen.items():
            print(_described(key, value, options.get(key)))
        sys.stdout.flush()
    except BrokenPipeError:  # into head, or a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _described(key: str, default: Any, option: Option | None) -> str:
    option = option or Option(default)
    meaning = option.meaning or "no description"
    text = f"{meaning}; allowed: {allowed_words(option.rule)}"
    return "\n".join([f"{key} {default!r}", *textwrap.wrap(text, WIDTH, **_INDENT)])


_INDENT: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    "}
