"""Requests to a chat endpoint: retries, waits, the rate limit, errors and the key."""

import email.utils
import json
import socket
import threading
import time

import pytest

from scripts.describing.endpoint import ChatEndpoint, check_url
from scripts.describing.text import ModelError
from scripts.remote.retrying import retry_after
from tests.scripts.describing.conftest import KEY, MESSAGES, NAMES, content
from tests.scripts.describing.fake_endpoint import completion, sentences

GOOD = (200, {}, completion("fine"))


def test_too_many_requests_waits_as_long_as_it_is_told(run, endpoint, waits):
    endpoint.plan = [(429, {"Retry-After": "7"}, {"error": {"message": "slow down"}})]
    code, _, err = run()
    assert code == 0
    assert 7.0 in waits
    assert "429 Too Many Requests (slow down); again in 7 s" in err
    assert endpoint.asked()[:2] == ["blue jay", "blue jay"]


def test_server_errors_are_tried_again_with_growing_pauses(run, endpoint, waits):
    endpoint.plan = [(500, {}, b"oops"), (503, {}, b""), (502, {}, b"<html>")]
    code, _, err = run("--requests-per-minute", "1000000")
    assert code == 0
    pauses = [seconds for seconds in waits if seconds > 0.5]
    assert [1 <= p / 2**i <= 1.25 for i, p in enumerate(pauses)] == [True] * 3
    assert "500 Internal Server Error (oops)" in err
    assert list(content(run)) == NAMES


def test_a_server_that_stays_broken_ends_it_and_keeps_what_is_done(run, endpoint):
    endpoint.plan = [json.dumps(sentences("blue jay", 5)), *[(500, {}, b"")] * 3]
    code, _, err = run("--retries", "2")
    assert code == 1
    assert "failed 3 times: 500" in err
    assert list(content(run)) == ["blue jay"]


def test_a_wait_of_hours_ends_it(run, endpoint):
    endpoint.plan = [(429, {"Retry-After": "7200"}, {})]
    code, _, err = run()
    assert code == 1
    assert "asks to wait 7200 s" in err
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((404, {}, {"error": {"message": "no such model"}}), ["no such model", "'some-model'"]),
        ((400, {}, {"error": "bad request"}), ["400", "bad request", "--base-url or --model"]),
        ((429, {}, {"error": {"message": "Quota", "code": "insufficient_quota"}}), ["no quota"]),
        ((307, {"Location": "http://x.example/v1"}, b""), ["redirects to http://x.example/v1"]),
        ((302, {"Location": "/elsewhere"}, b""), ["redirects to /elsewhere"]),
    ],
)
def test_errors_that_waiting_does_not_mend_stop_at_once(run, endpoint, reply, said):
    endpoint.plan = [reply]
    code, _, err = run()
    assert code == 1
    assert err.startswith("error: ")
    for part in said:
        assert part in err
    assert len(endpoint.requests) == 1
    assert not run.file.exists()


def test_the_key_is_sent_and_never_shown(run, endpoint, monkeypatch, tmp_path):
    endpoint.key = KEY
    code, _, err = run()
    assert code == 1
    assert "401" in err
    assert "environment variable OPENAI_API_KEY is not set" in err
    monkeypatch.setenv("MY_KEY", KEY + "x")
    code, out, err = run("--api-key-env", "MY_KEY")
    assert code == 1
    assert "variable MY_KEY is not accepted" in err
    # the server repeats the header in its message
    assert "Bearer ***" in err
    assert KEY not in out + err
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    code, out, err = run("--api-key-env", "MY_KEY")
    assert code == 0
    assert endpoint.requests[-1]["authorization"] == f"Bearer {KEY}"
    assert KEY not in out + err
    assert not any(KEY in file.read_text() for file in tmp_path.iterdir())


