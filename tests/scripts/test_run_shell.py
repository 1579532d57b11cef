"""The bash scripts: variables become flags, arguments are passed on, any directory will do."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")


SCRIPTS = ("run_base2novel.sh", "run_few-shot.sh", "run_xd.sh", "run_eft.sh")


def bash(repo, script, *words, cwd=None, **variables):
    names = ("VIRTUAL_ENV", "CONDA_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [BASH, str(repo.path / script), *words],
        cwd=cwd or repo.path,
        env={"PYTHON": sys.executable, **environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def commands(result):
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def flag(command, name):
    return command[command.index(name) + 1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_is_valid_and_short(repo, script):
    assert subprocess.run([BASH, "-n", str(repo.path / script)], check=False).returncode == 0
    text = (repo.path / script).read_text()
    assert "set -euo pipefail" in text
    assert len(text.splitlines()) < 12


@pytest.mark.parametrize(
    ("script", "protocol", "trainer", "count"),
    [
        ("run_base2novel.sh", "base2novel", "LightRA", 11 * 3 * 2),
        ("run_few-shot.sh", "few_shot", "LightRA", 11 * 5 * 3),
        ("run_xd.sh", "cross_dataset", "LightRA", 3 * 15),
        ("run_eft.sh", "eft", "RAda", 11 * 3 * 2),
    ],
)
def test_defaults(repo, script, protocol, trainer, count):
    found = commands(bash(repo, script, "--dry-run"))
    assert len(found) == count
    assert {flag(c, "--trainer") for c in found} == {trainer}
    assert {flag(c, "--output-dir").split("/")[1] for c in found} == {protocol}
    assert found[0][0] == sys.executable


def test_variables_override(repo, tmp_path):
    repo.write("configs/trainers/RAda/mine.yaml", "A: 1")
    repo.write("configs/trainers/LightRA/mine.yaml", "A: 1")
    variables = {
        "TRAINER": "LightRA RAda",
        "CFG": "mine",
        "DATASETS": "dtd eurosat",
        "SEEDS": "4 5",
        "SHOTS": "2",
        "DATA": "/my data",
        "OUTPUT": "out put",
        "DEVICES": "7",
        "TRACK": "none",
    }
    # From another directory: relative paths are the caller's.
    found = commands(bash(repo, "run_base2novel.sh", "--dry-run", cwd=tmp_path, **variables))
    assert len(found) == 2 * 2 * 2 * 2
    assert {flag(c, "--trainer") for c in found} == {"LightRA", "RAda"}
    assert {flag(c, "--seed") for c in found} == {"4", "5"}
    assert {flag(c, "--root") for c in found} == {"/my data"}
    assert {flag(c, "DATASET.NUM_SHOTS") for c in found} == {"2"}
    assert {c[0] for c in found} == {"CUDA_VISIBLE_DEVICES=7"}
    assert {flag(c, "--track") for c in found} == {"none"}
    stem = f"{tmp_path}/out put/base2novel/train_base/dtd/shots_2/LightRA/mine/seed4"
    assert flag(found[0], "--output-dir") == stem


@pytest.mark.parametrize(("value", "warm"), [("1", True), ("0", False), ("", False)])
def test_warm_is_a_switch(repo, value, warm):
    result = bash(repo, "run_few-shot.sh", "--dry-run", WARM=value, DATASETS="dtd", DEVICES="cpu")
    assert result.returncode == 0, result.stderr
    assert ("warm" in result.stderr) == warm


def test_the_launcher_is_a_variable(repo):
    result = bash(repo, "run_few-shot.sh", "--dry-run", LAUNCHER="slurm", DATASETS="dtd")
    assert result.stdout.startswith("# ARRAY1: sbatch --array=0-14 ")


def test_several_configs(repo):
    repo.write("configs/trainers/RAda/table4_mlp.yaml", "_BASE_: base2novel.yaml\n")
    variables = {"TRAINER": "RAda", "CFG": "base2novel table4_mlp", "SEEDS": "1"}
    found = commands(bash(repo, "run_base2novel.sh", "--dry-run", DATASETS="shapes", **variables))
    stems = [flag(c, "--config-file").rsplit("/", 1)[1] for c in found]
    assert stems == ["base2novel.yaml"] * 2 + ["table4_mlp.yaml"] * 2


def test_source_and_targets(repo):
    variables = {"SOURCE": "shapes", "TARGETS": "shapes_v2 shapes_a", "SEEDS": "1"}
    found = commands(bash(repo, "run_xd.sh", "--dry-run", **variables))
    names = [flag(c, "--output-dir").split("/")[3] for c in found]
    assert names == ["shapes", "shapes_v2", "shapes_a"]


def test_arguments_win_over_variables_and_options_pass(repo):
    words = ("--seeds", "9", "--dry-run", "--", "OPTIM.LR", "0.1")
    found = commands(bash(repo, "run_few-shot.sh", *words, SEEDS="1", SHOTS="1", DATASETS="dtd"))
    assert [flag(c, "--seed") for c in found] == ["9"]
    assert flag(found[0], "OPTIM.LR") == "0.1"


def test_error_status_passes_through(repo):
    result = bash(repo, "run_base2novel.sh", "--dry-run", TRAINER="LightRa")
    assert result.returncode == 2
    assert "Did you mean 'LightRA'" in result.stderr


def test_repository_environment_is_preferred_when_none_is_active(repo):
    fake = repo.path / ".venv/bin/python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\necho "venv $2 $3"\n')
    fake.chmod(0o755)
    assert bash(repo, "run_xd.sh", PYTHON="").stdout == "venv --protocol cross_dataset\n"
    active = bash(repo, "run_xd.sh", "--help", PYTHON="", VIRTUAL_ENV="/some")
    assert "venv --protocol" not in active.stdout


def test_runs_for_real(repo):
    result = bash(repo, "run_base2novel.sh", DATASETS="shapes", SEEDS="1", DEVICES="cpu")
    assert result.returncode == 0, result.stderr
    assert "50.00" in result.stdout
