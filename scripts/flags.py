"""Refuse flags that have no effect next to the other flags of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def refuse_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, flags: Sequence[str], where: str
) -> None:
    """Refuse flags that have no effect, even if they are given their default value.

    Args:
        parser: The program's parser.
        argv: Its arguments; None takes the process's.
        flags: Flags, with their dashes.
        where: Ends the message: "does nothing <where>".
    """
    unset = object()
    actions = [action for action in parser._actions if action.option_strings]
    # argparse fills in no default where the namespace has a value already.
    empty = argparse.Namespace(**dict.fromkeys((action.dest for action in actions), unset))
    found = parser.parse_args(argv, empty)
    for action in actions:
        flag = next((name for name in action.option_strings if name in flags), None)
        if flag is not None and getattr(found, action.dest) is not unset:
            raise ValueError(f"{flag} does nothing {where}; leave it out")
