"""Make untrusted text fit to be printed: messages of servers, names of files in archives.

An escape sequence could move the cursor over other lines or rename the window, a line break could
fake a line of ours, and a server may repeat the key that it was sent. So whatever may hold such
text is printed by :func:`say`, or passes :func:`scrub` on its way into an error.
"""

from __future__ import annotations

import base64
import html
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TextIO

LONGEST = 2000  # characters of a line
MASK = "***"
# Parts of a secret from this length on are hidden. OpenAI shows 8 characters of a refused key.
STRETCH = 10
SHORT = 8  # below that a secret may be a common word: hidden only whole, and in its own case
SHORTEST = 4  # below that it is no secret: people give "x" to servers that want some key

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, movements
    # Titles, links.
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
)
# One character as a URL, JSON, Python or HTML writes it, possibly encoded twice.
_CHARACTER = re.compile(
    r"%(?:25)*(?P<percent>[0-9a-f]{2})"
    r"|\\+(?:u(?P<u>[0-9a-f]{4})|x(?P<x>[0-9a-f]{2}))"
    r"|(?:&amp;|&)(?:amp;)*(?P<entity>#\d{1,7};|#x[0-9a-f]{1,6};|[a-z]{2,8};)"
    r"|(?P<plain>.)",
    re.IGNORECASE | re.DOTALL,
)
_LOWER = str.maketrans({chr(c): chr(c + 32) for c in range(ord("A"), ord("Z") + 1)})


def say(text: str, secrets: Iterable[str] = (), *, file: TextIO | None = None) -> None:
    """Print a scrubbed line, by default to standard output."""
    print(scrub(text, secrets), file=file or sys.stdout, flush=True)


def scrub(text: str, secrets: Iterable[str] = (), longest: int = LONGEST) -> str:
    """Return a text on one line, without invisible characters and secrets, cut to ``longest``."""
    line = redact(plain(text), secrets)
    return line if len(line) <= longest else line[: longest - 3] + "..."


def plain(text: str) -> str:
    """Return a text on one line without anything that a terminal obeys instead of showing it.

    Removed are escape sequences, control characters, marks that change the direction of writing
    or have no width, and lone surrogates, which no file takes; line breaks and tabs become spaces.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = []
    for character in _ESCAPES.sub("", text):
        category = unicodedata.category(character)
        if character in "\t\n\v\f\r\x85" or category in ("Zl", "Zp"):
            kept.append(" ")
        elif category not in ("Cc", "Cf", "Cs"):
            kept.append(character)
    return "".join(kept)


def redact(text: str, secrets: Iterable[str], mask: str = MASK) -> str:
    r"""Hide secrets, and long parts of them, however they are written.

    Upper or lower case, percent-encoded, as ``\u0041``, ``\x41`` or ``&#65;``, as hex digits, in
    base64 (as in HTTP's Basic authentication), or with spaces in between. Secrets of fewer than 4
    characters are ignored.
    """
    forms = {form for secret in secrets for form in _forms(secret)}
    if not forms:
        return text
    units = list(_units(text))
    letters = "".join(letter for letter, _, _ in units)
    lowered = letters.translate(_LOWER)
    hidden = bytearray(len(text))
    for form in forms:
        exact = len(form) < SHORT
        wanted, among = (form, letters) if exact else (form.translate(_LOWER), lowered)
        stretch = min(STRETCH, len(wanted))
        for first in range(len(wanted) - stretch + 1):
            part = wanted[first : first + stretch]
            at = among.find(part)
            while at >= 0:
                start, end = units[at][1], units[at + stretch - 1][2]
                hidden[start:end] = b"\1" * (end - start)
                at = among.find(part, at + 1)
    pieces, behind = [], 0
    for run in re.finditer(rb"\x01+", hidden):
        pieces += [text[behind : run.start()], mask]
        behind = run.end()
    return "".join([*pieces, text[behind:]])


def redact_address(url: str) -> str:
    """Mask the parts of a URL that may hold a key: user, password, query, fragment, odd port."""
    shown = re.sub(r"^([a-z][a-z\d+.-]*://)?.*@", rf"\1{MASK}@", url, flags=re.I | re.DOTALL)
    shown = re.sub(r"([?#]).+", rf"\1{MASK}", shown, flags=re.DOTALL)
    return re.sub(
        r"^((?:[a-z][a-z\d+.-]*://)?[^/:[\]]*:)(?!\d+(?:/|$))[^/]+", rf"\1{MASK}", shown, flags=re.I
    )


def _units(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield (character, start, end) of each decoded character, except spaces and backslashes."""
    for match in _CHARACTER.finditer(text):
        kind, value = match.lastgroup, match[match.lastgroup or 0]
        letter = value
        if kind == "entity":
            letter = html.unescape(f"&{value}")
        elif kind != "plain":
            letter = chr(int(value, 16))
        if letter == "\\" or letter.isspace():
            continue
        if len(letter) == 1:
            yield letter, match.start(), match.end()
        else:  # no such entity
            yield from ((text[i], i, i + 1) for i in range(match.start(), match.end()))


def _forms(secret: str) -> set[str]:
    """Return a secret as it may occur among :func:`_units`: plain, in hex and in base64."""
    written = "".join(letter for letter, _, _ in _units(secret))
    if len(written) < SHORTEST:
        return set()
    content = secret.encode("utf-8", "surrogateescape")
    forms = {written, content.hex()}
    for before in range(3):  # base64 depends on the number of bytes before the secret, modulo 3
        digits = base64.b64encode(bytes(before) + content + bytes(3)).decode()
        # Only the digits that do not depend on the bytes before and after.
        own = digits[-(-before * 8 // 6) : (before + len(content)) * 8 // 6]
        forms |= {own, own.replace("+", "-").replace("/", "_")}
    return forms
