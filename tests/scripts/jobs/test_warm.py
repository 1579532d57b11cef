"""Jobs that are forked from a warm worker do what processes of their own do."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.jobs.devices import Device
from scripts.jobs.local import Slot
from scripts.jobs.warm import WarmSlot
from scripts.run import main
from tests.conftest import REPOSITORY
from tests.scripts.conftest import ONE, TEST, TRAIN
from tests.scripts.jobs.test_pool import is_running, start_driver

IMPORTS = "scripts/training/imports.py"  # what a worker imports, in the folder of train.py
# Of OpenMP. Those that wait do so asleep: on a busy machine, they would keep others from working.
TWO_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
# Prints what a program can see of how it was started.
SEEN = """
import gc, json, os, signal, sys
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)
print(json.dumps({
    "arguments": sys.argv[1:], "name": __name__, "file": __file__, "path": sys.path,
    "main": sys.modules["__main__"].__dict__ is globals(), "cwd": os.getcwd(),
    "environment": dict(os.environ), "input": sys.stdin.read(),
    "open": sorted(os.listdir("/proc/self/fd")),
    "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
    "signals": [str(signal.getsignal(number)) for number in numbers],
    "collects": [gc.isenabled(), gc.get_threshold()],
}))
print("to stderr", file=sys.stderr)
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that runs a train.py with a kind of slot, and gives the job and its log."""
    (tmp_path / "scripts/training").mkdir(parents=True)
    (tmp_path / IMPORTS).touch()
    program = (sys.executable, "-S", "-E", str(tmp_path / "train.py"))
    device = Device("cpu", (), {"ONLY_HERE": "1"})
    slots = {"warm": WarmSlot(device, tmp_path, program=program), "cold": Slot(device, tmp_path)}

    def start(kind, code, *words, imports=None):
        Path(program[-1]).write_text(code)
        if imports is not None:
            (tmp_path / IMPORTS).write_text(imports)
        path = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
        with open(path, "ab") as log:
            return slots[kind].start([*program, *words], log), path

    yield start
    slots["warm"].close()


def finished(started):
    """The exit status of a job, and what it has printed."""
    job, log = started
    return job.wait(), log.read_text()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forked_job_sees_what_a_process_of_its_own_sees(start):
    (status, cold), (again, warm) = (
        finished(start(kind, SEEN, "--a b", "c")) for kind in ("cold", "warm")
    )
    assert status == again == 0
    # Standard output comes last, since only standard error is written line by line to a file.
    (warned, seen), (same, expected) = warm.splitlines(), cold.splitlines()
    assert warned == same == "to stderr"
    assert json.loads(seen) == json.loads(expected)


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9), ("1 / 0", 1)],
)
def test_a_job_ends_as_it_would_by_itself(start, code, status):
    cold, warm = (finished(start(kind, code)) for kind in ("cold", "warm"))
    assert cold[0] == warm[0] == status
    assert warm[1].splitlines()[-1:] == cold[1].splitlines()[-1:]
    assert finished(start("warm", "print('next')")) == (0, "next\n")


def test_jobs_share_a_process_but_nothing_that_they_change(start):
    code = """
