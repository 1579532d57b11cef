"""Jobs for SLURM, as far as they can be seen without it: arrays, flags, files, and refusals."""

import shutil
import sys

import pytest

from scripts.jobs.launchers import Ended
from scripts.jobs.plan import Planner
from scripts.jobs.settings import read_settings
from scripts.jobs.slurm import queue
from scripts.jobs.slurm.arrays import make_arrays
from scripts.jobs.slurm.files import (
    forget_queued,
    read_end,
    read_queued,
    write_end,
    write_queued,
)
from scripts.jobs.slurm.options import SlurmOptions, read_minutes, read_others
from scripts.run import build_parser, main
from tests.scripts.conftest import ONE

BASE = ("--protocol", "base2novel", "--datasets", "dtd")


@pytest.fixture
def jobs_of(repo):
    """Return a function that plans a command line's jobs."""
    repo.write("configs/trainers/RAda/first.yaml", "OPTIM:\n  LR: 0.1\n")
    repo.write("configs/trainers/RAda/then.yaml", "FIRST_STAGE:\n  CONFIG: RAda/first\n")

    def plan(*words):
        args = build_parser().parse_args(list(words))
        return Planner(read_settings(args, [], repo.path, None)).jobs()

    return plan


def check(arrays, jobs, submitted=()):
    """Every job once, and where an array waits, each job for that of its index, or alone."""
    assert sorted(map(str, (job for array in arrays for job in array))) == sorted(map(str, jobs))
    before = {job: (None, 0) for job in submitted}
    for number, array in enumerate(arrays):
        for index, job in enumerate(array):
            if job.parent in jobs or job.parent in submitted:
                where = before[job.parent]  # submitted earlier
                assert where == (before[array[0].parent][0], index) or len(array) == 1
            else:
                assert array[0].parent not in jobs
        before |= {job: (number, index) for index, job in enumerate(array)}


def test_a_stage_is_an_array(jobs_of):
    jobs = jobs_of(*BASE, "--trainer", "LightRA", "RAda", "--seeds", "1 2 3")
    arrays = make_arrays(jobs)
    check(arrays, jobs)
    assert [len(array) for array in arrays] == [6, 6]
    assert {job.key.stage for job in arrays[0]} == {"train_base"}


def test_each_target_of_a_source_is_an_array(jobs_of):
    words = ("--protocol", "cross_dataset", "--datasets", "dtd", "--targets", "eurosat shapes")
    jobs = jobs_of(*words, "--seeds", "1 2 3")
    arrays = make_arrays(jobs)
    check(arrays, jobs)
    assert [len(array) for array in arrays] == [3, 3, 3]
    assert [array[0].key.dataset for array in arrays] == ["dtd", "eurosat", "shapes"]


def test_second_stages_and_evaluations_of_both(jobs_of):
    jobs = jobs_of(*BASE, "--trainer", "RAda", "--cfg", "base2novel first then", "--seeds", "1 2")
    assert len(jobs) == 12
    arrays = make_arrays(jobs)
    check(arrays, jobs)
    # Trainings, their evaluations, the second stages (of half of them), their evaluations.
    assert [len(array) for array in arrays] == [4, 4, 2, 2]
    # The trainings that a second stage builds on come first.
    assert [job.key.cfg for job in arrays[0]] == ["first", "first", "base2novel", "base2novel"]


def test_jobs_behind_submitted_or_finished_ones(jobs_of):
    train, test, other, late = jobs_of(*BASE, "--seeds", "1 2")
    assert make_arrays([test, late]) == [(test, late)]  # both trainings are done
    arrays = make_arrays([test, other, late], submitted=[train])
    check(arrays, [test, other, late], submitted=[train])
    assert arrays == [(other,), (test,), (late,)]


def test_arrays_are_no_larger_than_clusters_take(jobs_of, monkeypatch):
    monkeypatch.setattr("scripts.jobs.slurm.arrays.LARGEST", 2)
    jobs = jobs_of(*BASE, "--seeds", "1 2 3")
    arrays = make_arrays(jobs)
    check(arrays, jobs)
    assert [len(array) for array in arrays] == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("1-12", 2160), ("1-0:30", 1470), ("0:0:1", 1)],
)
def test_times_are_read_as_slurm_writes_them(text, minutes):
    assert read_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "1h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"^--time: .* is no time; give minutes \(90\)"):
        read_minutes(text)


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="--time: '0' leaves a job no time"):
        read_minutes("0")


