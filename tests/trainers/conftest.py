"""Fixtures of the trainers' tests."""

import functools
import shutil

import pytest

from dassl.engine import build_trainer
from tests.conftest import config_of_run
from tests.trainers.finetuning.runs import SMALL
from tests.trainers.plain import SMALL as ONE_SHOT


@pytest.fixture
def build(request, make_config):
    """(trailing options) -> trainer of the test file's METHOD on Shapes, in its SMALL run.

    ``method`` may be another one, or a config file below configs/trainers.
    """
    module = request.module
    small = getattr(module, "SMALL", ONE_SHOT)

    def make(*options, method=None, protocol="base2novel", output="run", dataset="shapes"):
        method = method or module.METHOD
        file = method if "/" in method else f"{method}/{protocol}"
        return build_trainer(make_config(file, *small, *options, output=output, dataset=dataset))

    return make


@pytest.fixture
def build_fft(make_config):
    """(method, trailing options, output, dataset) -> trainer on the bundled suite."""

    def make(method, *options, output="run", dataset="shapes"):
        method = method if "/" in method else f"{method}/fft"
        return build_trainer(make_config(method, *SMALL, *options, output=output, dataset=dataset))

    return make


@pytest.fixture(scope="session")
def finished_fft(shapes_root, tmp_path_factory):
    """(method, trailing options) -> the directory of a finished run, trained once per worker."""

    @functools.cache
    def run(method: str, *options: str) -> str:
        folder = tmp_path_factory.mktemp("fft") / "run"
        trainer = build_trainer(
            config_of_run(shapes_root, folder, f"{method}/fft", *SMALL, *options)
        )
        trainer.train()
        return trainer.output_dir

    return run


@pytest.fixture
def train_fft(finished_fft, tmp_path):
    """As ``build_fft``; the directory of the trained run, a copy that the test may spoil."""

    def run(method, *options, output):
        return str(shutil.copytree(finished_fft(method, *options), tmp_path / output))

    return run
