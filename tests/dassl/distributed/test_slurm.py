"""What srun tells a task becomes what PyTorch reads."""

import pytest
import torch

from dassl.engine import resolve_device
from dassl.utils.slurm import first_host, read_srun
from tests.dassl.toys import toy_cfg

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "9",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "gpu[03-04,9]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}


def read(**changes):
    environment = {name: value for name, value in {**STEP, **changes}.items() if value is not None}
    read_srun(environment)
    return {name: value for name, value in environment.items() if not name.startswith("SLURM")}


def test_a_task_is_a_process_of_the_run():
    found = read()
    port = int(found.pop("MASTER_PORT"))
    assert found == {
        "RANK": "6", "WORLD_SIZE": "9", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu03",
    }  # fmt: skip
    assert 10000 <= port < 30000
    assert int(read(SLURM_STEP_ID="3")["MASTER_PORT"]) != port
    assert read(SLURM_PROCID="8", SLURM_NODEID="2")["LOCAL_WORLD_SIZE"] == "1"


def test_on_one_machine_no_name_is_needed():
    found = read(SLURM_STEP_NUM_NODES="1", SLURM_STEP_TASKS_PER_NODE="9", SLURM_NODEID="0")
    assert found["MASTER_ADDR"] == "127.0.0.1"


def test_what_the_user_sets_stays():
    found = read(MASTER_ADDR="10.0.0.1", MASTER_PORT="5")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "5")


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_NTASKS": "9"},  # a batch script without srun
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"RANK": "0"},  # torchrun, started by srun on each machine
    ],
)
def test_other_processes_are_left_alone(changes):
    assert read(**changes) == {key: value for key, value in changes.items() if key == "RANK"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SLURM_PROCID": None}, "SLURM_PROCID is '', not a number; start it by torchrun"),
        ({"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID is 'x'"),
        ({"SLURM_NODEID": "3"}, r"on node 3, but SLURM_STEP_TASKS_PER_NODE is '4\(x2\),1'"),
    ],
)
def test_variables_that_make_no_sense(changes, said):
    with pytest.raises(ValueError, match=said):
        read(**changes)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[01-10]", "n01"),
        ("n[7,9-12],login", "n7"),
        ("rack[2-3]n[4-5].site", "rack2n4.site"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


def test_a_task_that_sees_its_own_gpu_only(toy_root, tmp_path, monkeypatch):
    for name, value in read().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cfg = toy_cfg(toy_root, tmp_path, DEVICE="cuda")
    with pytest.raises(ValueError, match="process 2 of this machine .* has no GPU"):
        resolve_device(cfg)
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    assert resolve_device(cfg) == torch.device("cuda", 0)
