"""A chat endpoint that speaks OpenAI's protocol: OpenAI, vLLM, Ollama, ``transformers serve``.

The openai client is not used. It would replace no more than the POST in ``_request``: its own
retries are silent, do not keep to the rate limit and give up on a wait above two minutes, and it
reads a response of any size.
"""

from __future__ import annotations

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
from typing import Any, NoReturn

from scripts.describing.text import MOST_CHARACTERS, Messages, ModelError
from scripts.remote.retrying import TryAgain, retry_after
from scripts.remote.scrub import plain, redact, redact_address, say, scrub

LARGEST_ANSWER = 4 * 2**20  # bytes
LARGEST_ERROR = 2**16  # bytes
QUOTED = 300  # characters of a server's message that are shown
HIDDEN = "<hidden>"  # replaces the key in an answer; as markup it makes the sentence unusable
LONGEST_BACKOFF = 60.0  # seconds
LONGEST_WAIT = 300.0  # seconds; if a server asks for more, the program ends
TRANSIENT = (408, 409, 425, 429)  # statuses that may pass, as may all from 500 on


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would carry the key to another host."""

    def http_error_302(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, so that urllib raises the status as an error."""

    http_error_301 = http_error_302
    http_error_303 = http_error_302
    http_error_307 = http_error_302
    http_error_308 = http_error_302


class ChatEndpoint:
    """A language model behind ``POST <base URL>/chat/completions``.

    Args:
        base_url: URL up to and including ``/v1``.
        model: The model's name at the endpoint.
        key: Sent as a bearer token; empty for none. It is masked in every message and answer, as
            an endpoint may repeat it.
        key_name: Environment variable that holds the key, for messages.
        requests_per_minute: Upper bound; requests are evenly spaced, retries included.
        timeout: Seconds without a byte after which a request has failed.
        retries: Repetitions after 429, 5xx, a time-out or a lost connection.
        temperature: Sampling temperature; None leaves it to the endpoint.
        clock: Returns seconds; replaced in tests, as is ``sleep``.
        sleep: Waits for seconds.
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
        """Return the answer's text; empty if the model gave none."""
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        data = json.dumps(body).encode()
        for tried in range(self.retries):
            try:
                return self._request(data)
            except TryAgain as failure:
                self._wait(failure, tried)
        try:
            return self._request(data)
        except TryAgain as failure:
            raise self._error(f"failed {self.retries + 1} times: {failure}") from None

    def _say(self, line: str) -> None:
        say(line, self._secrets, file=sys.stderr)

    def _error(self, trouble: str) -> ModelError:
        return ModelError(scrub(f"{self.url}: {trouble}", self._secrets))

    def _wait(self, failure: TryAgain, tried: int) -> None:
        """Wait as long as the server asks, or else with exponential backoff."""
        if failure.wait is not None and failure.wait > LONGEST_WAIT:
            raise self._error(
                f"{failure}, and asks to wait {failure.wait:.0f} s. Run the same command "
                "then: what is written is kept"
            ) from None
        # Random, so that runs which failed together do not retry together.
        backoff = min(2.0**tried * random.uniform(1.0, 1.25), LONGEST_BACKOFF)
        seconds = backoff if failure.wait is None else failure.wait
        self._say(f"{failure}; again in {seconds:.0f} s")
        self.sleep(seconds)

    def _request(self, body: bytes) -> str:
        """Send one request when its turn has come; return the answer's text."""
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
                self._raise_for_status(error)
        except urllib.error.URLError as error:
            self._raise_unreachable(error.reason)
        except (OSError, http.client.HTTPException) as error:
            trouble = f"connection lost: {type(error).__name__} {self._quote(error)}"
            raise TryAgain(trouble.rstrip()) from None
        except ValueError as error:  # urllib raises it on a malformed URL of the proxy
            trouble = f"cannot be asked: {self._quote(error)}; correct --base-url or the proxy's"
            raise self._error(trouble) from None
        self._reached = True
        answer = read_completion(content)
        if answer is None:
            start = self._quote(content, 80)
            raise TryAgain(f"no chat completion, is --base-url right? It begins {start!r}")
        return redact(answer[:MOST_CHARACTERS], self._secrets, HIDDEN)

    def _raise_for_status(self, error: urllib.error.HTTPError) -> NoReturn:
        """Decide from an error status whether to repeat the request, or what the user can do."""
        said = self._said(error)
        status = f"{error.code} {self._quote(error.reason)}" + (f" ({said})" if said else "")
        if error.code == 429 and "insufficient_quota" in said:
            raise self._error(f"{status}; the account has no quota left") from None
        if error.code in TRANSIENT or error.code >= 500:
            raise TryAgain(status, retry_after(error.headers.get("Retry-After"))) from None
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
        """The message in the body of an error, scrubbed."""
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
        """What a server or an exception says (bytes or anything with a text), scrubbed."""
        text = said[:LARGEST_ERROR].decode("utf-8", "replace") if isinstance(said, bytes) else said
        # Scrub first, then cut: half of a key would not be recognised.
        return " ".join(scrub(str(text), self._secrets, LARGEST_ERROR).split())[:most]

    def _raise_unreachable(self, reason: Any) -> NoReturn:
        """Give up if there never was a connection; one that worked before may come back."""
        fatal = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
        if isinstance(reason, fatal) and not self._reached:
            trouble = f"cannot reach {self.url}: {self._quote(reason)}; correct --base-url"
            raise ModelError(scrub(trouble, self._secrets)) from None
        raise TryAgain(f"no connection: {self._quote(reason)}") from None


def read_completion(content: bytes) -> str | None:
    """The text of a chat completion; empty if there is none, None if it is no completion."""
    try:
        message = json.loads(content)["choices"][0]["message"]
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if isinstance(text, list):  # content parts, not all of which are texts
        text = "".join(str(p.get("text") or "") for p in text if isinstance(p, dict))
    return text if isinstance(text, str) else ""


def check_url(base_url: str) -> str:
    """Return an http URL without a slash at its end, if nothing in it may hold a key.

    A password, query or fragment may, so the message does not show them.
    """
    if "@" in base_url:
        raise ValueError("--base-url must not hold a name or a password; see --api-key-env")
    try:
        parts = urllib.parse.urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = usable and parts.path.isascii() and plain(base_url) == base_url
    except ValueError:  # unmatched brackets, or a port that is no number
        usable = False
    if not usable or re.search(r"[?#\s]", base_url):
        raise ValueError(
            "--base-url must be an address as https://api.example.org/v1, without ? and #, got "
            f"{redact_address(plain(base_url))!r}; a key is given by --api-key-env"
        )
    return base_url.rstrip("/").removesuffix("/chat/completions")


def proxy_passwords() -> list[str]:
    """Users and passwords in the environment variables of proxies, which no message may show."""
    users = [url.rpartition("@")[0].split("//")[-1] for url in urllib.request.getproxies().values()]
    return [*users, *(user.partition(":")[2] for user in users)]


def read_key(name: str) -> str:
    """Return the key in an environment variable; empty if it is not set.

    A name that looks like the key itself is refused without showing it.
    """
    if name not in os.environ and not re.fullmatch(r"[A-Z_][A-Z\d_]*", name):
        raise ValueError(
            "--api-key-env takes the name of an environment variable, OPENAI_API_KEY by default, "
            "and none of the given name is set (not shown, in case it is the key)"
        )
    return os.environ.get(name, "")


def check_key(key: str, name: str) -> str:
    """Return the key without surrounding space, if a header can hold it; no message shows it."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"the environment variable {name} holds no key: it has odd characters")
    return key


def _is_local(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
