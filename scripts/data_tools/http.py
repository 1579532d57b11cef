"""Download a file over HTTP; an interrupted download is resumed with a Range request.

Bytes received so far lie in ``<name>.part``, and ``<name>.part.json`` records the URL, ETag and
length of the file they belong to. The next attempt, or the next start of the program, requests only
the rest; it starts over if the server does not support ranges or the file has changed meanwhile.
The final name appears when the file is complete.

pooch is not used: it discards an interrupted or unverified file, takes a login page for the data,
and follows neither mirrors nor Retry-After. What it would save is less than the code around it.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from dassl.utils import read_json, write_json
from scripts.remote.retrying import TryAgain, retry_after
from scripts.remote.scrub import say

USER_AGENT = "Mozilla/5.0 (compatible; dataset download)"
CHUNK = 1 << 18
# Temporary errors: the request is repeated. After any other status the next URL is tried.
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
DRIVE = re.compile(r"https://drive\.google\.com/file/d/([\w-]+)")
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class FetchError(Exception):
    """A URL does not deliver the file; another one may.

    Network errors become this one where they arise. What remains an ``OSError`` is a fault of this
    machine's disk, and trying the next URL would not help.
    """


@dataclass(frozen=True)
class Policy:
    """How often and how long a download is retried; times in seconds."""

    attempts: int = 4  # consecutive attempts per URL without a new byte before it is given up
    wait: float = 1.0  # before the second attempt; doubled before each further one
    longest_wait: float = 60.0  # upper bound, also for what a server asks for
    timeout: float = 30.0  # without a response or a byte, after which an attempt has failed


@dataclass
class Part:
    """The bytes of a file received so far."""

    path: Path
    url: str  # where they come from
    validator: str = ""  # the server's ETag or Last-Modified, which changes with the file
    total: int | None = None  # bytes of the whole file; None if the server did not say

    @classmethod
    def of(cls, target: Path, url: str) -> Part:
        """Load what an earlier attempt left; it is discarded if it came from another URL."""
        part = cls(target.with_name(target.name + ".part"), url)
        with suppress(FileNotFoundError, ValueError, AttributeError, KeyError):
            note = read_json(part.note)
            if note.get("url") == url:
                part.validator, part.total = str(note["validator"]), note["total"]
        # Without a validator nobody can tell whether the file is still the same.
        if not part.validator:
            part.discard()
        return part

    @property
    def note(self) -> Path:
        """The JSON file that says which file the bytes belong to."""
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def discard(self) -> None:
        """Delete the bytes and the note."""
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)
        self.validator, self.total = "", None

    def begin(self, validator: str, total: int | None) -> None:
        """Start over; the note is written first, so that a kill never leaves bytes without it."""
        self.discard()
        self.validator, self.total = validator, total
        record = {"url": self.url, "validator": validator, "total": total}
        write_json(record, str(self.note))


def download(
    url: str,
    target: Path,
    policy: Policy,
    *,
    reserve: Callable[[int], None] = lambda missing: None,
) -> None:
    """Download a file, or the rest of it if an earlier attempt was interrupted.

    Args:
        url: http, https, or a Google Drive page, which gdown downloads.
        target: Destination, in an existing directory.
        policy: How often and how long to try.
        reserve: Called with the number of bytes still to come, once it is known; raises
            ``OSError`` if they do not fit. Google Drive does not tell it.
    """
    if not url.startswith(("http://", "https://")):
        raise FetchError("only http and https addresses are followed")
    if match := DRIVE.match(url):
        held = target.with_name(target.name + ".drive")
        _retry(lambda: _download_from_drive(match[1], held), lambda: 0, policy, target.name)
        os.replace(held, target)
        return
    part = Part.of(target, url)
    _retry(lambda: _request_rest(part, policy, reserve), lambda: part.size, policy, target.name)
    os.replace(part.path, target)
    part.discard()


def _retry(
    attempt: Callable[[], None], received: Callable[[], int], policy: Policy, name: str
) -> None:
    """Repeat an attempt until it succeeds; only attempts without a new byte are counted."""
    fruitless = 0
    while True:
        before = received()
        try:
            return attempt()
        except TryAgain as reason:
            fruitless = 0 if received() > before else fruitless + 1
            if fruitless >= policy.attempts:
                raise FetchError(f"{reason} ({policy.attempts} attempts)") from reason
            wait = reason.wait or policy.wait * 2 ** max(fruitless - 1, 0)
            wait = min(wait, policy.longest_wait)
            say(f"  {name}: {reason}; again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)


def _download_from_drive(identifier: str, target: Path) -> None:
    """Download a file from Google Drive; gdown resumes it and confirms Drive's page of warnings."""
    # Imported here, as only fetches from Drive need it.
    import gdown
    from gdown.exceptions import FileURLRetrievalError

    quiet = not sys.stderr.isatty()
    try:
        done = gdown.download(
            id=identifier, output=str(target), quiet=quiet, use_cookies=False, resume=True
        )
    except FileURLRetrievalError as error:
        raise FetchError(
            f"Google Drive does not give it: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # gdown raises its own errors and those of its libraries
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise
        raise TryAgain(f"Google Drive: {error or type(error).__name__}") from error
    if done is None or not target.is_file():  # gdown 5 returns None instead of raising
        raise FetchError("Google Drive does not give it")


def _request_rest(part: Part, policy: Policy, reserve: Callable[[int], None]) -> None:
    """Send one request for the missing bytes and append what arrives."""
    have = part.size if part.validator else 0
    if have and have == part.total:
        return  # an earlier run was stopped between the last byte and the renaming
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": part.validator}
    request = urllib.request.Request(part.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=policy.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        _raise_for_status(error, part)
    except (OSError, http.client.HTTPException) as error:
        # URLError wraps whatever failed before the response began.
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise FetchError(f"its certificate is not valid: {cause}") from error
        raise TryAgain(f"no answer: {cause or type(cause).__name__}") from error
    with response:
        _receive(response, part, have, reserve)


def _raise_for_status(error: urllib.error.HTTPError, part: Part) -> NoReturn:
    """Decide from an error status whether to repeat the request."""
    reason = f"HTTP {error.code} {error.reason}"
    if error.code == 416:  # range not satisfiable: the file is now shorter than our part
        part.discard()
        raise TryAgain("the server has fewer bytes than are here; starting over") from error
    if error.code in TRANSIENT:
        raise TryAgain(reason, retry_after(error.headers.get("Retry-After"))) from error
    raise FetchError(reason) from error


def _receive(
    response: http.client.HTTPResponse, part: Part, have: int, reserve: Callable[[int], None]
) -> None:
    """Append a partial response (206) to what is there, or start over with a whole one (200)."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise FetchError("a web page came instead of the file; the link is dead or needs a login")
    validator = _validator(headers)
    if response.status == 206:
        match = RANGE.fullmatch(headers.get("Content-Range", ""))
        total = int(match[3]) if match and match[3] != "*" else part.total
        # A server that honours If-Range may omit Last-Modified.
        same = validator in ("", part.validator) and part.total in (None, total)
        if not match or int(match[1]) != have or not same:
            part.discard()
            raise TryAgain("the file has changed since the last attempt; starting over")
    else:
        length = headers.get("Content-Length", "")
        have, total = 0, int(length) if length.isdecimal() else None
        part.begin(validator, total)
    if total is not None:
        reserve(total - have)
    _append(response, part, have, total)
    if total is not None and part.size != total:
        raise TryAgain(f"the connection ended after {part.size:,} of {total:,} bytes")


def _append(response: http.client.HTTPResponse, part: Part, have: int, total: int | None) -> None:
    name = part.path.name.removesuffix(".part")
    # disable=None hides the bar unless stderr is a terminal.
    bar = tqdm(desc=f"  {name}", total=total, initial=have, unit="B", unit_scale=True, disable=None)
    with bar, open(part.path, "ab") as file:
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        # read1 returns what has arrived; read would lose a half-full chunk if the connection broke.
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise TryAgain(f"the connection broke: {error or type(error).__name__}") from error


def _validator(headers: Message) -> str:
    """ETag or Last-Modified; a weak ETag (``W/"1"``) may stay the same when bytes change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")
