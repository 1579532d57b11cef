"""A web server on this machine that misbehaves as told, and archives to serve."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Page:
    """What is served below a path.

    The lists are for the first requests, one entry each; afterwards everything is well.
    """

    data: bytes = b""
    etag: str = '"1"'
    modified: str = ""
    ranges: bool = True
    heeds_if_range: bool = True
    length: bool = True  # whether Content-Length is sent
    kind: str = "application/octet-stream"
    redirect: str = ""
    status: list[int | tuple[int, str]] = field(default_factory=list)  # or with a reason
    headers: dict[str, str] = field(default_factory=dict)  # sent with those
    cut: list[int] = field(default_factory=list)  # bytes after which the connection is dropped
    stall: float = 0.0  # seconds before each thousand bytes


@dataclass
class Request:
    path: str
    range: str | None
    if_range: str | None


class Server:
    """``pages`` may be changed at any time; ``requests`` has what was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        self.started = threading.Event()  # the first thousand bytes of a body are out

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def add(self, path: str, data: bytes, **values: Any) -> str:
        self.pages[path] = Page(data, **values)
        return self.url(path)

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    @contextmanager
    def running(self) -> Iterator[Server]:
        owner = self

        class Handler(_Handler):
            server_state = owner

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        state, path = self.server_state, self.path.lstrip("/")
        asked = Request(path, self.headers["Range"], self.headers["If-Range"])
        state.requests.append(asked)
        page = state.pages.get(path)
        if page is None:
            return self.send_error(404)
        if page.redirect:
            self.send_response(302)
            self.send_header("Location", page.redirect)
            return self.end_headers()
        if page.status:
            status = page.status.pop(0)
            self.send_response(*(status if isinstance(status, tuple) else (status,)))
            for name, value in page.headers.items():
                self.send_header(name, value)
            return self.end_headers()
        self._send(page, *self._part(page, asked))

    def _part(self, page: Page, asked: Request) -> tuple[int, int]:
        """Status and first byte of the answer."""
        current = asked.if_range in (None, page.etag, page.modified)
        if not asked.range or not page.ranges or (page.heeds_if_range and not current):
            return 200, 0
        start = int(asked.range.removeprefix("bytes=").rstrip("-"))
        return (416, start) if start >= len(page.data) else (206, start)

    def _send(self, page: Page, status: int, start: int) -> None:
        body = page.data[start:] if status != 416 else b""
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.modified:
            self.send_header("Last-Modified", page.modified)
        if page.length:
            self.send_header("Content-Length", str(len(body)))
        if status == 206:
            last, total = len(page.data) - 1, len(page.data)
            self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        self.end_headers()
        body = body[: page.cut.pop(0)] if page.cut else body
        with contextlib.suppress(ConnectionError):  # who asked has gone
            for first in range(0, len(body), 1000):
                self.wfile.write(body[first : first + 1000])
                self.wfile.flush()
                self.server_state.started.set()
                time.sleep(page.stall)


def tar_of(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def md5_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def content(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
