"""Running jobs: skipping and repeating, failures, devices, signals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dassl.locks import RUN_LOCK, acquire
from scripts.jobs.devices import parse_devices
from scripts.jobs.job import Job
from scripts.jobs.pool import last_lines
from scripts.jobs.protocols import RunKey
from scripts.run import main
from tests.scripts.conftest import ONE, TEST, TRAIN


def test_runs_training_before_its_evaluation_and_skips_both_next_time(repo, capsys):
    assert repo.run(*ONE) == 0
    assert repo.stages() == ["train_base", "test_new"]
    assert "2 jobs: 2 ran" in capsys.readouterr().err
    assert repo.run(*ONE) == 0
    assert len(repo.calls()) == 2
    assert "2 jobs: 2 done before" in capsys.readouterr().err


def test_output_of_a_job_goes_to_its_log_only(repo, capsys):
    repo.run(*ONE)
    log = (repo.output / TRAIN / "job.log").read_text()
    assert log.startswith("# no complete result\n$ ")
    assert "training output/base2novel/train_base" in log
    printed = capsys.readouterr()
    assert "training output" not in printed.out + printed.err


def test_a_directory_proves_nothing(repo):
    (repo.output / TRAIN).mkdir(parents=True)
    (repo.output / TRAIN / "result.json").write_text('{"status": "comp')
    repo.run(*ONE)
    assert repo.stages() == ["train_base", "test_new"]


def test_result_without_the_drivers_record_is_repeated_and_kept_aside(repo):
    repo.run(*ONE)
    (repo.output / TRAIN / "job.json").unlink()
    old = (repo.output / TRAIN / "result.json").read_text()
    repo.run(*ONE)
    assert len(repo.calls()) == 4
    assert (repo.output / TRAIN / "result.previous.json").read_text() == old
    assert (repo.output / TRAIN / "result.json").read_text() != old


@pytest.mark.parametrize(
    ("status", "metrics"), [("running", {"accuracy": 1.0}), ("complete", {"accuracy": None})]
)
def test_incomplete_result_is_repeated(repo, status, metrics):
    repo.run(*ONE)
    file = repo.output / TEST / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": status}))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "metrics": metrics}))
    repo.run(*ONE)
    assert repo.stages() == ["train_base", "test_new", "test_new"]


def test_failed_job_is_survived_reported_and_its_dependents_skipped(repo, capsys):
    repo.plan(fail=["train_base/dtd"])
    status = repo.run("--protocol", "base2novel", "--datasets", "dtd", "eurosat", "--seeds", "1")
    assert status == 1
    assert [call["out"].split("/")[2:4] for call in repo.calls()] == [
        ["train_base", "eurosat"],
        ["test_new", "eurosat"],
    ]
    err = capsys.readouterr().err
    assert "4 jobs: 2 ran, 1 failed, 1 skipped" in err
    assert f"FAILED {TRAIN}: exit status 1" in err
    assert "    ValueError: the reason it failed" in err
    assert str(repo.output / TRAIN / "job.log") in err
    assert f"SKIPPED {TEST}: {TRAIN} failed" in err
    repo.plan()
    assert repo.run("--protocol", "base2novel", "--datasets", "dtd", "--seeds", "1") == 0
    assert len(repo.calls()) == 4


def test_job_without_complete_result_has_failed(repo, capsys):
    repo.plan(unfinished=["train_base"])
    assert repo.run(*ONE) == 1
    assert "ended without a complete result.json" in capsys.readouterr().err


def test_program_that_cannot_start_is_a_failure(repo, capsys):
    status = main([*ONE, "--no-report"], repo=repo.path, train_command=("/no/such/python",))
    assert status == 1
    assert "could not be started" in capsys.readouterr().err


def test_one_job_per_device_at_a_time(repo):
    repo.plan(sleep=0.15)
    words = ("--protocol", "few_shot", "--datasets", "dtd", "--shots", "1 2", "--seeds", "1 2 3")
    assert repo.run(*words, "--devices", "0", "1") == 0
    calls = repo.calls()
    assert len(calls) == 6
    by_device = {}
    for call in calls:
        assert call["flags"]["--device"] == "cuda"
        by_device.setdefault(call["env"]["CUDA_VISIBLE_DEVICES"], []).append(call)
    assert sorted(by_device) == ["0", "1"]
    for own in by_device.values():
        own.sort(key=lambda call: call["start"])
        assert all(a["end"] <= b["start"] for a, b in zip(own, own[1:], strict=False))
    first, second = (own[0] for own in by_device.values())
    assert max(first["start"], second["start"]) < min(first["end"], second["end"])


def test_a_job_on_two_gpus_is_two_processes_under_torchrun(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        "import os, sys\n"
        "seen = [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'CUDA_VISIBLE_DEVICES')]\n"
        "open(sys.argv[-1] + seen[0], 'w').write(' '.join([*seen, *sys.argv[1:-1]]))\n"
    )
    key = RunKey("few_shot", "train", "dtd", 1, "LightRA", "few_shot", 1)
    flags = (sys.executable, str(program), "--seed", "1")
    job = Job(key, tmp_path, flags, (str(tmp_path / "rank"),), "")
    (device,) = parse_devices(["0+3"], 1)
    environment = {**os.environ, **device.environment}
    subprocess.run(device.command(job), check=True, env=environment, timeout=120)
    for rank in range(2):
        seen = (tmp_path / f"rank{rank}").read_text()
        assert seen == f"{rank} 2 0,3 --seed 1 --device cuda"


def test_cpu_runs_one_job_at_a_time_with_all_threads(repo):
    repo.plan(sleep=0.05)
    words = ("--protocol", "few_shot", "--datasets", "dtd", "--shots", "1", "--seeds", "1 2")
    repo.run(*words, "--devices", "cpu")
    first, second = repo.calls()
    assert first["end"] <= second["start"]
    assert first["env"] == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": None}


def test_jobs_per_device_share_it(repo):
    repo.plan(sleep=0.3)
    words = ("--protocol", "few_shot", "--datasets", "dtd", "--shots", "1", "--seeds", "1 2")
    repo.run(*words, "--devices", "cpu", "--jobs-per-device", "2")
    first, second = repo.calls()
    assert second["start"] < first["end"]
    assert first["env"]["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2))


def start_driver(repo, *words):
    """Start the driver as a process of its own and wait until its first job hangs."""
    repo.plan(hang=True, child=True)
    driver = subprocess.Popen(
        [sys.executable, str(repo.path / "scripts/run.py"), *ONE, "--devices", "cpu", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # In the background of a shell SIGINT is ignored, which the driver would respect.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    started = repo.path / "started"
    deadline = time.monotonic() + 20
    while not (started.exists() and started.read_text().endswith("}")):
        assert time.monotonic() < deadline
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    return driver, json.loads(started.read_text())


def is_running(pid):
    """Tell whether a process runs; a zombie that nobody has reaped yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_the_children_and_theirs(repo, number, status):
    driver, call = start_driver(repo)
    driver.send_signal(number)
    out, err = driver.communicate(timeout=20)
    assert driver.returncode == status, err
    assert not is_running(call["pid"])
    assert not is_running(call["child"])
    assert "2 jobs: 2 interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert not (repo.output / TRAIN / "result.json").exists()


