"""Pictures that small benchmarks run on."""

import pytest

from scripts.benchmarks.tools import write_pictures


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> str:
    """A data root of three classes."""
    path = tmp_path_factory.mktemp("pictures")
    write_pictures(path, classes=3, train=2, test=2, side=48)
    return str(path)
