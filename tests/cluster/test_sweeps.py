"""What every engine must do: the table of a local sweep, whatever happens on the way to it."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.scripts.conftest import ONE, TEST, TRAIN

pytestmark = pytest.mark.cluster
LOCAL = ("--launcher", "local", "--warm", "--jobs-per-device", "2")


def start(folder, *words):
    """Start the driver of a repository in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(folder / "scripts/run.py"), *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # In the background of a shell SIGINT is ignored, which the driver would respect.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(driver):
    """Its status and what it has printed."""
    try:
        out, err = driver.communicate(timeout=900)
    finally:
        driver.kill()
    return driver.returncode, out, err


def wait_for(condition, driver):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)


def wait_for_the_end(cluster):
    """Wait until nothing is left; jobs that have ended need a moment to go."""
    deadline = time.monotonic() + 60
    while cluster.at_work():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def shapes(root, out, *words):
    """A sweep on Shapes."""
    where = ("--root", root, "--output", str(out))
    return ("--protocol", "base2novel", "--datasets", "shapes", "--shots", "1", *where, *words)


def table_of_12(root, folder, *flags):
    """The table in which two methods with three seeds end, each trained and tested once."""
    words = ("--trainer", "ZeroshotCLIP", "LightRA", "--seeds", "1", "2", "3", *flags)
    driver = start(REPOSITORY, *shapes(root, folder, *words), "--", "OPTIM.MAX_EPOCH", "1")
    status, out, err = finished(driver)
    assert status == 0, err
    assert "12 jobs: 12 ran" in err
    return out.replace(str(folder), "output")


@pytest.fixture(scope="module")
def local_table(shapes_root, tmp_path_factory):
    return table_of_12(shapes_root, tmp_path_factory.mktemp("local"), *LOCAL)


def test_a_sweep_ends_in_the_table_of_a_local_one(cluster, local_table, shapes_root, tmp_path):
    assert "LightRA" in local_table
    assert table_of_12(shapes_root, tmp_path / "cluster", *cluster.flags) == local_table


def left_by(run):
    """What a run computed: its result without times, and its weights."""
    result = json.loads((run / "result.json").read_text())
    for name in ("durations", "peak_memory_mb", "checksum", "git"):
        del result[name]
    (file,) = run.rglob("model.pth.tar-*")
    weights = torch.load(file, weights_only=True)["state_dict"]
    return result, {name: value.tolist() for name, value in weights.items()}


def long_run(root, folder, *flags, cluster=None):
    """Train LightRA for some seconds; what it left, and its log.

    A ``cluster`` takes the job back when it could be resumed.
    """
    if cluster is not None:
        assert cluster.at_work() == []  # which takes a while the first time, and must not later
    words = shapes(root, folder, "--trainer", "LightRA", "--seeds", "1", *flags)
    driver = start(REPOSITORY, *words, "--", "OPTIM.MAX_EPOCH", "40")
    run = folder / TRAIN.replace("dtd/shots_16", "shapes/shots_1")
    if cluster is not None:
        wait_for((run / "resume.pth.tar").exists, driver)
        cluster.take_back()
    status, _, err = finished(driver)
    assert status == 0, err
    left = left_by(run), (run / "job.log").read_text()
    shutil.rmtree(folder)
    return left


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory):
    """Where all long runs write, one after another: the config in a result names it."""
    return tmp_path_factory.mktemp("long") / "out"


@pytest.fixture(scope="module")
def local_run(shapes_root, long_folder):
    return long_run(shapes_root, long_folder, *LOCAL)


def test_a_job_that_the_engine_takes_back_runs_again_and_ends_the_same(
    cluster, local_run, long_folder, shapes_root
):
    before = cluster.requeued()
    disturbed = long_run(shapes_root, long_folder, *cluster.flags, cluster=cluster)
    assert cluster.requeued() == before + 1
    for (_, log), starts in ((local_run, 1), (disturbed, 2)):
        assert log.count("\n$ ") == starts
        assert log.count("Resuming after epoch") == starts - 1
    assert local_run[0][1]
    assert disturbed[0] == local_run[0]


def test_a_driver_goes_on_with_the_jobs_of_a_killed_one(cluster, repo, capfd):
    repo.plan(sleep=6)
    driver = start(repo.path, *ONE, *cluster.flags)
    wait_for((repo.output / TRAIN / "job.log").exists, driver)
    driver.kill()
    driver.communicate()
    assert len(cluster.at_work()) == 2
    assert repo.run(*ONE, *cluster.flags) == 1
    said = capfd.readouterr().err
    assert said.startswith("error: 2 of these jobs were submitted before and have not ended")
    assert "--attach goes on with them" in said
    repo.plan()
    assert repo.run(*ONE, *cluster.flags, "--attach") == 0
    assert "2 jobs: 2 ran" in capfd.readouterr().err
    assert repo.stages() == ["train_base", "test_new"]
    # What was seen to end is nobody's any more.
    assert repo.run(*ONE, *cluster.flags, "--attach") == 0
    assert "2 jobs: 2 done before" in capfd.readouterr().err


def test_what_ended_without_a_driver_is_told_by_the_next(cluster, repo, capfd):
    repo.plan(fail=["test_new"])
    assert repo.run(*ONE, *cluster.flags, "--detach") == 0
    assert "2 jobs submitted; --attach waits for them" in capfd.readouterr().err
    wait_for_the_end(cluster)
    repo.plan()
    assert repo.run(*ONE, *cluster.flags, "--attach") == 1
    said = capfd.readouterr().err
    assert "2 jobs: 1 ran, 1 failed" in said
    assert "    ValueError: the reason it failed" in said
    assert repo.run(*ONE, *cluster.flags) == 0
    assert "2 jobs: 1 ran, 1 done before" in capfd.readouterr().err


def test_a_cancelled_sweep_leaves_nothing_running(cluster, repo):
    repo.plan(hang=True, child=True)
    driver = start(repo.path, *ONE, *cluster.flags)
    started = repo.path / "started"
    wait_for(lambda: started.exists() and started.read_text().endswith("}"), driver)
    driver.send_signal(signal.SIGINT)
    status, _, err = finished(driver)
    assert status == 130, err
    assert "2 jobs: 2 interrupted" in err
    assert "Traceback" not in err
    assert cluster.at_work() == []
    assert repo.calls() == []  # it was stopped, and has not just come to its end
    call = json.loads(started.read_text())
    assert not [pid for pid in (call["pid"], call["child"]) if runs(pid)]


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_failing_job_stops_no_others(cluster, repo, capfd):
    repo.plan(fail=["train_base/dtd"])
    words = ("--protocol", "base2novel", "--datasets", "dtd", "eurosat", "--seeds", "1")
    assert repo.run(*words, *cluster.flags) == 1
    said = capfd.readouterr().err
    assert "4 jobs: 2 ran, 1 failed, 1 skipped" in said
    assert f"FAILED {TRAIN}: exit status 1" in said
    assert "    ValueError: the reason it failed" in said
    assert f"SKIPPED {TEST}: {TRAIN} failed" in said
    wait_for_the_end(cluster)
