"""An OpenAI-compatible chat endpoint, as scripts/describe.py asks it."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.describing.text import MOST_CHARACTERS, Messages, ModelError
from scripts.scrub import plain, redact, redact_address, say, scrub

LARGEST_ANSWER = 4 * 2**20  # bytes
LARGEST_ERROR = 2**16  # bytes
QUOTED = 300  # characters of what a server says that are shown
HIDDEN = "<hidden>"  # in place of the key in an answer: markup, which no sentence may have
LONGEST_BACKOFF = 60.0  # seconds
LONGEST_WAIT = 300.0  # seconds that a server may ask for
TRANSIENT = (408, 409, 425, 429)


@dataclass(frozen=True)
class _Retry:
    """Why a request failed this time, and how long the server asks to wait."""

    reason: str
    wait: float | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would carry the key to another host."""

    def http_error_302(self, *args: Any, **kwargs: Any) -> None:
        """Not followed, nor looked at: urllib then raises the status as an error."""

    http_error_301 = http_error_302
    http_error_303 = http_error_302
    http_error_307 = http_error_302
    http_error_308 = http_error_302


class ChatEndpoint:
    """An OpenAI-compatible endpoint, ``POST <base URL>/chat/completions``.

    Args:
        base_url: Up to and with ``/v1``.
        model: Name that the endpoint gives the model.
        key: Sent as a bearer token; empty for none. It appears in no message and no answer,
            whatever the endpoint does with it.
        key_name: Environment variable the key is from, for messages.
        requests_per_minute: At most so many requests are started, evenly spaced.
        timeout: Seconds without a byte after which a request has failed.
        retries: Times that a request is repeated after 429, 5xx, a time-out or a lost connection.
        temperature: Of sampling; None leaves it to the endpoint.
        clock: Seconds, for the spacing.
        sleep: Waits.

    Raises:
        ValueError: An address or a key of a form that cannot be.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str = "",
        key_name: str = "OPENAI_API_KEY",
        requests_per_minute: float = 60.0,
        timeout: float = 120.0,
        retries: int = 5,
        temperature: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = check_url(base_url) + "/chat/completions"
        self.model, self.temperature = model, temperature
        self.key, self.key_name = check_key(key, key_name), key_name
        self._secrets = [self.key, *proxy_passwords()]
        self.spacing, self.timeout, self.retries = 60.0 / requests_per_minute, timeout, retries
        self.clock, self.sleep = clock, sleep
        self.requests = 0
        self._next_start = clock()
        self._reached = False
        self._opener = urllib.request.build_opener(_NoRedirect)
        if self.key and self.url.startswith("http:") and not _is_local(self.url):
            self._say(f"WARNING: {key_name} travels unencrypted to {self.url}")

    def __call__(self, messages: Messages) -> str:
        """The answer's text; empty if the model gave none.

        Raises:
            ModelError: The endpoint refuses, or fails again and again.
        """
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        outcome = self._request(json.dumps(body).encode())
        for tried in range(self.retries):
            if isinstance(outcome, str):
                return outcome
            self._wait(outcome, tried)
            outcome = self._request(json.dumps(body).encode())
        if isinstance(outcome, str):
            return outcome
        raise self._error(f"failed {self.retries + 1} times: {outcome.reason}")

    def _say(self, line: str) -> None:
        say(line, self._secrets, file=sys.stderr)

    def _error(self, trouble: str) -> ModelError:
        return ModelError(scrub(f"{self.url}: {trouble}", self._secrets))

    def _wait(self, failure: _Retry, tried: int) -> None:
        if failure.wait is not None and failure.wait > LONGEST_WAIT:
            raise self._error(
                f"{failure.reason}, and asks to wait {failure.wait:.0f} s. Run the same command "
                "then: what is written is kept"
            )
        # spread, so that several runs that failed together do not come back together
        backoff = min(2.0**tried * random.uniform(1.0, 1.25), LONGEST_BACKOFF)
        seconds = backoff if failure.wait is None else failure.wait
        self._say(f"{failure.reason}; again in {seconds:.0f} s")
        self.sleep(seconds)

    def _request(self, body: bytes) -> str | _Retry:
        """One request: the answer's text, or why it has to be repeated."""
        self.sleep(max(0.0, self._next_start - self.clock()))
        self._next_start = self.clock() + self.spacing
        self.requests += 1
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                content = response.read(LARGEST_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                self._reached = True
                return self._refused(error)
        except urllib.error.URLError as error:
            return self._unreachable(error.reason)
        except (OSError, http.client.HTTPException) as error:
            return _Retry(f"connection lost: {type(error).__name__} {self._quote(error)}".rstrip())
        except ValueError as error:  # of urllib, about an address or a proxy's
            trouble = f"cannot be asked: {self._quote(error)}; correct --base-url or the proxy's"
            raise self._error(trouble) from None
        self._reached = True
        answer = read_completion(content)
        if answer is None:
            start = self._quote(content, 80)
            return _Retry(f"no chat completion, is --base-url right? It begins {start!r}")
        return redact(answer[:MOST_CHARACTERS], self._secrets, HIDDEN)

    def _refused(self, error: urllib.error.HTTPError) -> _Retry:
        """What an error status means."""
        said = self._said(error)
        status = f"{error.code} {self._quote(error.reason)}" + (f" ({said})" if said else "")
        if error.code == 429 and "insufficient_quota" in said:
            raise self._error(f"{status}; the account has no quota left") from None
        if error.code in TRANSIENT or error.code >= 500:
            return _Retry(status, retry_after(error.headers.get("Retry-After")))
        advice = "correct --base-url or --model"
        if error.code in (401, 403):
            state = "is not accepted" if self.key else "is not set"
            advice = f"the key in the environment variable {self.key_name} {state}"
        elif error.code == 404:
            advice = f"--base-url (it ends in /v1, as a rule) or --model {self.model!r} is unknown"
        elif 300 <= error.code < 400:
            target = self._quote(redact_address(plain(str(error.headers.get("Location")))))
            advice = f"it redirects to {target}; give the new address as --base-url"
        raise self._error(f"{status}; {advice}") from None

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The message in an error's body, fit to be shown."""
        try:
            text = error.read(LARGEST_ERROR).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return ""
        try:
            inner = json.loads(text)["error"]
            parts = (
                [inner.get("message"), inner.get("code")] if isinstance(inner, dict) else [inner]
            )
            text = " ".join(str(part) for part in parts if part)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        return self._quote(text)

    def _quote(self, said: Any, most: int = QUOTED) -> str:
        """What a server or an exception says, fit to be shown: bytes, or what has a text."""
        text = said[:LARGEST_ERROR].decode("utf-8", "replace") if isinstance(said, bytes) else said
        # Cut behind the scrubbing, which would not know a piece of the key
        return " ".join(scrub(str(text), self._secrets, LARGEST_ERROR).split())[:most]

    def _unreachable(self, reason: Any) -> _Retry:
        """A connection that failed: for good if there never was one."""
        fatal = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
        if isinstance(reason, fatal) and not self._reached:
            trouble = f"cannot reach {self.url}: {self._quote(reason)}; correct --base-url"
            raise ModelError(scrub(trouble, self._secrets)) from None
        return _Retry(f"no connection: {self._quote(reason)}")


def read_completion(content: bytes) -> str | None:
    """The text in a chat completion; empty if the model gave none, None if it is something else."""
    try:
        message = json.loads(content)["choices"][0]["message"]
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if isinstance(text, list):  # parts, of which some are texts
        text = "".join(str(p.get("text") or "") for p in text if isinstance(p, dict))
    return text if isinstance(text, str) else ""


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date (RFC 9110)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if value.strip().lower() != "nan" else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def check_url(base_url: str) -> str:
    """The address without a slash at its end.

    Raises:
        ValueError: No http address, or one that holds a password, a query or a fragment, which
            may be a key: the message does not show them.
    """
    if "@" in base_url:
        raise ValueError("--base-url must not hold a name or a password; see --api-key-env")
    try:
        parts = urllib.parse.urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = usable and parts.path.isascii() and plain(base_url) == base_url
    except ValueError:  # brackets, or a port that is no number
        usable = False
    if not usable or re.search(r"[?#\s]", base_url):
        raise ValueError(
            "--base-url must be an address as https://api.example.org/v1, without ? and #, got "
            f"{redact_address(plain(base_url))!r}; a key is given by --api-key-env"
        )
    return base_url.rstrip("/").removesuffix("/chat/completions")


def proxy_passwords() -> list[str]:
    """What the proxies' environment variables hold that is nobody's business."""
    users = [url.rpartition("@")[0].split("//")[-1] for url in urllib.request.getproxies().values()]
    return [*users, *(user.partition(":")[2] for user in users)]


def read_key(name: str) -> str:
    """The key in an environment variable; empty if it is not set.

    Raises:
        ValueError: The name looks as if it were the key itself. The message does not show it.
    """
    if name not in os.environ and not re.fullmatch(r"[A-Z_][A-Z\d_]*", name):
        raise ValueError(
            "--api-key-env takes the name of an environment variable, OPENAI_API_KEY by default, "
            "and none of the given name is set (not shown, in case it is the key)"
        )
    return os.environ.get(name, "")


def check_key(key: str, name: str) -> str:
    """The key without space around it.

    Raises:
        ValueError: It cannot stand in a header. The message does not show it.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"the environment variable {name} holds no key: it has odd characters")
    return key


def _is_local(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
