"""One run on two machines: network namespaces of this one, each with a name and an address."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import train
from tests.conftest import REPOSITORY
from tests.dassl.test_distributed import check_same
from tests.forked_python import forking_python

NAMES = ("here", "there")


class Machines:
    """Two network namespaces with a cable between them, each with a name that both know."""

    def __init__(self) -> None:
        tag = f"t{os.getpid()}"
        self.spaces = [f"{tag}{name}" for name in NAMES]
        self.hosts = [Path("/etc/netns", space, "hosts") for space in self.spaces]
        self.running: list[subprocess.Popen[str]] = []
        self.pythons: list[Path] = []
        self._ending = ExitStack()

    def connect(self) -> None:
        """Make them; CalledProcessError or OSError where that is not allowed."""
        first, second = self.spaces
        for space in self.spaces:
            self._ip("netns", "add", space)
        ends = [f"v{number}t{os.getpid()}" for number in range(2)]
        self._ip("link", "add", ends[0], "netns", first, "type", "veth", "peer", "name", ends[1],
                 "netns", second)  # fmt: skip
        known = "127.0.0.1 localhost\n"
        known += "".join(f"10.77.0.{i} {name}\n" for i, name in enumerate(NAMES, start=1))
        for number, (space, end, hosts) in enumerate(
            zip(self.spaces, ends, self.hosts, strict=True), start=1
        ):
            self._ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            for device in (end, "lo"):
                self._ip("-n", space, "link", "set", device, "up")
            hosts.parent.mkdir(parents=True)
            hosts.write_text(known)  # /etc/hosts in there
        for number in range(len(self.spaces)):
            self.pythons.append(self._ending.enter_context(self._python(number)))

    def _python(self, number):
        """Return a context with a `forking_python` there, whose imports all programs share."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {NAMES[number]} && exec "$@"', "sh"]
        folder = Path(self._ending.enter_context(tempfile.TemporaryDirectory()))
        return forking_python(folder, "ip", "netns", "exec", self.spaces[number], *named)

    def start(self, number, words, **environment):
        """Start a Python program on one of them."""
        process = subprocess.Popen(
            [self.pythons[number], *words], env={**os.environ, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.running.append(process)
        return process

    def remove(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()
        self._ending.close()
        for space, hosts in zip(self.spaces, self.hosts, strict=True):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
            shutil.rmtree(hosts.parent, ignore_errors=True)

    def _ip(self, *words):
        subprocess.run(["ip", *words], capture_output=True, check=True)


@pytest.fixture(scope="module")
def two_networks():
    made = Machines()
    try:
        made.connect()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        made.remove()
        pytest.skip(f"network namespaces need Linux, ip and root: {said.decode().strip()}")
    yield made
    made.remove()


@pytest.fixture
def machines(two_networks):
    yield two_networks
    for process in two_networks.running:
        process.kill()
        process.communicate()
    two_networks.running.clear()


def words_of(root, output, method, dataset, *more):
    return [
        "--root", str(root), "--output-dir", str(output), "--seed", "3", "--device", "cpu",
        "--dataset-config-file", str(REPOSITORY / f"configs/datasets/{dataset}.yaml"),
        "--config-file", str(REPOSITORY / f"configs/trainers/{method}.yaml"), *more,
    ]  # fmt: skip


SHORT = ("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "20")
# 7 does not divide 300 images, and two processes have different numbers of batches.
VIEWS = ("--eval-only", "TRAINER.RAdaTTT.VIEWS", "4", "TRAINER.RAdaTTT.BATCH", "7")
PROGRAM = str(REPOSITORY / "train.py")


def srun_task(task):
    """What srun tells one of two tasks, each on a node of its own."""
    return {
        "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": ",".join(NAMES),
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": str(task), "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(task),
    }  # fmt: skip


def result(directory):
    return json.loads((Path(directory) / "result.json").read_text())


def ended(processes, timeout=200):
    """Wait for the processes; return what they printed."""
    said = [process.communicate(timeout=timeout) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(said), said
    return said


def same_result(directory, alone):
    found, expected = result(directory), result(alone)
    # Not the hash of the config: methods that other tests register have a section in it.
    for key in ("metrics", "per_class", "num_test"):
        assert found[key] == expected[key]
    assert found["processes"] == 2


def test_torchrun_trains_over_two_machines(machines, shapes_root, tmp_path):
    words = words_of(shapes_root, tmp_path / "two", "RAda/few_shot", "shapes", *SHORT)
    launcher = [
        "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{NAMES[0]}:29471",
    ]  # fmt: skip
    (first, _), (second, _) = ended(
        [machines.start(number, [*launcher, PROGRAM, *words]) for number in (0, 1)]
    )
    assert (first + second).count("Result written to") == 1
    train.main(words_of(shapes_root, tmp_path / "one", "RAda/few_shot", "shapes", *SHORT))
    same_result(tmp_path / "two", tmp_path / "one")
    states = [
        torch.load(tmp_path / name / "RAda" / "model.pth.tar-1", weights_only=True)["state_dict"]
        for name in ("two", "one")
    ]
    check_same(*states)


def test_variables_of_srun_are_enough_for_test_time_training(machines, shapes_root, tmp_path):
    words = words_of(shapes_root, tmp_path / "two", "RAdaTTT/ttt", "shapes_v2", *VIEWS)
    ended([machines.start(task, [PROGRAM, *words], **srun_task(task)) for task in (0, 1)])
    train.main(words_of(shapes_root, tmp_path / "one", "RAdaTTT/ttt", "shapes_v2", *VIEWS))
    same_result(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_killed_between_two_meetings_ends_the_other(
    machines, shapes_root, tmp_path, lost
):
    endless = ("TRAINER.RAdaTTT.STEPS", "100000")
    words = words_of(shapes_root, tmp_path, "RAdaTTT/ttt", "shapes_v2", *VIEWS, *endless)
    tasks = [machines.start(task, [PROGRAM, *words], **srun_task(task)) for task in (0, 1)]
    log, deadline = tmp_path / "log.txt", time.monotonic() + 100
    while not log.exists() or "Evaluate on the *test* set" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)  # both are in their first episodes, and will meet in hours
    tasks[lost].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, said = tasks[1 - lost].communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert tasks[1 - lost].returncode == 1
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert line.startswith(
        f"error: process {1 - lost} of 2 stops: process {lost} has ended, see its message"
    )


def test_machines_that_do_not_meet_say_where(machines, shapes_root, tmp_path):
    words = words_of(shapes_root, tmp_path, "RAdaTTT/ttt", "shapes_v2", *VIEWS)
    environment = {**srun_task(1), "MASTER_ADDR": NAMES[1]}  # where no first process is
    task = machines.start(1, [PROGRAM, *words, "TRAIN.TIMEOUT", "2"], **environment)
    _, said = task.communicate(timeout=100)
    assert task.returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert f"process 1 of 2 has not met the others at {NAMES[1]}, port " in line
