"""A chat endpoint in a thread: answers by plan, and remembers what it was asked."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("broad", "pale", "dark", "narrow", "shiny", "rough", "soft", "curved", "flat", "tiny")


def sentences(name: str, count: int, first: int = 0) -> list[str]:
    """Acceptable sentences, others for every name and number."""
    kind = len(name) * 7 + sum(map(ord, name))
    return [
        f"{WORDS[(first + i) % 10]} parts numbered {kind} and {first + i} lie side by side."
        for i in range(count)
    ]


def completion(text: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def user_text(request: dict[str, Any]) -> str:
    return request["body"]["messages"][1]["content"]


def find(pattern: str, text: str) -> str:
    """The pattern's group in a text, empty if it is not there."""
    match = re.search(pattern, text)
    return match[1] if match else ""


class Endpoint:
    """What the server does and saw.

    ``plan`` holds replies to come: a text (the answer), or (status, headers, body) with a body of
    bytes or JSON; a status may be (number, reason). When it is empty, every request gets as many
    good sentences as it asks for.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.plan: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.key = ""
        self.gate: threading.Semaphore | None = None  # held requests, for a test that interrupts

    def asked(self) -> list[str]:
        """The class of every request."""
        return [find(r'The class is "(.*)"\.', user_text(request)) for request in self.requests]

    def reply(self, request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if self.key and request["authorization"] != f"Bearer {self.key}":
            said = f"Incorrect API key provided: {request['authorization']}"
            return 401, {}, {"error": {"message": said, "code": "invalid_api_key"}}
        if self.plan:
            planned = self.plan.pop(0)
            return (200, {}, completion(planned)) if isinstance(planned, str) else planned
        text = user_text(request)
        count = int(find(r"Write (\d+) different", text) or 1)
        first = len(re.findall(r"^- \w+ parts numbered", text, re.MULTILINE))
        return 200, {}, completion(json.dumps(sentences(self.asked()[-1], count, first)))


@contextlib.contextmanager
def serve() -> Iterator[Endpoint]:
    """Run an endpoint on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = {"path": self.path, "body": body}
            request["authorization"] = self.headers.get("Authorization")
            endpoint.requests.append(request)
            status, headers, content = endpoint.reply(request)
            if endpoint.gate is not None:
                endpoint.gate.acquire()
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(OSError):  # the client may be gone
                self.send_response(*(status if isinstance(status, tuple) else (status,)))
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        def do_GET(self) -> None:
            raise AssertionError("a redirect was followed")

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield endpoint
    finally:
        if endpoint.gate is not None:
            endpoint.gate.release(100)
        server.shutdown()
        server.server_close()
        thread.join()