import os, random, sys
sys.seen = getattr(sys, "seen", 0) + 1
os.environ["CHANGED"] = os.environ.get("CHANGED", "") + "x"
os.chdir("/")
print(os.getppid(), sys.seen, os.environ["CHANGED"], random.random())
"""
    first, second = (finished(start("warm", code))[1].split() for _ in range(2))
    assert first[:3] == second[:3]
    assert first[1:3] == ["1", "x"]
    assert first[3] != second[3]  # nor the random numbers of a run that does not seed


def test_changed_code_is_imported_again(start, tmp_path):
    code = "import scripts.training.imports as a; print(a.VALUE)"
    assert finished(start("warm", code, imports="VALUE = 1"))[1] == "1\n"
    assert finished(start("warm", code, imports="VALUE = 22"))[1] == "22\n"
    # So is a module that was not there: what lists a folder, as trainers do, would miss it.
    code = "import os, scripts.training.imports as a; print(a.VALUE)"
    imports = "import os; VALUE = len(os.listdir(os.path.dirname(__file__)))"
    before = finished(start("warm", code, imports=imports))[1]
    (tmp_path / IMPORTS).with_name("new.py").touch()
    assert int(finished(start("warm", code))[1]) == int(before) + 1


@pytest.mark.parametrize(
    ("imports", "reason"),
    [
        ("import threading, time\n"
         "threading.Thread(target=time.sleep, args=(9,), name='t1', daemon=True).start()",
         "an import has started a thread (t1)"),
        ("import sys, types\ncuda = types.SimpleNamespace(is_initialized=lambda: True)\n"
         "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)",
         "an import has used CUDA"),
        ("import os\nos.readlink = lambda path: '/dev/nvidiactl'", "an import has used CUDA"),
    ],
)  # fmt: skip
def test_a_process_that_cannot_be_forked_is_refused(start, imports, reason):
    status, log = finished(start("warm", "print('ran')", imports=imports))
    assert status == 1
    assert log.startswith(f"error: --warm: {reason}")
    assert log.count("\n") == 1


def test_imports_that_fail_are_told_in_the_log(start):
    status, log = finished(start("warm", "", imports="import nothing_of_that_name"))
    assert status == 1
    assert "No module named 'nothing_of_that_name'" in log


def test_a_job_that_waits_for_the_imports_can_be_stopped(start):
    job, log = start(
        "warm",
        "print('ran')",
        imports="print('importing', flush=True)\nimport time; time.sleep(60)",
    )
    wait_for(log.read_text)
    job.signal(signal.SIGTERM)
    assert job.wait() == -signal.SIGTERM
    assert log.read_text() == "importing\n"


def test_a_killed_worker_takes_its_job_along_and_is_replaced(start):
    code = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
    job, log = start("warm", code)
    wait_for(lambda: log.read_text().endswith("\n"))
    assert job.poll() is None
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    wait_for(lambda: not any(is_running(pid) for pid in log.read_text().split()))
    assert finished(start("warm", "print('next')")) == (0, "next\n")


@pytest.fixture
def warm_repo(repo):
    """A repository whose train.py needs no imports."""
    repo.write(IMPORTS, "")
    return repo


def test_results_and_logs_are_those_of_cold_jobs(warm_repo, capsys):
    found = {}
    for kind, flags in (("cold", ()), ("warm", ("--warm",))):
        assert warm_repo.run(*ONE, *flags) == 0
        assert "2 jobs: 2 ran" in capsys.readouterr().err
        found[kind] = [(warm_repo.output / job / "job.log").read_text() for job in (TRAIN, TEST)]
        shutil.rmtree(warm_repo.output)
    assert found["warm"] == found["cold"]
    cold, warm = warm_repo.calls()[:2], warm_repo.calls()[2:]
    for before, now in zip(cold, warm, strict=True):
        assert [now[name] for name in ("flags", "options", "env")] == [
            before[name] for name in ("flags", "options", "env")
        ]


def test_a_failed_job_stops_no_other(warm_repo, capsys):
    warm_repo.plan(fail=["train_base/dtd"])
    words = ("--protocol", "base2novel", "--datasets", "dtd", "eurosat", "--seeds", "1")
    assert warm_repo.run(*words, "--warm") == 1
    err = capsys.readouterr().err
    assert "4 jobs: 2 ran, 1 failed, 1 skipped" in err
    assert "    ValueError: the reason it failed" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_jobs_workers_and_theirs(warm_repo, number, status):
    driver, call = start_driver(warm_repo, "--warm")
    driver.send_signal(number)
    _, err = driver.communicate(timeout=20)
    assert driver.returncode == status, err
    assert "2 jobs: 2 interrupted" in err
    assert not any(is_running(call[name]) for name in ("pid", "child", "parent"))


def test_nothing_outlives_a_killed_driver(warm_repo, capsys):
    driver, call = start_driver(warm_repo, "--warm")
    driver.kill()
    driver.communicate()
    wait_for(lambda: not any(is_running(call[name]) for name in ("pid", "child", "parent")))
    warm_repo.plan()
    assert warm_repo.run(*ONE, "--warm") == 0
    assert "2 jobs: 2 ran" in capsys.readouterr().err


def test_a_killed_worker_is_a_failed_job(warm_repo):
    driver, call = start_driver(warm_repo, "--warm")
    os.kill(call["parent"], signal.SIGKILL)
    _, err = driver.communicate(timeout=20)
    assert f"FAILED {TRAIN}: killed by SIGKILL" in err
    assert not any(is_running(call[name]) for name in ("pid", "child"))


def test_a_dry_run_says_that_jobs_would_be_warm(warm_repo, capsys):
    command = [*ONE, "--dry-run"]
    assert main([*command, "--warm"], repo=warm_repo.path) == 0
    warm = capsys.readouterr()
    assert warm.err == "2 of 2 jobs to run, warm: forked from a process that has imported PyTorch\n"
    assert main(command, repo=warm_repo.path) == 0
    assert capsys.readouterr().out == warm.out
    assert not warm_repo.output.exists()


@pytest.mark.parametrize(
    ("platform", "devices", "said"),
    [
        ("darwin", "mps", "--warm: darwin cannot fork a process that has imported PyTorch"),
        (sys.platform, "0+1", "--warm: a job on several GPUs (0+1) is started by torchrun"),
    ],
)
def test_where_jobs_cannot_be_forked_warm_is_refused(
    repo, capsys, monkeypatch, platform, devices, said
):
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(SystemExit) as stop:
        main([*ONE, "--warm", "--dry-run", "--devices", devices], repo=repo.path)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_the_imports_are_all_that_a_run_needs_and_start_no_thread(shapes_root, tmp_path):
    """A fork would wait for ever for OpenMP's threads, and could not use CUDA if it was asked."""
    code = """
import os, sys, torch
torch._C._cuda_getDeviceCount = lambda: print("CUDA was asked for GPUs") or 0
import scripts.training.imports
print("threads", len(os.listdir("/proc/self/task")))
imported = {*sys.modules}
import train
train.main(sys.argv[1:])
new = {name.partition(".")[0] for name in {*sys.modules} - imported}
heavy = {"torchvision", "open_clip", "timm", "transformers", "numpy", "tensorboard"}
heavy |= {"clip", "trainers", "datasets"}
print("new", *sorted(new & heavy))
"""
    words = ["--root", shapes_root, "--output-dir", str(tmp_path), "--seed", "1", "--device", "cpu"]
    words += ["--dataset-config-file", "configs/datasets/shapes.yaml"]
    words += ["--config-file", "configs/trainers/LightRA/base2novel.yaml"]
    words += ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        # NumPy's OpenBLAS would start threads too, but it stops them around a fork.
        cwd=REPOSITORY, env={**os.environ, **TWO_THREADS, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("threads 1", "new")


def test_weights_and_results_on_shapes_are_those_of_cold_jobs(shapes_root, tmp_path):
    """With two threads, so that OpenMP is at work in the forks."""
    out = tmp_path / "out"
    words = ["--protocol", "base2novel", "--datasets", "shapes", "--shots", "1", "--seeds", "1"]
    words += ["--root", shapes_root, "--output", str(out), "--devices", "cpu", "--no-report"]
    found = {}
    for kind, flags in (("cold", []), ("warm", ["--warm"])):
        subprocess.run(
            [sys.executable, "scripts/run.py", *words, *flags, "--", "OPTIM.MAX_EPOCH", "1"],
            cwd=REPOSITORY, env={**os.environ, **TWO_THREADS}, check=True,
        )  # fmt: skip
        results = [json.loads(file.read_text()) for file in sorted(out.rglob("result.json"))]
        for result in results:
            for name in ("durations", "peak_memory_mb", "checksum"):
                del result[name]
        weights = sorted(out.rglob("model.pth.tar-1"))
        found[kind] = results, [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights]
        shutil.rmtree(out)
    assert [len(part) for part in found["cold"]] == [2, 1]
    assert found["warm"] == found["cold"]