def test_job_of_a_killed_driver_is_waited_for(repo, capsys):
    driver, call = start_driver(repo)
    driver.kill()
    driver.communicate()
    assert is_running(call["pid"])
    repo.plan()
    end = threading.Timer(1, os.killpg, (call["pid"], signal.SIGKILL))
    end.start()
    assert repo.run(*ONE) == 0
    err = capsys.readouterr().err
    assert f"{TRAIN}: waiting, process {call['pid']} on " in err
    assert err.count("waiting") == 1
    assert "2 jobs: 2 ran" in err
    assert repo.stages() == ["train_base", "test_new"]  # the killed one had not come to its end


def test_workers_of_a_killed_job_keep_nobody_waiting(repo, capsys):
    driver, call = start_driver(repo)
    os.kill(call["pid"], signal.SIGKILL)
    assert "killed by SIGKILL" in driver.communicate(timeout=20)[1]
    assert is_running(call["child"])
    repo.plan()
    assert repo.run(*ONE) == 0
    assert is_running(call["child"])
    os.kill(call["child"], signal.SIGKILL)
    assert "waiting" not in capsys.readouterr().err


def test_of_two_drivers_each_waits_for_the_others_jobs(repo):
    repo.plan(sleep=0.4)
    command = [sys.executable, str(repo.path / "scripts/run.py"), *ONE, "--no-report"]
    drivers = [
        subprocess.Popen([*command, "--devices", "cpu"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [driver.communicate(timeout=60)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert repo.stages() == ["train_base", "test_new"]
    assert "done before" in said[0] + said[1]
    assert list(repo.output.rglob(".*.lock")) == []


def test_a_run_started_by_hand_is_waited_for(repo, capsys):
    (repo.output / TRAIN).mkdir(parents=True)
    lock = acquire(repo.output / TRAIN / RUN_LOCK)
    end = threading.Timer(0.5, lock.release)
    end.start()
    assert repo.run(*ONE) == 0
    assert f"{TRAIN}: waiting, another process is running it" in capsys.readouterr().err
    assert repo.stages() == ["train_base", "test_new"]


def test_a_job_that_was_refused_for_another_run_is_waited_for(repo, capsys):
    """The other one began after the driver had looked."""
    repo.plan(fail=["train_base"], sleep=0.5)
    locked = []

    def begin():
        locked.append(acquire(repo.output / TRAIN / RUN_LOCK))
        time.sleep(1)
        repo.plan()
        locked[0].release()

    watch = threading.Thread(target=begin)
    (repo.output / TRAIN).mkdir(parents=True)
    threading.Timer(0.2, watch.start).start()
    assert repo.run(*ONE) == 0
    assert "waiting" in capsys.readouterr().err


def test_report_follows_the_jobs(repo, capsys):
    command = (sys.executable, "-S", str(repo.path / "train.py"))
    words = ["--protocol", "base2novel", "--datasets", "shapes", "--seeds", "1 2"]
    assert main(words, repo=repo.path, train_command=command) == 0
    out = capsys.readouterr().out
    assert "shapes     LightRA    50.00 ± 0.00" in out
    assert "not comparable to published" in out


def test_table_has_a_row_for_each_config(repo, capsys):
    for stem in ("table4_rational", "table4_mlp"):
        repo.write(f"configs/trainers/RAda/{stem}.yaml", "_BASE_: base2novel.yaml\nSEED: 1\n")
    repo.plan(fail=["table4_mlp"])
    command = (sys.executable, "-S", str(repo.path / "train.py"))
    words = [
        "--protocol",
        "base2novel",
        "--trainer",
        "RAda",
        "--datasets",
        "shapes",
        "--seeds",
        "1",
    ]
    words += ["--cfg", "base2novel table4_rational table4_mlp"]
    assert main(words, repo=repo.path, train_command=command) == 1
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith("shapes")]
    assert [row[1:3] for row in rows] == [["RAda", "(base2novel)"], ["RAda", "(table4_rational)"]]
    assert "WARNING missing row: RAda (table4_mlp) has no finished run here" in out
    repo.plan()
    assert main(words, repo=repo.path, train_command=command) == 0
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines() if line.startswith("shapes")] == [
        *("(base2novel)", "(table4_rational)", "(table4_mlp)")
    ]
    assert "WARNING" not in out


def test_table_is_printed_when_all_runs_of_a_trainer_failed(repo, capsys):
    repo.plan(fail=["/RAda/"])
    command = (sys.executable, "-S", str(repo.path / "train.py"))
    words = ["--protocol", "few_shot", "--datasets", "shapes", "--shots", "1", "--seeds", "1"]
    words += ["--trainer", "RAda", "LightRA"]
    assert main(words, repo=repo.path, train_command=command) == 1
    out = capsys.readouterr().out
    assert "shapes     LightRA       50.00" in out
    assert "WARNING missing row: RAda (few_shot)" in out


def test_last_lines_of_a_log(tmp_path):
    log = tmp_path / "job.log"
    log.write_text("".join(f"line {n}\n" for n in range(9000)) + "a\rb\r\n\n50%\r100%\nend")
    assert last_lines(log, 4) == ["line 8999", "b", "100%", "end"]
    assert last_lines(tmp_path / "none") == []
