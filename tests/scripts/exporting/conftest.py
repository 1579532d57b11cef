"""Small trained runs, and their exports."""

from pathlib import Path

import pytest

from dassl.engine import build_trainer
from tests.runs import SMALL, SmallRuns
from tests.scripts.exporting.runs import run_train


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


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """(method, parts, all by default) -> the folder of an export of its run, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*words: str) -> Path:
        if words not in made:
            name, *parts = words
            folder = made[words] = tmp_path_factory.mktemp("export") / "a folder"
            flags = ["--export-parts", *parts] if parts else []
            assert run_train("--export", folder, "--model-dir", trained(name), *flags) == 0
        return made[words]

    return make
