"""One run at a time in a folder, and nothing there of those that were killed."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest
from torch import nn

from dassl.engine.run_folder import check_room, run_folder
from dassl.locks import RUN_LOCK, Owner
from tests.conftest import REPOSITORY

HOLD = """
import sys, time
from dassl.engine.run_folder import run_folder
with run_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_may_start_once_the_first_is_killed(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    said = rf'another run is at work in "{tmp_path}" \(process {first.pid} on .*--output-dir'
    with pytest.raises(ValueError, match=said), run_folder(tmp_path):
        pass
    assert first.poll() is None
    first.kill()
    first.communicate()
    assert os.listdir(tmp_path) == [RUN_LOCK]
    with run_folder(tmp_path):
        assert Owner.read(tmp_path / RUN_LOCK).pid == os.getpid()
    assert os.listdir(tmp_path) == []


def test_what_killed_runs_left_goes_and_other_runs_folders_are_let_alone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    left = [
        f".result.json.{gone.pid}.tmp",
        f".job.json.{gone.pid}.tmp",
        f"ResidualAttention/.model.pth.tar-3.{gone.pid}.tmp",
    ]
    stays = [
        "ResidualAttention/model.pth.tar-2",
        "result.json",
        "other/log.txt",
        f"other/.result.json.{gone.pid}.tmp",
    ]
    for name in (*left, *stays):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with run_folder(tmp_path):
        pass
    found = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(found) == sorted(stays)


def test_without_locks_a_run_goes_on_and_removes_only_what_is_old(tmp_path, monkeypatch):
    def none(descriptor, mode):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    (tmp_path / f".result.json.{gone.pid}.tmp").touch()  # it may be another machine's
    with run_folder(tmp_path), run_folder(tmp_path):
        pass
    assert (tmp_path / f".result.json.{gone.pid}.tmp").exists()


def test_a_folder_that_cannot_be_written_names_itself_and_the_flag(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / RUN_LOCK))

    monkeypatch.setattr(os, "open", read_only)
    message = "OUTPUT_DIR, set by --output-dir"
    with pytest.raises(OSError, match=message) as error, run_folder(tmp_path):
        pass
    assert (error.value.errno, error.value.filename) == (errno.EROFS, str(tmp_path))


def test_names_of_models_and_of_tensorboard_are_folders(tmp_path):
    models = {"Model": nn.Linear(3, 4)}
    check_room(tmp_path, models)
    for name in ("Model", "tensorboard"):
        (tmp_path / name).touch()
        with pytest.raises(NotADirectoryError, match=f"{tmp_path}/{name}"):
            check_room(tmp_path, models)
        (tmp_path / name).unlink()
