"""Flags of scripts that would do nothing are refused, also with the value they have by default."""

import pytest

from scripts import data, describe, run

NAMES = ["--classnames", "names.txt", "--output", "out.json"]
LOCAL = ["--local", "model"]
ENDPOINT = ["--base-url", "http://localhost:1/v1", "--model", "m"]


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ([*NAMES, *LOCAL, "--root", "data"], "--root"),
        ([*NAMES, *LOCAL, "--model", "m"], "--model"),
        ([*NAMES, *LOCAL, "--api-key-env", "OPENAI_API_KEY"], "--api-key-env"),
        ([*NAMES, *LOCAL, "--requests-per-minute", "60"], "--requests-per-minute"),
        ([*NAMES, *LOCAL, "--retries", "0"], "--retries"),
        ([*NAMES, *LOCAL, "--timeout", "120"], "--timeout"),
        ([*NAMES, *ENDPOINT, "--device", "auto"], "--device"),
        ([*NAMES, *ENDPOINT, "--seed", "1"], "--seed"),
    ],
)
def test_describe(capsys, words, flag):
    assert describe.main(words) == 1
    assert f"error: {flag} does nothing beside --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (run.main, ["--protocol", "few_shot", "--datasets", "shapes", "--dry-run", "--no-report"],
         "--no-report does nothing beside --dry-run"),
        (data.main, ["check", "--datasets", "shapes", "--workers", "2"],
         "--workers 2 does nothing without --full"),
    ],
)  # fmt: skip
def test_run_and_data(capsys, main, words, said):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
