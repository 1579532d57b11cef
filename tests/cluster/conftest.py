"""Real engines on this machine, started once for all tests; where they cannot be, tests skip.

A cluster has ``flags`` of ``scripts/run.py``, an ``environment``, ``at_work()`` (what runs or waits
there), ``take_back()`` (stop the running job as the engine does), ``requeued()`` and ``clear()``.
"""

import importlib.util

import pytest

from tests.cluster.slurm_cluster import SlurmCluster, why_not
from tests.scripts.conftest import FakeRepo, copy_scripts


@pytest.fixture(scope="session")
def slurm_daemons():
    reason = why_not()
    if importlib.util.find_spec("submitit") is None:
        reason = "submitit missing: pip install -r requirements-cluster.txt"
    if reason:
        pytest.skip(f"no SLURM: {reason}")
    cluster = SlurmCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(slurm_daemons, monkeypatch):
    """A SLURM cluster without jobs."""
    from scripts.jobs.slurm.launcher import SlurmLauncher

    monkeypatch.setattr(SlurmLauncher, "poll", 0.3)
    for name, value in slurm_daemons.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_daemons
    slurm_daemons.clear()


@pytest.fixture(scope="session")
def ray_nodes():
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray: ray missing: pip install -r requirements-cluster.txt")
    from tests.cluster.ray_cluster import RayCluster

    cluster = RayCluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def ray(ray_nodes, monkeypatch):
    """A Ray cluster without jobs."""
    from scripts.jobs.ray_cluster import RayLauncher

    monkeypatch.setattr(RayLauncher, "poll", 0.3)
    for name, value in ray_nodes.environment.items():
        monkeypatch.setenv(name, value)
    yield ray_nodes
    ray_nodes.clear()


@pytest.fixture(params=["slurm", "ray"])
def cluster(request):
    """Each of the engines."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def repo(tmp_path, monkeypatch) -> FakeRepo:
    """A repository, the current directory, whose train.py takes no time."""
    (tmp_path / "repo").mkdir()
    monkeypatch.chdir(tmp_path / "repo")
    return FakeRepo(tmp_path / "repo", copy_scripts(tmp_path / "copied"))
