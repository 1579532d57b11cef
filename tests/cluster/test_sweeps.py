"""What every engine must do: the table of a local sweep, whatever happens on the way to it."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.scripts.conftest import ONE, TEST, TRAIN

pytestmark = pytest.mark.cluster
LOCAL = ("--launcher", "local", "--warm")


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


def test_a_sweep_ends_in_the_table_of_a_local_one(cluster, shapes_root, tmp_path):
    words = ("--trainer", "ZeroshotCLIP", "LightRA", "--seeds", "1", "2", "3")
    found = {}
    for name, flags in (("local", LOCAL), ("cluster", cluster.flags)):
        sweep = shapes(shapes_root, tmp_path / name, *words, *flags)
        status, out, err = finished(start(REPOSITORY, *sweep, "--", "OPTIM.MAX_EPOCH", "1"))
        assert status == 0, err
        assert "12 jobs: 12 ran" in err
        found[name] = out.replace(str(tmp_path / name), "output")
    assert "LightRA" in found["local"]
    assert found["cluster"] == found["local"]


def left_by(run):
    """What a run computed: its result without times, and its weights."""
    result = json.loads((run / "result.json").read_text())
    for name in ("durations", "peak_memory_mb", "checksum", "git"):
        del result[name]
    (file,) = run.rglob("model.pth.tar-*")
    weights = torch.load(file, weights_only=True)["state_dict"]
    return result, {name: value.tolist() for name, value in weights.items()}


def test_a_job_that_the_engine_takes_back_runs_again_and_ends_the_same(
    cluster, shapes_root, tmp_path
):
    found = {}
    before = cluster.requeued()
    options = ("--", "OPTIM.MAX_EPOCH", "40")
    for name, flags in (("local", LOCAL), ("cluster", cluster.flags)):
        # In the same folder, as the config in the result names it.
        out = tmp_path / "out"
        words = shapes(shapes_root, out, "--trainer", "LightRA", "--seeds", "1", *flags)
        driver = start(REPOSITORY, *words, *options)
        run = out / TRAIN.replace("dtd/shots_16", "shapes/shots_1")
        if name == "cluster":
            wait_for((run / "resume.pth.tar").exists, driver)
            cluster.take_back()
        status, _, err = finished(driver)
        assert status == 0, err
        found[name] = left_by(run)
        log = (run / "job.log").read_text()
        assert log.count("\n$ ") == (2 if name == "cluster" else 1)
        out.rename(tmp_path / name)
    assert cluster.requeued() == before + 1
    assert found["local"][1]
    assert found["cluster"] == found["local"]


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
