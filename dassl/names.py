"""The one check of a name against those that exist; its error names the nearest. No PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["check_availability", "nearest"]


def nearest(name: str, candidates: Iterable[str], most: int = 1) -> str:
    """Return ``" Did you mean 'X'?"`` with up to ``most`` candidates; empty if none is close.

    The leading space lets it follow a sentence in an error message.
    """
    # Compared without case: "lightra" must find LightRA.
    folded = {candidate.casefold(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.casefold(), folded, n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(folded[match]) for match in close)}?" if close else ""


def check_availability(
    requested: str, available: Iterable[str], what: str = "", where: str = ""
) -> str:
    """Return a name, or refuse it if it is not among the available ones.

    Args:
        requested: Name asked for.
        available: Names that exist.
        what: Flag, config key or registry that it was asked for with, for the error.
        where: Where the available names come from, for the error.

    Raises:
        ValueError: The name is not available; the message lists what is and the nearest matches.
    """
    names = list(available)
    if requested in names:
        return requested
    raise ValueError(
        f"{what}{': ' if what else ''}{requested!r} is not available."
        f"{nearest(str(requested), names, most=3)} "
        f"Available{where}: {', '.join(map(str, names)) or '(nothing)'}"
    )