def test_a_key_that_cannot_be_one_is_not_shown(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    code, _, err = run()
    assert code == 1
    assert "OPENAI_API_KEY holds no key" in err
    assert KEY not in err


def test_a_key_on_an_open_line_is_warned_of(capsys):
    ChatEndpoint("http://host.example/v1", "m", key=KEY)
    warned = capsys.readouterr().err
    assert "travels unencrypted to http://host.example/v1" in warned
    assert KEY not in warned
    ChatEndpoint("https://host.example/v1", "m", key=KEY)
    ChatEndpoint("http://127.0.0.1:1/v1", "m", key=KEY)
    assert capsys.readouterr().err == ""


def test_unreachable(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, _, err = run(url=f"http://127.0.0.1:{port}/v1")
    assert code == 1
    assert f"cannot reach http://127.0.0.1:{port}/v1/chat/completions" in err
    assert "--base-url" in err


def test_no_chat_completion_says_how_the_body_begins(run, endpoint):
    endpoint.plan = [(200, {}, b"<html>Welcome")] * 2
    code, _, err = run("--retries", "1")
    assert code == 1
    assert "no chat completion, is --base-url right? It begins '<html>Welcome'" in err


@pytest.mark.parametrize("body", [b"{}", b'{"choices": []}', b'[{"choices": 1}]', b"\xff", b""])
def test_other_bodies_are_tried_again(endpoint, body):
    endpoint.plan = [(200, {}, body), GOOD]
    assert ChatEndpoint(endpoint.url, "m", sleep=lambda _: None)(MESSAGES) == "fine"


@pytest.mark.parametrize(
    ("message", "text"),
    [(None, ""), ([{"type": "text", "text": "a"}, {"type": "x"}, {"text": "b"}], "ab"), (3, "")],
)
def test_contents_of_other_kinds(endpoint, message, text):
    endpoint.plan = [(200, {}, completion(message))]
    assert ChatEndpoint(endpoint.url, "m", sleep=lambda _: None)(MESSAGES) == text


def test_time_out_and_lost_connection_are_tried_again(endpoint, capsys):
    endpoint.gate = threading.Semaphore(0)
    model = ChatEndpoint(endpoint.url, "m", timeout=0.3, retries=1, sleep=lambda _: None)
    with pytest.raises(ModelError, match="failed 2 times: connection lost: TimeoutError"):
        model(MESSAGES)
    assert model.requests == 2
    endpoint.gate.release(100)
    endpoint.plan = [(200, {"Content-Length": "1000"}, b"cut"), GOOD]
    assert model(MESSAGES) == "fine"
    assert "connection lost: " in capsys.readouterr().err


def test_rate_limit_spaces_the_requests(endpoint):
    now, waited = [100.0], []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    endpoint.plan = [GOOD, GOOD, (500, {}, b""), GOOD, GOOD]
    model = ChatEndpoint(
        endpoint.url, "m", requests_per_minute=12, clock=lambda: now[0], sleep=sleep
    )
    model(MESSAGES)
    now[0] += 2.0  # what the caller does between two requests counts
    model(MESSAGES)
    assert waited == [0.0, 3.0]
    model(MESSAGES)
    # five seconds, the failure's pause and the rest of another five: a retry is a request too
    assert waited[2] == 5.0
    assert waited[3] + waited[4] == pytest.approx(5.0)
    assert now[0] == pytest.approx(115.0)


def test_retry_after_header():
    assert retry_after(None) is None
    assert retry_after("2.5") == 2.5
    assert retry_after("-1") == 0.0
    assert retry_after("soon") is None
    assert retry_after("nan") is None
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < retry_after(later) <= 30
    assert retry_after(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0.0


def test_addresses():
    assert check_url("https://x.example/v1/") == "https://x.example/v1"
    assert check_url("https://x.example/v1/chat/completions") == "https://x.example/v1"
    for wrong in ("x.example/v1", "file:///etc/passwd", "https://", "https://x.example/v1?key=1"):
        with pytest.raises(ValueError, match="--base-url must be an address"):
            check_url(wrong)
    with pytest.raises(ValueError, match="must not hold a name or a password") as error:
        check_url(f"https://me:{KEY}@x.example/v1")
    assert KEY not in str(error.value)
