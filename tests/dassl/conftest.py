"""Fixtures for the engine's tests."""

import pytest

from tests.dassl.toys import make_images, toy_cfg


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_images(root)
    return root


@pytest.fixture
def make_cfg(toy_root, tmp_path):
    def make(output="run", root=None, **changes):
        return toy_cfg(root or toy_root, tmp_path / output, **changes)

    return make
