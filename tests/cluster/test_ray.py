"""What only Ray does: how it is reached, and what its nodes see."""

import sys
import time

import pytest

from scripts.jobs import ray_cluster
from tests.scripts.conftest import ONE

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:65535", "head"])
def test_a_cluster_that_does_not_answer_is_told_in_a_line(ray, repo, capfd, address):
    begun = time.monotonic()
    assert repo.run(*ONE, "--launcher", "ray", "--ray-address", address) == 1
    assert time.monotonic() - begun < 60  # Ray itself tries for minutes, and hears no Ctrl-C
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: --ray-address: no Ray cluster answers at '{address}' (")
    assert not any(line.startswith("Traceback") for line in said)


def test_a_node_that_does_not_see_the_output_folder_ends_the_sweep(
    ray, repo, capfd, monkeypatch, tmp_path
):
    sign = tmp_path / "elsewhere", "a line"  # what a node finds where another file system is
    monkeypatch.setattr(ray_cluster, "leave_sign", lambda output: sign)
    assert repo.run(*ONE, *ray.flags) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: --output: a node of the cluster does not see {repo.output}")
    assert ray.at_work() == []
    assert repo.calls() == []


def test_a_ray_without_the_function_that_is_not_public_is_left_to_itself(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setitem(sys.modules, "ray._private.services", None)
    ray_cluster._knock("127.0.0.1:1")
    monkeypatch.undo()
    with pytest.raises(OSError, match="refused"):
        ray_cluster._knock("127.0.0.1:1")
