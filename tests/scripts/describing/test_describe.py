"""scripts/describe.py against an endpoint on this machine."""

from __future__ import annotations

import email.utils
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import clip
from clip.prompts import described_prompts, fill
from scripts import describe
from scripts.describing.endpoint import ChatEndpoint, check_url, retry_after
from scripts.describing.text import ModelError
from tests.conftest import REPOSITORY
from tests.scripts.describing.fake_endpoint import completion, sentences, serve

NAMES = ["blue jay", "wren", "Sea_or Lake"]
KEY = "sk-very-secret-0123456789"
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
GOOD = (200, {}, completion("fine"))


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


def test_good_answers_make_a_file_that_lightra_reads(run, endpoint):
    code, out, _ = run()
    assert code == 0
    assert content(run) == {name: sentences(name.lower().replace("_", " "), 5) for name in NAMES}
    assert run.file.read_text().startswith('{\n "blue jay": [\n  "')
    assert "3 of 3 classes have 5 sentences; 3 requests" in out
    prompts = described_prompts(["Blue_Jay", "wren", "sea or lake"], "A photo of a {},", run.file)
    assert [len(texts) for texts in prompts] == [5, 5, 5]
    assert clip.tokenize(prompts[0], truncate=False).shape == (5, 77)


def test_what_is_asked(run, endpoint):
    run("--about", "birds seen from a boat", "--template", "A bird, the {}:", "--sentences", "2")
    first = endpoint.requests[0]
    assert first["path"] == "/v1/chat/completions"
    assert first["authorization"] is None
    assert first["body"].keys() == {"model", "messages"}
    assert first["body"]["model"] == "some-model"
    system, user = first["body"]["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    for part in (
        'class is "blue jay"',
        "The pictures: birds seen from a boat.",
        "told from: wren, sea or lake.",
        '"A bird, the blue jay:"',
        "JSON list of 2 strings",
    ):
        assert part in user["content"]
    assert endpoint.asked() == ["blue jay", "wren", "sea or lake"]


def test_temperature_is_passed_on_only_if_given(run, endpoint):
    run("--temperature", "0.5")
    assert endpoint.requests[0]["body"]["temperature"] == 0.5


def test_bad_answers_are_asked_for_again_with_what_was_wrong(run, endpoint):
    endpoint.plan = [
        "I'm sorry, but I cannot help with that.",
        json.dumps(["Round wings are here.", "two", "Round wings are here.", "x " * 80]),
        '["Long grey legs stand in water.", "A yellow eye looks up.", "Feathers of snow wh',
    ]
    code, _, _ = run("--sentences", "4")
    assert code == 0
    assert content(run)["blue jay"] == [
        "Round wings are here.",
        "Long grey legs stand in water.",
        "A yellow eye looks up.",
        *sentences("blue jay", 1, 0),
    ]
    second, third, fourth = (r["body"]["messages"][1]["content"] for r in endpoint.requests[1:4])
    assert "it refuses" in second
    for part in (
        "- Round wings are here.",
        '"two.": it has 1 words',
        "more than 77",
        "it is there already",
        "Write 3 different",
    ):
        assert part in third
    assert "Write 1 different" in fourth


def test_a_class_that_stays_short_is_reported_and_topped_up_later(run, endpoint):
    endpoint.plan = ["nothing to say", json.dumps(["Blue wings with black bars."]), "?", "?"]
    code, _, err = run("--attempts", "2", "--sentences", "2")
    assert code == 1
    # the second class got two answers without a sentence, and is not in the file
    assert list(content(run)) == ["blue jay", "Sea_or Lake"]
    assert content(run)["blue jay"] == ["nothing to say.", "Blue wings with black bars."]
    assert "incomplete: wren: 0 of 2 sentences; last answer: " in err
    endpoint.requests.clear()
    assert run("--sentences", "3")[0] == 0
    assert endpoint.asked() == ["blue jay", "wren", "sea or lake"]
    assert content(run)["blue jay"][:2] == ["nothing to say.", "Blue wings with black bars."]
    assert [len(texts) for texts in content(run).values()] == [3, 3, 3]


def test_what_is_there_is_kept_and_not_asked_for(run, endpoint):
    mine = {"other": ["kept."], "sea or LAKE": ["a.", "b."], "WREN": ["c."], "Wren": ["d."]}
    run.file.write_text(json.dumps(mine))
    code, out, _ = run("--sentences", "2")
    assert code == 0
    assert endpoint.asked() == ["blue jay"]
    assert content(run) == {**mine, "blue jay": sentences("blue jay", 2)}
    assert "1 requests" in out
    assert run("--sentences", "2")[0] == 0
    assert len(endpoint.requests) == 1
    run("--sentences", "3")
    assert content(run)["sea or LAKE"][:2] == ["a.", "b."]
    assert content(run)["WREN"][:2] == ["c.", "d."]
    assert "Wren" not in content(run)


def test_a_file_of_another_form_is_left_alone(run, endpoint):
    run.file.write_text('{"wren": "one text"}')
    code, _, err = run()
    assert code == 1
    assert "must have the form" in err
    assert run.file.read_text() == '{"wren": "one text"}'
    assert not endpoint.requests


def test_the_same_sentence_for_every_class_is_refused(run, endpoint):
    """Boilerplate with another name in it tells no class from another."""
    endpoint.plan = [
        json.dumps([f"A picture with a {name} in it."]) for name in ("blue jay", "wren")
    ]
    assert run("--sentences", "1")[0] == 0
    assert content(run)["blue jay"] == ["A picture with a blue jay in it."]
    assert content(run)["wren"] == sentences("wren", 1)


