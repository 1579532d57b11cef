"""``train.py --help-config [KEY]``: print what config keys mean and which values they take."""

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
    """Print default, allowed values and meaning of a key or a section; empty stands for all keys.

    Case does not matter. Returns the exit status: 0, or 2 with the nearest name on stderr if there
    is no such key or section.
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
    except BrokenPipeError:  # piped into head, or into a pager that was quit
        # Python flushes stdout once more on exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _described(key: str, default: Any, option: Option | None) -> str:
    option = option or Option(default)
    meaning = option.meaning or "no description"
    text = f"{meaning}; allowed: {allowed_words(option.rule)}"
    return "\n".join([f"{key} {default!r}", *textwrap.wrap(text, WIDTH, **_INDENT)])


_INDENT: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "    "}
