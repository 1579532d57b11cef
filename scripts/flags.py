"""Which flags a command line gives, to refuse those that would do nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def refuse_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, flags: Sequence[str], where: str
) -> None:
    """Refuse flags that do nothing beside the others, whatever value they are given.

    Args:
        parser: Of the program.
        argv: Its arguments; None takes the process's.
        flags: Flags, with their dashes.
        where: Beside what they do nothing, for the message.

    Raises:
        ValueError: One of them was given.
    """
    unset = object()
    actions = [action for action in parser._actions if action.option_strings]
    # A value that is there already keeps argparse from filling in a default.
    empty = argparse.Namespace(**dict.fromkeys((action.dest for action in actions), unset))
    found = parser.parse_args(argv, empty)
    for action in actions:
        flag = next((name for name in action.option_strings if name in flags), None)
        if flag is not None and getattr(found, action.dest) is not unset:
            raise ValueError(f"{flag} does nothing {where}; leave it out")
