"""scripts/describe.py against an endpoint on this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import clip
from clip.prompts import described_prompts, fill
from scripts import describe
from scripts.describing.endpoint import ChatEndpoint
from tests.conftest import REPOSITORY
from tests.scripts.describing.conftest import NAMES, content
from tests.scripts.describing.fake_endpoint import sentences


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
