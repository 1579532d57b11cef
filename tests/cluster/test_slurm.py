"""What only SLURM does: it stops jobs in several ways, and has reasons to refuse them."""

import time

import pytest

from scripts.jobs.slurm.queue import Entry, entries
from tests.cluster.test_sweeps import finished, start, wait_for, wait_for_the_end
from tests.scripts.conftest import ONE, TRAIN

pytestmark = pytest.mark.cluster


def signalled(slurm):
    slurm.ask("scancel", "--signal=TERM", *running(slurm))


def preempted(slurm):
    """More urgent jobs need both nodes."""
    slurm.ask("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")


def running(slurm):
    return slurm.ask("squeue", "-h", "-r", "-t", "running", "-o", "%i").splitlines()


@pytest.mark.parametrize("stopped", [signalled, preempted])
def test_a_job_that_gets_sigterm_is_queued_again(slurm, repo, stopped):
    before = slurm.requeued()
    repo.plan(hang=True)
    driver = start(repo.path, *ONE, *slurm.flags)
    started = repo.path / "started"
    wait_for(lambda: started.exists() and started.read_text().endswith("}"), driver)
    repo.plan()
    stopped(slurm)
    status, _, err = finished(driver)
    assert status == 0, err
    assert "2 jobs: 2 ran" in err
    assert slurm.requeued() == before + 1
    assert (repo.output / TRAIN / "job.log").read_text().count("\n$ ") == 2


def test_a_job_that_somebody_cancels_has_failed(slurm, repo):
    repo.plan(hang=True)
    driver = start(repo.path, *ONE, *slurm.flags)
    wait_for((repo.path / "started").exists, driver)
    (name,) = running(slurm)
    slurm.ask("scancel", name)
    status, _, err = finished(driver)
    assert status == 1
    assert f"FAILED {TRAIN}: SLURM job {name} was cancelled" in err
    assert "2 jobs: 1 failed, 1 skipped" in err


def test_a_node_that_does_not_see_the_output_folder_ends_the_sweep(slurm, repo, capfd, monkeypatch):
    monkeypatch.setattr("scripts.jobs.slurm.launcher.SlurmLauncher.patience", 2.0)
    if slurm.ask("sinfo", "-h", "-p", "apart", "-t", "idle", "-o", "%D") != "1":
        pytest.skip("a node with another view of the files needs mount namespaces")
    output = slurm.hidden / "output"
    words = ("--launcher", "slurm", "--partition", "apart", "--output", str(output))
    assert repo.run(*ONE, *words) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: --output: a node of the cluster does not see {output}")
    assert "name a folder that all nodes share" in said
    assert slurm.at_work() == []
    # The same folder is seen by the other nodes.
    assert repo.run(*ONE, *slurm.flags, "--output", str(output)) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--partition", "mian"), "--partition: 'mian' is not available. Did you mean 'main'?"),
        (("--gpus-per-node", "2"), "SLURM refuses the jobs: "),
        (("--slurm", "qos=none", "no-such-flag=1"), "SLURM refuses the jobs: "),
    ],
)
def test_what_the_cluster_does_not_have_is_told_in_a_line(slurm, repo, capfd, words, said):
    try:
        status = repo.run(*ONE, "--launcher", "slurm", *words)
    except SystemExit as stop:
        status = stop.code
    err = capfd.readouterr().err
    assert status in (1, 2)
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert slurm.at_work() == []


def test_a_cluster_that_does_not_answer_is_told_in_a_line(
    slurm, repo, capfd, monkeypatch, tmp_path
):
    config = (slurm.base / "slurm.conf").read_text() + "MessageTimeout=2\n"
    port = config.split("SlurmctldPort=")[1].split()[0]
    (tmp_path / "slurm.conf").write_text(config.replace(f"Port={port}", "Port=1"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert repo.run(*ONE, *slurm.flags) == 1
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("error: --launcher slurm: SLURM does not answer (")


def two_ended(slurm):
    """The name of an array of two jobs that have ended, the second with exit status 7."""
    batch = ("sbatch", "--parsable", "--output=/dev/null")
    array = slurm.ask(*batch, "--array=0-1", "--wrap=exit $((7 * SLURM_ARRAY_TASK_ID))")
    wait_for_the_end(slurm)
    return array


def test_entries_tell_states_and_exit_codes(slurm):
    array = two_ended(slurm)
    # The last one was never submitted.
    found = entries([f"{array}_0", f"{array}_1", "99999"])
    assert found == {
        f"{array}_0": Entry("COMPLETED", "None", 0),
        f"{array}_1": Entry("FAILED", "NonZeroExitCode", 7),
    }


def test_accounts_tell_of_jobs_that_the_queue_has_forgotten(slurm):
    if not slurm.accounts:
        pytest.skip("no accounts: apt-get install slurmdbd slurm-wlm-mysql-plugin mariadb-server")
    slurm.forget(2)
    try:
        array = two_ended(slurm)
        deadline = time.monotonic() + 60
        while array in slurm.ask("squeue", "-h", "--states=all", "-o", "%A %F"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        found = entries([f"{array}_0", f"{array}_1", "99999"])
    finally:
        slurm.forget(300)  # as it is by default
    assert found == {f"{array}_0": Entry("COMPLETED", "", 0), f"{array}_1": Entry("FAILED", "", 7)}