def test_a_model_that_never_says_anything_usable_is_given_up(run, endpoint, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"class {i}" for i in range(20)))
    endpoint.plan = ["I cannot do that."] * 40
    code, _, err = run("--attempts", "2")
    assert code == 1
    assert "error: 5 classes in a row without one usable sentence" in err
    assert len(endpoint.requests) == 10
    assert not run.file.exists()


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


def test_dry_run_asks_nobody_and_writes_nothing(run, endpoint):
    run.file.write_text(json.dumps({"WREN": ["a.", "b."]}))
    before = run.file.read_bytes()
    code, out, _ = run("--dry-run", "--sentences", "2", "--requests-per-minute", "1")
    assert code == 0
    assert "1 of 3 classes have 2 sentences" in out
    assert "2 requests, one per class; 8 at most" in out
    assert "that takes 2 min or more" in out
    assert 'The class is "blue jay"' in out
    assert "--- system" in out
    assert not endpoint.requests
    assert run.file.read_bytes() == before
    words = ["--classnames", str(run.file), "--output", str(run.file), "--dry-run"]
    assert describe.main(words) == 0, "neither endpoint nor model is needed"


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_in_the_middle_it_goes_on_where_it_was(endpoint, tmp_path, stop):
    """A process of its own, killed while the third class is being asked for."""
    names = [f"bird {i}" for i in range(5)]
    (tmp_path / "names.json").write_text(json.dumps(names))
    file = tmp_path / "out.json"
    command = [sys.executable, str(REPOSITORY / "scripts/describe.py")]
    command += ["--classnames", str(tmp_path / "names.json"), "--output", str(file)]
    command += ["--base-url", endpoint.url, "--model", "m", "--requests-per-minute", "6000"]
    endpoint.gate = threading.Semaphore(2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(endpoint.requests) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(stop)
    finally:
        process.wait(30)
    assert process.returncode == -stop
    assert list(json.loads(file.read_text())) == names[:2]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    endpoint.gate.release(100)
    assert describe.main([*command[2:], "--sentences", "5"]) == 0
    assert endpoint.asked() == [*names[:3], *names[2:]]
    assert json.loads(file.read_text()) == {name: sentences(name, 5) for name in names}


def test_interruption_from_the_keyboard_is_one_line(run, endpoint, monkeypatch):
    original, calls = ChatEndpoint.__call__, []

    def interrupted(self, messages):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, messages)

    monkeypatch.setattr(ChatEndpoint, "__call__", interrupted)
    code, _, err = run()
    assert code == 130
    assert "the same command goes on from here" in err
    assert list(content(run)) == ["blue jay"]


def test_class_names_of_a_dataset_come_from_its_reader(
    endpoint, waits, shapes_root, tmp_path, capsys
):
    out = tmp_path / "forms.json"
    words = ["--dataset", "shapes_forms", "--root", shapes_root, "--output", str(out)]
    words += ["--base-url", endpoint.url, "--model", "m", "--sentences", "1"]
    assert describe.main(words) == 0
    assert list(json.loads(out.read_text())) == endpoint.asked()
    assert endpoint.asked()[0] == "circle"
    assert fill("A photo of a {},", "circle") in str(endpoint.requests[0]["body"])
    words[1] = "ShapesForms"
    assert describe.main(words) == 0, "by its name, too"


def test_a_users_own_dataset_by_its_config(tmp_path, touch_images, capsys):
    config = tmp_path / "birds.yaml"
    config.write_text("DATASET: {NAME: Folder, DIR: birds, PROMPT_TEMPLATE: 'a bird, {}:'}\n")
    words = ["--dataset", str(config), "--root", str(tmp_path), "--dry-run"]
    assert describe.main(words) == 0
    out = capsys.readouterr().out
    assert f"{REPOSITORY / 'prompts/birds.json'}: 0 of 2 classes" in out
    assert '"a bird, blue jay:"' in out


@pytest.fixture
def touch_images(tmp_path):
    for name in ("blue_jay", "wren"):
        for number in range(3):
            path = tmp_path / "birds" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dataset", "eurosad"], "did you mean 'eurosat'"),
        (["--dataset", "dtd", "--root", "/nowhere"], "dtd-r1.0.1.tar.gz"),
        (["--classnames", "none.txt", "--output", "o"], "--classnames: no file"),
        (["--classnames", "NAMES"], "--classnames needs --output"),
        (["--classnames", "NAMES", "--output", "o", "--template", "a photo"], "needs {}"),
        (["--classnames", "NAMES", "--output", "o"], "either --base-url with --model, or --local"),
        (["--classnames", "NAMES", "--output", "o", "--base-url", "http://h/v1"], "--model"),
        (["--classnames", "EMPTY", "--output", "o", "--dry-run"], "holds no name"),
        (["--classnames", "BROKEN", "--output", "o", "--dry-run"], "is not valid JSON"),
        (["--classnames", "NUMBERS", "--output", "o", "--dry-run"], "must hold texts"),
    ],
)
def test_wrong_flags_are_explained(tmp_path, capsys, flags, said):
    for name, text in (
        ("NAMES", "a cat"),
        ("EMPTY", "\n"),
        ("BROKEN.json", "{"),
        ("NUMBERS.json", "[1]"),
    ):
        path = tmp_path / name
        path.write_text(text)
        flags = [str(path) if flag == path.stem else flag for flag in flags]
    flags = [str(tmp_path / flag) if flag == "o" else flag for flag in flags]
    assert describe.main(flags) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said.lower() in err.lower()


@pytest.mark.parametrize(
    "flags", [("--sentences", "0"), ("--requests-per-minute", "0"), ("--retries", "-1")]
)
def test_numbers_out_of_range(flags, capsys):
    with pytest.raises(SystemExit):
        describe.main(["--classnames", "x", *flags])
    assert "must be" in capsys.readouterr().err
