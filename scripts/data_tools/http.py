"""Download a file over HTTP so that it may be interrupted anywhere.

What has arrived lies in ``<name>.part``; ``<name>.part.json`` says of which file it is a part. The
next attempt, or the next start, asks for the rest only, and starts over where the server cannot
send a part or the file has changed. The final name appears when everything has arrived.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from tqdm import tqdm

from dassl.utils import read_json, write_json
from scripts.scrub import say

USER_AGENT = "Mozilla/5.0 (compatible; dataset download)"
CHUNK = 1 << 18
# Answers that another attempt may change; all others mean the next address.
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
DRIVE = re.compile(r"https://drive\.google\.com/file/d/([\w-]+)")
RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class FetchError(Exception):
    """A file cannot be had from an address; another one may have it."""


class LocalError(Exception):
    """This machine cannot take the file, whatever the address: disk full, no permission."""


class _TryAgain(Exception):
    """An attempt failed in a way that the next one may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Policy:
    """How stubborn a download is.

    Attributes:
        attempts: Attempts in a row without a single new byte, per address.
        wait: Seconds before the second; doubled for each one after it.
        longest_wait: Upper bound of that, and of what a server may ask for.
        timeout: Seconds without an answer or a byte that end an attempt.
    """

    attempts: int = 4
    wait: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 30.0


@dataclass
class Part:
    """What has arrived of a file.

    Attributes:
        path: Where it is.
        url: The address it comes from.
        validator: The server's ETag or Last-Modified, which another version would not share.
        total: Bytes of the whole file; None if the server did not say.
    """

    path: Path
    url: str
    validator: str = ""
    total: int | None = None

    @classmethod
    def of(cls, target: Path, url: str) -> Part:
        """Take up what an earlier attempt left, if it is of the same address."""
        part = cls(target.with_name(target.name + ".part"), url)
        with suppress(FileNotFoundError, ValueError, AttributeError, KeyError):
            note = read_json(part.note)
            if note.get("url") == url:
                part.validator, part.total = str(note["validator"]), note["total"]
        if not part.validator:
            part.discard()
        return part

    @property
    def note(self) -> Path:
        """The file beside it that says what it is a part of."""
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def discard(self) -> None:
        """Forget it all."""
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)
        self.validator, self.total = "", None

    def begin(self, validator: str, total: int | None) -> None:
        """Note what the bytes to come belong to, before the first of them."""
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
    """Download a file; what an earlier attempt left of it is kept.

    Args:
        url: http or https, or a file on Google Drive, which gdown knows how to ask for.
        target: Where it goes; its directory exists.
        policy: How often and how long to try.
        reserve: Called with the bytes still to come, as soon as they are known; raises
            ``LocalError`` if there is no room for them. Google Drive does not say.

    Raises:
        FetchError: The address does not have it, or every attempt failed.
        LocalError: The disk cannot take it.
    """
    if not url.startswith(("http://", "https://")):
        raise FetchError("only http and https addresses are followed")
    if match := DRIVE.match(url):
        held = target.with_name(target.name + ".drive")
        _patiently(lambda: _ask_drive(match[1], held), lambda: 0, policy, target.name)
        with on_disk():
            os.replace(held, target)
        return
    with on_disk():
        part = Part.of(target, url)
    _patiently(lambda: _attempt(part, policy, reserve), lambda: part.size, policy, target.name)
    with on_disk():
        os.replace(part.path, target)
        part.discard()


