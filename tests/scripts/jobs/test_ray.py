"""Jobs for Ray, as far as they can be seen without it: what would be submitted, and refusals."""

import sys

import pytest

from scripts.run import main
from tests.scripts.conftest import ONE, TRAIN


def test_a_dry_run_prints_tasks_and_their_commands(repo, capsys):
    words = [*ONE, "--launcher", "ray", "--gpus-per-node", "2", "--cpus-per-task", "8"]
    assert main([*words, "--dry-run"], repo=repo.path) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    task = "# ray task num_cpus=8 num_gpus=2 max_retries=10"
    assert lines[::2] == [task, f"{task} after {TRAIN}"]
    for line in lines[1::2]:
        assert "-m torch.distributed.run --standalone --nproc_per_node=2" in line
    assert printed.err == "2 of 2 jobs to run, as tasks of Ray\n"
    assert not repo.output.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--devices", "0"), "--devices does nothing with --launcher ray; leave it out; on a "),
        (("--warm",), "--warm does nothing with --launcher ray"),
        (("--partition", "a"), "--partition does nothing with --launcher ray"),
        (("--gpus-per-node", "-1"), "--gpus-per-node: -1 is below 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused(repo, capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        main([*ONE, "--launcher", "ray", "--dry-run", *words], repo=repo.path)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_ray_that_is_missing_is_named_with_its_remedy(repo, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*ONE, "--launcher", "ray"], repo=repo.path) == 1
    need = "--launcher ray needs ray: pip install -r requirements-cluster.txt"
    assert capsys.readouterr().err == f"error: {need}\n"
