"""One job on several machines, "2x4": srun starts its processes."""

import os
import subprocess
import sys

import pytest

from scripts.jobs.devices import check_machines, parse_devices
from scripts.jobs.job import Job
from scripts.jobs.protocols import RunKey
from scripts.run import main
from tests.conftest import REPOSITORY
from tests.scripts.conftest import ONE

# Starts all tasks on this machine, with the variables that srun sets.
SRUN = """#!{python}
import os, subprocess, sys
flags = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--") and "=" in word)
command = sys.argv[1 + len(flags):]
nodes, own = int(flags["nodes"]), int(flags["ntasks-per-node"])
assert flags["gpus-per-node"] == flags["ntasks-per-node"] and flags["kill-on-bad-exit"] == "1"
tasks = []
for task in range(nodes * own):
    step = {{
        "JOB_ID": 7, "STEP_ID": 0, "STEP_NUM_TASKS": nodes * own, "STEP_NUM_NODES": nodes,
        "STEP_NODELIST": f"gpu[1-{{nodes}}]", "STEP_TASKS_PER_NODE": f"{{own}}(x{{nodes}})",
        "PROCID": task, "LOCALID": task % own, "NODEID": task // own,
    }}
    environment = {{**os.environ, **{{f"SLURM_{{name}}": str(step[name]) for name in step}}}}
    tasks.append(subprocess.Popen(command, env=environment))
sys.exit(max(task.wait() for task in tasks))
"""
PROGRAM = """
import os, runpy, sys
runpy.run_path({file!r})["read_srun"]()  # without the imports of its package
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
words = [os.environ[name] for name in names] + sys.argv[1:-1]
open(sys.argv[-1] + os.environ["RANK"], "w").write(" ".join(words))
"""


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """A stand-in for srun."""
    file = tmp_path / "bin" / "srun"
    file.parent.mkdir()
    file.write_text(SRUN.format(python=sys.executable))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_a_job_on_two_machines_is_a_process_on_each_gpu(srun, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM.format(file=str(REPOSITORY / "dassl/utils/slurm.py")))
    key = RunKey("few_shot", "train", "dtd", 1, "LightRA", "few_shot", 1)
    flags = (sys.executable, str(program), "--seed", "1")
    job = Job(key, tmp_path, flags, (str(tmp_path / "rank"),), "")
    devices = parse_devices(["2x2"], 1)
    check_machines(devices)
    subprocess.run(devices[0].command(job), check=True, timeout=120)
    for rank in range(4):
        seen = (tmp_path / f"rank{rank}").read_text()
        assert seen == f"4 {rank % 2} 2 gpu1 --seed 1 --device cuda"


def test_outside_of_an_allocation_it_can_only_be_shown(srun, repo, capsys, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(SystemExit) as stop:
        repo.run(*ONE, "--devices", "2x4")
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "--devices: 2x4 is a job on several machines, which srun starts inside" in said
    assert not repo.output.exists()
    assert main([*ONE, "--devices", "2x4", "--dry-run"], repo=repo.path) == 0
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith(
            "srun --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --kill-on-bad-exit=1 "
        )
        assert "train.py" in line