def test_flags_reach_submitit(jobs_of, tmp_path):
    first, second = jobs_of(*BASE, "--seeds", "1")
    others = read_others(["account=me", "--mem=4G"])
    options = SlurmOptions("main", 10, 2, 8, others)
    given = options.parameters((second,), "12", tmp_path)
    assert given["srun_args"] == ["--cpus-per-task=8"]
    assert (given["time"], given["job_name"]) == (10, "test_new")
    assert given["additional_parameters"] == {
        "chdir": str(tmp_path),
        "requeue": True,
        "signal": "USR1@90",
        "kill-on-invalid-dep": "yes",
        "time": 10,
        "partition": "main",
        "gpus-per-node": 2,
        "cpus-per-task": 8,
        "dependency": "afterok:12",
        "account": "me",
        "mem": "4G",
    }
    several = SlurmOptions("", 2, 0, 0, {}).parameters((second, second), "12_0", tmp_path)
    assert several["additional_parameters"]["dependency"] == "aftercorr:12"
    assert several["additional_parameters"]["signal"] == "USR1@30"  # half a minute of two
    alone = SlurmOptions("", 2, 0, 0, {}).parameters((first,), "", tmp_path)
    assert "dependency" not in alone["additional_parameters"]


def test_a_dry_run_prints_arrays_and_their_commands(repo, capsys):
    words = [*BASE, "--seeds", "1 2", "--launcher", "slurm", "--partition", "a100", "--dry-run"]
    words += ["--gpus-per-node", "2", "--time", "1:00:00", "--slurm", "account=me"]
    assert main(words, repo=repo.path) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    flags = "--time=60 --partition=a100 --gpus-per-node=2"
    assert [line for line in lines if line.startswith("#")] == [
        f"# ARRAY1: sbatch --array=0-1 --job-name=train_base {flags} --account=me",
        f"# ARRAY2: sbatch --array=0-1 --job-name=test_new {flags} "
        "--dependency=aftercorr:ARRAY1 --account=me",
    ]
    assert len(lines) == 6
    assert "-m torch.distributed.run --standalone --nproc_per_node=2" in lines[1]
    assert printed.err == "4 of 4 jobs to run, in 2 submissions to SLURM\n"
    assert not repo.output.exists()


def test_the_ends_of_earlier_submissions_do_not_count(jobs_of):
    (job, _) = jobs_of(*BASE, "--seeds", "1")
    assert read_queued(job) is None
    write_queued(job, "12_3")
    assert read_queued(job) == "12_3"
    ended = Ended("ran", accuracy=50.0, seconds=1.5)
    write_end(job, "12_3", ended)
    assert read_end(job, "12_3") == ended
    assert read_end(job, "13_3") is None
    forget_queued(job)
    assert read_queued(job) is None


def test_a_job_with_another_config_was_not_submitted(repo, jobs_of):
    (job, _) = jobs_of(*BASE, "--seeds", "1")
    write_queued(job, "12")
    repo.write("configs/trainers/LightRA/base2novel.yaml", "OPTIM:\n  LR: 0.5\n")
    (changed, _) = jobs_of(*BASE, "--seeds", "1")
    assert read_queued(changed) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--devices", "0"), "--devices does nothing with --launcher slurm; leave it out; on a "),
        (("--warm",), "--warm does nothing with --launcher slurm"),
        (("--jobs-per-device", "1"), "--jobs-per-device does nothing with --launcher slurm"),
        (("--gpus-per-node", "-1"), "--gpus-per-node: -1 is below 0"),
        (("--attach", "--detach"), "--attach waits for jobs, --detach leaves them"),
        (("--slurm", "exclusive"), "--slurm: 'exclusive' is no NAME=VALUE of sbatch"),
        (("--time", "x"), "--time: 'x' is no time"),
    ],
)
def test_flags_that_do_not_fit_are_refused(repo, capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        main([*ONE, "--launcher", "slurm", "--dry-run", *words], repo=repo.path)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--attach", "--detach", "--partition=main", "--time=10"])
def test_a_clusters_flags_are_refused_on_one_machine(repo, capsys, flag):
    with pytest.raises(SystemExit):
        main([*ONE, flag], repo=repo.path)
    name = flag.split("=")[0]
    assert f"{name} does nothing with --launcher local; leave it out" in capsys.readouterr().err


def test_submitit_that_is_missing_is_named_with_its_remedy(repo, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*ONE, "--launcher", "slurm"], repo=repo.path) == 1
    need = "--launcher slurm needs submitit: pip install -r requirements-cluster.txt"
    assert capsys.readouterr().err == f"error: {need}\n"


def test_a_machine_without_slurm_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="this machine has no sbatch and squeue; run it on a login"):
        queue.check_cluster("")
