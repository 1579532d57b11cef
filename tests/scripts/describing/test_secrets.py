"""scripts/describe.py with a server that repeats the key, or talks to the terminal."""

import base64
import json
import traceback

import pytest

from scripts import describe
from scripts.describing.endpoint import ChatEndpoint, ModelError, check_url, read_key
from tests.scripts.describing.conftest import KEY, MESSAGES, content
from tests.scripts.describing.fake_endpoint import completion, sentences

BASIC = base64.b64encode(f"user:{KEY}".encode()).decode()
PERCENT = "".join(f"%{ord(c):02X}" for c in KEY)
JSON = "".join(f"\\u{ord(c):04x}" for c in KEY)
WRITTEN = (KEY, BASIC, PERCENT, JSON, KEY.upper(), KEY.encode().hex())
REPLIES = {
    "reason": lambda key: ((418, f"no {key}"), {}, b""),
    "reason to be repeated": lambda key: ((503, f"no {key}"), {}, b""),
    "body": lambda key: (400, {}, f"no {key}".encode()),
    "message": lambda key: (400, {}, b'{"error": {"message": "no %s"}}' % key.encode()),
    "long body": lambda key: (400, {}, b" " * 290 + f"no {key}".encode()),
    "no completion": lambda key: (200, {}, b'{"headers": "%s"}' % key.encode()),
    "no completion, cut": lambda key: (200, {}, f"<html>{'-' * 60}{key}".encode()),
    "redirect": lambda key: (307, {"Location": f"http://h/?k={key}"}, b""),
    "redirect's path": lambda key: (302, {"Location": f"http://h/{key}/v1"}, b""),
    "redirect nowhere": lambda key: (302, {"Location": f"http://[{key}"}, b""),
    "redirect to a file": lambda key: (302, {"Location": f"file:///{key}"}, b""),
    "status line": lambda key: ((99999, key), {}, b""),
}


@pytest.fixture
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def leaked(text: str) -> list[str]:
    """Pieces of the key, in any of its forms, that a text holds."""
    pieces = [w[i : i + 10] for w in WRITTEN for i in range(len(w) - 9)]
    return [p for p in pieces if p in text and p not in base64.b64encode(b"user:aaaaa").decode()]


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("where", REPLIES)
@pytest.mark.usefixtures("_key")
def test_a_key_that_the_server_repeats(run, endpoint, where, written):
    endpoint.plan = [REPLIES[where](written)] * 2
    code, out, err = run("--retries", "1")
    assert code == 1
    assert len(err.splitlines()) <= 2
    assert err.splitlines()[-1].startswith("error: http://127.0.0.1:")
    assert not leaked(out + err)
    endpoint.plan = [REPLIES[where](written)]
    with pytest.raises(ModelError) as error:
        ChatEndpoint(endpoint.url, "m", key=KEY, retries=0)(MESSAGES)
    assert not leaked("".join(traceback.format_exception(error.value)))


@pytest.mark.parametrize("written", [KEY, BASIC, PERCENT, KEY[:14]])
@pytest.mark.usefixtures("_key")
def test_a_key_in_an_answer_is_in_no_file(run, endpoint, written):
    good = sentences("blue jay", 5)
    endpoint.plan = [json.dumps([f"Its wings read {written} in blue.", *good[:4]])]
    assert run()[0] == 0
    assert not leaked(run.file.read_text())
    assert content(run)["blue jay"][:4] == good[:4]
    assert not leaked(json.dumps(endpoint.requests[1]["body"]))  # which says what was wrong
    assert '<hidden> in blue.\\": it has markup' in json.dumps(endpoint.requests[1]["body"])


def test_an_answer_is_readable_and_can_be_written(run, endpoint):
    odd = ["Blue \x1b[31mwings\x1b[0m and\x07 a \u202etail.", "Half a bird \ud83d sits\u200b here."]
    endpoint.plan = [completion(json.dumps([*odd, *sentences("blue jay", 3)]))]
    endpoint.plan = [(200, {}, endpoint.plan[0])]
    assert run()[0] == 0
    assert content(run)["blue jay"][:2] == ["Blue wings and a tail.", "Half a bird sits here."]


