"""An endpoint on this machine, and scripts/describe.py asking it."""

import functools
import json

import pytest

from scripts import describe
from scripts.describing.endpoint import ChatEndpoint
from tests.scripts.describing.fake_endpoint import serve

NAMES = ["blue jay", "wren", "Sea_or Lake"]
KEY = "sk-very-secret-0123456789"
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


@pytest.fixture(autouse=True)
def _no_key_and_no_proxy(monkeypatch):
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint():
    with serve() as running:
        yield running


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the command waited, without waiting them."""
    seconds: list[float] = []
    quick = functools.partial(ChatEndpoint, sleep=seconds.append)
    monkeypatch.setattr(describe, "ChatEndpoint", quick)
    return seconds


@pytest.fixture
def run(tmp_path, endpoint, waits, capsys):
    """Flags -> (exit code, what was printed, what was complained); writes ``out.json``."""
    (tmp_path / "names.txt").write_text("\n".join([*NAMES, ""]))
    file = tmp_path / "out.json"

    def call(*flags: str, url: str = endpoint.url) -> tuple[int, str, str]:
        words = ["--classnames", str(tmp_path / "names.txt"), "--output", str(file)]
        words += ["--base-url", url, "--model", "some-model", *flags]
        code = describe.main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    call.file = file
    return call


def content(run) -> dict[str, list[str]]:
    return json.loads(run.file.read_text())
