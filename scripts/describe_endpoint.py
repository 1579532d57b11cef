"""An OpenAI-compatible chat endpoint, as scripts/describe.py asks it."""

from __future__ import annotations

import email.utils
import http.client
import json
import random
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

from scripts.describe_text import Messages, ModelError

LARGEST_ANSWER = 4 * 2**20  # bytes
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

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Not followed: urllib then raises the status as an error."""


class ChatEndpoint:
    """An OpenAI-compatible endpoint, ``POST <base URL>/chat/completions``.

    Args:
        base_url: Up to and with ``/v1``.
        model: Name that the endpoint gives the model.
        key: Sent as a bearer token; empty for none. It appears in no message.
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
        self.spacing, self.timeout, self.retries = 60.0 / requests_per_minute, timeout, retries
        self.clock, self.sleep = clock, sleep
        self.requests = 0
        self._next_start = clock()
        self._reached = False
        self._opener = urllib.request.build_opener(_NoRedirect)
        if self.key and self.url.startswith("http:") and not _is_local(self.url):
            print(f"WARNING: {key_name} travels unencrypted to {self.url}", file=sys.stderr)

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
        raise ModelError(f"{self.url} failed {self.retries + 1} times: {outcome.reason}")

    def _wait(self, failure: _Retry, tried: int) -> None:
        if failure.wait is not None and failure.wait > LONGEST_WAIT:
            raise ModelError(
                f"{self.url}: {failure.reason}, and asks to wait {failure.wait:.0f} s. Run the "
                "same command then: what is written is kept"
            )
        # spread, so that several runs that failed together do not come back together
        backoff = min(2.0**tried * random.uniform(1.0, 1.25), LONGEST_BACKOFF)
        seconds = backoff if failure.wait is None else failure.wait
        print(f"{failure.reason}; again in {seconds:.0f} s", file=sys.stderr)
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
            return _Retry(f"connection lost: {type(error).__name__} {error}".rstrip())
        self._reached = True
        return read_completion(content)

    def _refused(self, error: urllib.error.HTTPError) -> _Retry:
        """What an error status means."""
        said = self._said(error)
        status = f"{error.code} {error.reason}" + (f" ({said})" if said else "")
        if error.code == 429 and "insufficient_quota" in said:
            raise ModelError(f"{self.url}: {status}; the account has no quota left")
        if error.code in TRANSIENT or error.code >= 500:
            return _Retry(status, retry_after(error.headers.get("Retry-After")))
        advice = "correct --base-url or --model"
        if error.code in (401, 403):
            state = "is not accepted" if self.key else "is not set"
            advice = f"the key in the environment variable {self.key_name} {state}"
        elif error.code == 404:
            advice = f"--base-url (it ends in /v1, as a rule) or --model {self.model!r} is unknown"
        elif 300 <= error.code < 400:
            target = self._scrub(str(error.headers.get("Location")))
            advice = f"it redirects to {target}; give the new address as --base-url"
        raise ModelError(f"{self.url}: {status}; {advice}")

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The message in an error's body, on one line and without the key."""
        try:
            text = error.read(LARGEST_ANSWER).decode("utf-8", "replace")
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
        return " ".join(self._scrub(text).split())[:300]

    def _scrub(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    def _unreachable(self, reason: Any) -> _Retry:
        """A connection that failed: for good if there never was one."""
        fatal = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
        if isinstance(reason, fatal) and not self._reached:
            raise ModelError(f"cannot reach {self.url}: {reason}; correct --base-url")
        return _Retry(f"no connection: {reason}")


def read_completion(content: bytes) -> str | _Retry:
    """The text in the body of a chat completion; empty if the model gave none."""
    try:
        message = json.loads(content)["choices"][0]["message"]
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        start = content[:80].decode("utf-8", "replace")
        return _Retry(f"no chat completion, is --base-url right? It begins {start!r}")
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
        ValueError: No http address, or one that holds a password.
    """
    parts = urllib.parse.urlsplit(base_url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("--base-url must not hold a name or a password; see --api-key-env")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ValueError(
            f"--base-url must be an address as https://api.example.org/v1, got {base_url!r}"
        )
    return base_url.rstrip("/").removesuffix("/chat/completions")


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
