"""Serves the results page on this machine only, made again when runs finish."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dassl.prediction_file import PREDICTIONS_NAME
from scripts.jobs.protocols import RunKey

HOST = "127.0.0.1"  # logs and configs are nobody else's business
PORT = 8008
_RARELY = 5.0  # seconds between two looks at the folders: thousands of runs may lie on a slow disk
_UTF_8 = "charset=utf-8"
_RUN_FILES = {
    "result.json": f"application/json; {_UTF_8}",
    "identity.json": f"application/json; {_UTF_8}",
    PREDICTIONS_NAME: "application/gzip",
    "log.txt": f"text/plain; {_UTF_8}",
    "job.log": f"text/plain; {_UTF_8}",
}


class LivePage:
    """The newest page, made again when a result has come, gone or changed.

    Args:
        output: Folder of all runs.
        make: Returns the page as HTML for a version.
    """

    def __init__(self, output: Path, make: Callable[[str], str]) -> None:
        self.output, self._make = output, make
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._version = ""
        self._made: tuple[str, str] = ("", "")  # version and page

    def version(self) -> str:
        """Return a digest of which results there are, at most some seconds old."""
        with self._lock:
            if time.monotonic() - self._looked > _RARELY:
                self._version = self._digest()
                self._looked = time.monotonic()
            return self._version

    def page(self) -> str:
        """Return the page of the current version."""
        version = self.version()
        with self._lock:
            if self._made[0] != version:
                self._made = (version, self._make(version))
            return self._made[1]

    def _digest(self) -> str:
        digest = hashlib.sha256(b"1")
        for path in sorted(self.output.glob("*/*/*/shots_*/*/*/seed*")):
            try:
                status = (path / "result.json").stat()
                state = f"{status.st_mtime_ns} {status.st_size}"
            except OSError:  # at work, or just removed
                state = ""
            digest.update(f"{path}\n{state}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers for the page, its version, and the files of runs that the page links to."""

    server: PageServer

    def do_GET(self) -> None:
        """Answer a request; anything but the three kinds is not found."""
        way = unquote(urlsplit(self.path).path)
        if self.headers.get("Host", "").split(":")[0] not in (HOST, "localhost"):
            # Another site whose name was made to point here must not read the results.
            self.send_error(HTTPStatus.FORBIDDEN)
        elif way == "/":
            self._answer(self.server.live.page().encode("utf-8", "replace"), f"text/html; {_UTF_8}")
        elif way == "/version":
            self._answer(self.server.live.version().encode(), f"text/plain; {_UTF_8}")
        elif file := self._run_file(way):
            self._answer(file.read_bytes(), _RUN_FILES[file.name])
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _run_file(self, way: str) -> Path | None:
        """Return the file of a run that ``/output/...`` names; None for everything else."""
        parts = way.removeprefix("/output/").split("/")
        # A run's folder has a fixed form, which leaves no room for "..".
        if len(parts) != 8 or parts[-1] not in _RUN_FILES or ".." in parts:
            return None
        if RunKey.parse("/".join(parts[:-1])) is None:
            return None
        file = self.server.live.output.joinpath(*parts)
        return file if file.is_file() else None

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: an open page asks every few seconds."""


class PageServer(ThreadingHTTPServer):
    """A server of one live page on the loopback address."""

    daemon_threads = True

    def __init__(self, live: LivePage, port: int) -> None:
        self.live = live
        super().__init__((HOST, port), Handler)


def serve(live: LivePage, port: int) -> None:
    """Serve until Ctrl-C.

    Raises:
        ValueError: The port is taken, or not allowed.
    """
    try:
        server = PageServer(live, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--serve {port}: {reason}; name another port: --serve 8010") from None
    with server:
        print(f"http://{HOST}:{server.server_port}/ (Ctrl-C stops it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")
