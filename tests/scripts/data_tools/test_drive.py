"""Files on Google Drive, which gdown asks for; here a stand-in takes its place."""

import errno
import inspect

import gdown
import pytest
import requests
from gdown.exceptions import FileURLRetrievalError

from scripts.data_tools.http import FetchError, Policy, download

DATA = b"data" * 1000
QUICK = Policy(attempts=3, wait=0.001, longest_wait=0.01)
DRIVE = "https://drive.google.com/file/d/1hyar-UivQ_36/view"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.json"


def answer(monkeypatch, *answers):
    """Let gdown do what the functions do, one per call; return its arguments."""
    calls, left = [], list(answers)

    def fake(**values):
        calls.append(values)
        return left.pop(0)(values["output"])

    monkeypatch.setattr(gdown, "download", fake)
    return calls


def give(output):
    with open(output, "wb") as file:
        file.write(DATA)
    return output


def raising(error):
    def act(output):
        raise error

    return act


def test_google_drive_is_asked_through_gdown(target, monkeypatch):
    calls = answer(monkeypatch, give)
    download(DRIVE, target, QUICK)
    assert calls[0]["id"] == "1hyar-UivQ_36"
    assert calls[0]["resume"] is True
    assert target.read_bytes() == DATA
    assert list(target.parent.iterdir()) == [target]


def test_google_drive_breaks_off_and_is_asked_again(target, monkeypatch):
    calls = answer(monkeypatch, raising(requests.exceptions.ConnectionError("reset")), give)
    download(DRIVE, target, QUICK)
    assert len(calls) == 2
    assert calls[0]["output"] == calls[1]["output"]
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    "act", [raising(FileURLRetrievalError("too many\n users")), lambda output: None]
)
def test_google_drive_refuses(target, monkeypatch, act):
    calls = answer(monkeypatch, act, give)
    with pytest.raises(FetchError, match="Google Drive does not give it"):
        download(DRIVE, target, QUICK)
    assert len(calls) == 1


def test_google_drive_and_a_full_disk(target, monkeypatch):
    calls = answer(monkeypatch, raising(OSError(errno.ENOSPC, "No space left on device")), give)
    with pytest.raises(OSError, match="No space left"):
        download(DRIVE, target, QUICK)
    assert len(calls) == 1


def test_what_gdown_is_asked_is_what_it_knows():
    """The fakes above take any argument; the real one must know these."""
    known = inspect.signature(gdown.download).parameters
    assert {"id", "output", "quiet", "use_cookies", "resume"} <= known.keys()
