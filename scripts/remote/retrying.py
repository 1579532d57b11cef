"""When to repeat a request, for downloads and language models."""

from __future__ import annotations

import email.utils
import time


class TryAgain(Exception):
    """A request failed for a reason that may pass; ``wait`` is in seconds, if the server says."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks to wait; number or date (RFC 9110)."""
    if value is None:
        return None
    # float() takes "nan" and "inf": no time can be made of the first, callers bound the second.
    try:
        return max(0.0, float(value)) if value.strip().lower() != "nan" else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
