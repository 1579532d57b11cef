"""Small trained runs, and their exports."""

from pathlib import Path

import pytest

from dassl.engine import build_trainer
from tests.runs import SMALL, SmallRuns
from tests.scripts.exporting.runs import export


@pytest.fixture(scope="session")
def trained(shapes_root, tmp_path_factory):
    """(method, trailing options) -> the folder of its small run, trained once a session."""
    runs = SmallRuns(shapes_root, lambda: tmp_path_factory.mktemp("run"))
    made: dict[tuple[str, ...], str] = {}

    def run(*words: str) -> str:
        if words not in made:
            name, *options = words
            trainer = build_trainer(runs.of_method(name, *SMALL, *options))
            trainer.train()
            made[words] = trainer.output_dir
        return made[words]

    return run


@pytest.fixture
def exported(trained, tmp_path):
    """(method, flags) -> the folder of an export of its run."""

    def make(name: str, *flags: str) -> Path:
        folder = tmp_path / f"export of {name}"
        assert export("--export", folder, "--model-dir", trained(name), *flags) == 0
        return folder

    return make