@pytest.mark.parametrize(
    "reply",
    [
        ((503, "a\x1b[2J\x9b31m\x1b]0;t\x07\rdone"), {}, b""),
        (400, {}, "a\x1b[2J\r\nerror: \u202edone\x00\x9b1m\u2028".encode()),
        (400, {}, b'{"error": "a\\u001b[2J\\n\\u009b1m\\u202e\\ud800done"}'),
        (200, {}, b"\xff\xfea\x1b[2J\r\ndone"),
        (302, {"Location": "/a\x1b[2J\x9b31mdone"}, b""),
        (400, {}, b"a done " + b"x" * 10**6),
    ],
)
def test_a_server_that_talks_to_the_terminal(run, endpoint, reply):
    endpoint.plan = [reply]
    code, _, err = run("--retries", "0")
    assert code == 1
    assert err.startswith("error: http://127.0.0.1:")
    assert err.endswith("\n")
    assert err[:-1].isprintable()  # one line, too
    assert "a" in err
    assert "done" in err
    assert len(err) < 600


def test_class_names_of_a_stranger(endpoint, waits, tmp_path, capsys):
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["wren\x1b[2J\n[9/9] all is well"]))
    flags = ["--classnames", str(names), "--output", str(tmp_path / "o.json")]
    assert describe.main([*flags, "--base-url", endpoint.url, "--model", "m"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "[1/1] wren [9/9] all is well: 5 of 5 sentences"


@pytest.mark.parametrize(
    "url",
    [
        f"https://x.example/v1?api_key={KEY}",
        f"https://x.example/v1?{KEY}",
        f"https://x.example/v1#{KEY}",
        f"https://x.example:{KEY}/v1",
        f"https://me:{KEY}@x.example/v1",
        f"https://{KEY}@x.example/v1",
        f"https://me:/{KEY}@x.example/v1",
        f"me:{KEY}@x.example/v1",
        f"x.example/v1?api_key={KEY}",
        f"ftp://me:{KEY}@x.example/?{KEY}",
        f"https://[x.example/?api_key={KEY}",
        f"https://x.example/v1?a\n{KEY}",
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_an_address_that_holds_a_key_is_not_shown(run, monkeypatch, url, known):
    """Whether or not it is the key of the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY if known else "sk-another-0123456789")
    code, out, err = run(url=url)
    assert code == 1
    assert err.startswith("error: --base-url must ")
    assert "--api-key-env" in err
    assert not leaked(out + err)


def test_an_address_is_shown_as_far_as_it_helps():
    with pytest.raises(
        ValueError, match="without \\? and #, got 'https://x.example/v1\\?\\*\\*\\*'"
    ):
        check_url(f"https://x.example/v1?key={KEY}")
    for wrong in ("https://x.example/a b", "https://x.example/\x1b[2J", "https://x.example/\u732b",
                  "https://x.example:0/", "https://x.example:99999/v1"):  # fmt: skip
        with pytest.raises(ValueError, match="--base-url must be an address") as error:
            check_url(wrong)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "flags",
    [
        ["--api-key", KEY],
        [f"--api-key={KEY}"],
        ["--key", KEY],
        ["--base_url", f"https://x.example/v1?api_key={KEY}"],
        [KEY],
    ],
)
def test_flags_that_there_are_not(flags, capsys):
    with pytest.raises(SystemExit):
        describe.main(["--classnames", "x", *flags])
    err = capsys.readouterr().err
    assert "--api-key-env" in err
    assert not leaked(err)
    if flags[0].startswith("--"):
        assert f"there is no {flags[0].partition('=')[0]};" in err


def test_a_key_in_place_of_its_variables_name(run, monkeypatch):
    code, out, err = run("--api-key-env", KEY)
    assert code == 1
    assert "--api-key-env takes the name of an environment variable" in err
    assert not leaked(out + err)
    monkeypatch.setenv("my-key", KEY)  # odd, but there
    assert read_key("my-key") == KEY
    assert read_key("NOT_SET") == ""


def test_a_proxys_password(run, monkeypatch):
    for proxy in (f"http://me:{KEY}@127.0.0.1:1", f"http:me:{KEY}@h", f"http://me:{PERCENT}@[h"):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "")
        code, out, err = run("--retries", "0")
        assert code == 1
        assert err.startswith("error: ")
        assert not leaked(out + err)