def _patiently(
    attempt: Callable[[], None], arrived: Callable[[], int], policy: Policy, name: str
) -> None:
    """Repeat an attempt until it succeeds or the policy's patience ends.

    Raises:
        FetchError: It did not succeed.
    """
    fruitless = 0
    while True:
        before = arrived()
        try:
            return attempt()
        except _TryAgain as reason:
            fruitless = 0 if arrived() > before else fruitless + 1
            if fruitless >= policy.attempts:
                raise FetchError(f"{reason} ({policy.attempts} attempts)") from reason
            wait = reason.wait or policy.wait * 2 ** max(fruitless - 1, 0)
            wait = min(wait, policy.longest_wait)
            say(f"  {name}: {reason}; again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)


def _ask_drive(identifier: str, target: Path) -> None:
    """Get a file from Google Drive, which may ask back before it gives it.

    Raises:
        _TryAgain: It was not all.
        FetchError: It is not public, or was asked for too often today.
        LocalError: The disk cannot take it.
    """
    # Imported when asked for: most fetches need it, checks do not.
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
    except Exception as error:  # gdown's own, and those of the libraries it uses
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise LocalError(str(error)) from error
        raise _TryAgain(f"Google Drive: {error or type(error).__name__}") from error
    if done is None or not target.is_file():  # gdown 5 says so in place of an error
        raise FetchError("Google Drive does not give it")


def _attempt(part: Part, policy: Policy, reserve: Callable[[int], None]) -> None:
    """Ask once for what is missing and take what comes.

    Raises:
        _TryAgain: It was not all, or not what was asked for.
        FetchError: The server will not give it.
        LocalError: The disk cannot take it.
    """
    have = part.size if part.validator else 0
    if have and have == part.total:
        return  # stopped between the last byte and the new name
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": part.validator}
    request = urllib.request.Request(part.url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=policy.timeout) as response:
            _receive(response, part, have, reserve)
    except urllib.error.HTTPError as error:
        error.close()
        _refused(error, part)
    except (OSError, http.client.HTTPException) as error:
        # URLError wraps what went wrong before an answer came.
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise FetchError(f"its certificate is not valid: {cause}") from error
        raise _TryAgain(f"no answer: {cause or type(cause).__name__}") from error


def _refused(error: urllib.error.HTTPError, part: Part) -> None:
    """Turn an error status into what it means for the next attempt."""
    reason = f"HTTP {error.code} {error.reason}"
    if error.code == 416:  # there is no such part: what is here is of another file
        with on_disk():
            part.discard()
        raise _TryAgain("the server has fewer bytes than are here; starting over") from error
    if error.code in TRANSIENT:
        raise _TryAgain(reason, _retry_after(error.headers)) from error
    raise FetchError(reason) from error


def _receive(
    response: http.client.HTTPResponse, part: Part, have: int, reserve: Callable[[int], None]
) -> None:
    """Append the body of an answer to what is there, or begin anew if it is the whole file."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise FetchError("a web page came instead of the file; the link is dead or needs a login")
    validator = _validator(headers)
    if response.status == 206:
        match = RANGE.fullmatch(headers.get("Content-Range", ""))
        total = int(match[3]) if match and match[3] != "*" else part.total
        # A server that heeded If-Range may leave Last-Modified out.
        same = validator in ("", part.validator) and part.total in (None, total)
        if not match or int(match[1]) != have or not same:
            with on_disk():
                part.discard()
            raise _TryAgain("the file has changed since the last attempt; starting over")
    else:
        have, total = 0, _length(headers)
        with on_disk():
            part.discard()
            part.begin(validator, total)
    if total is not None:
        reserve(total - have)
    _append(response, part, have, total)
    if total is not None and part.size != total:
        raise _TryAgain(f"the connection ended after {part.size:,} of {total:,} bytes")


def _append(response: http.client.HTTPResponse, part: Part, have: int, total: int | None) -> None:
    name = part.path.name.removesuffix(".part")
    # disable=None: no bar where nobody watches.
    bar = tqdm(desc=f"  {name}", total=total, initial=have, unit="B", unit_scale=True, disable=None)
    with bar, on_disk(), open(part.path, "ab") as file:
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _read(response: http.client.HTTPResponse) -> bytes:
    """Whatever has come, so that little is lost with the connection."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(f"the connection broke: {error or type(error).__name__}") from error


@contextmanager
def on_disk() -> Iterator[None]:
    """Tell errors of this machine's disk from those of the network, which are ``OSError`` too.

    Raises:
        LocalError: In place of any ``OSError`` of the block.
    """
    try:
        yield
    except OSError as error:
        raise LocalError(str(error)) from error


def _validator(headers: Message) -> str:
    """What tells this version of the file from others; a weak ETag does not tell enough."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _length(headers: Message) -> int | None:
    length = headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _retry_after(headers: Message) -> float:
    """Seconds that a server asks to wait: a number or a date."""
    text = headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
