"""Fixtures of the trainers' tests."""

import pytest

from dassl.engine import build_trainer
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


@pytest.fixture
def train_fft(build_fft):
    """As ``build_fft``; trains, and returns the run's directory."""

    def run(method, *options, output):
        trainer = build_fft(method, *options, output=output)
        trainer.train()
        return trainer.output_dir

    return run
