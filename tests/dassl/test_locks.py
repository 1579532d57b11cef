"""Locks end with their process; what was left behind goes, what is being written stays."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from dassl import locks
from dassl.locks import (
    RUN_LOCK,
    LockedError,
    Owner,
    acquire,
    at_work,
    remove_leftovers,
    runs_here,
)

FORK = multiprocessing.get_context("fork")


def ended() -> int:
    """Return the number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def hold(path, ready):
    """Hold a lock, with a worker process that outlives its parent."""
    lock = acquire(path)
    lock.record(Owner.of(os.getpid()))
    worker = os.fork()
    if worker == 0:
        time.sleep(30)
        os._exit(0)
    ready.send(worker)
    time.sleep(30)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the run lock of tmp_path, and its worker's number."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path / RUN_LOCK, theirs))
    process.start()
    worker = ours.recv()
    yield process, worker
    process.kill()
    os.kill(worker, signal.SIGKILL)
    process.join()


def test_a_lock_keeps_others_out_and_says_who_has_it(tmp_path, holder):
    process, _ = holder
    with pytest.raises(LockedError, match=rf"process {process.pid} on ") as refused:
        acquire(tmp_path / RUN_LOCK, patience=0)
    assert refused.value.owner.runs()
    assert at_work(tmp_path).startswith(f"process {process.pid} on ")
    assert at_work(tmp_path / "none") == ""


def test_a_killed_process_gives_its_lock_up_though_its_worker_lives(tmp_path, holder):
    process, worker = holder
    process.kill()
    process.join()
    assert runs_here(worker)
    assert at_work(tmp_path) == ""
    lock = acquire(tmp_path / RUN_LOCK, patience=0)
    assert lock.held
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_everybody_goes_on(tmp_path, monkeypatch, number):
    def none(descriptor, mode):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", none)
    with acquire(tmp_path / "lock") as lock:
        assert not lock.held
        with acquire(tmp_path / "lock") as other:
            assert not other.held


def test_an_owner_is_told_from_a_later_process_of_its_number(tmp_path):
    own = Owner.of(os.getpid())
    assert own.runs()
    if own.born:  # where the system tells it
        assert not Owner(own.pid, own.host, own.born + "0", own.since).runs()
    assert not Owner(own.pid, "another-host", own.born, own.since).runs()
    assert not Owner.of(ended()).runs()
    (tmp_path / "lock").write_text("{}")
    assert Owner.read(tmp_path / "lock") is None


@pytest.mark.parametrize("alone", [True, False])
def test_leftovers_go_when_nobody_can_be_writing_them(tmp_path, alone):
    living = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(30)"])
    dead = ended()
    names = {
        "dead": f".model.pth.tar-1.{dead}.tmp",
        "dead and old": f".result.json.{dead}.tmp",
        "living": f".model.pth.tar-2.{living.pid}.tmp",
    }
    others = [f"model.pth.tar-1.{dead}.tmp", ".hidden", f".model.{dead}.tmp.keep"]
    for name in (*names.values(), *others):
        (tmp_path / name).touch()
    hours_ago = time.time() - 2 * locks.OLD
    os.utime(tmp_path / names["dead and old"], (hours_ago, hours_ago))
    remove_leftovers([tmp_path, tmp_path / "none"], alone=alone)
    living.kill()
    living.wait()
    stays = [names["living"], *others] + ([] if alone else [names["dead"]])
    assert sorted(os.listdir(tmp_path)) == sorted(stays)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")
def test_a_file_older_than_the_process_of_its_number_is_not_that_processs(tmp_path):
    left = tmp_path / f".result.json.{os.getpid()}.tmp"
    left.touch()
    remove_leftovers([tmp_path], alone=True)
    assert left.exists()
    long_ago = time.time() - 365 * 24 * 3600
    os.utime(left, (long_ago, long_ago))
    remove_leftovers([tmp_path], alone=True)
    assert not left.exists()
