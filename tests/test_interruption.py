"""Killed at any moment and started again, a run ends with the very same weights."""

import json
import random
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import train
from tests.conftest import REPOSITORY
from tests.processes import fork

EPOCHS, KILLS = 24, 10


def run_training(root: str, output: Path) -> None:
    """What a process of its own does; what it prints goes beside its folder."""
    with output.with_suffix(".txt").open("a", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        train.main(
            ["--root", root, "--output-dir", str(output), "--seed", "3", "--device", "cpu",
             "--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml"),
             "--config-file", str(REPOSITORY / "configs/trainers/LightRA/base2novel.yaml"),
             "DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base",
             "OPTIM.MAX_EPOCH", str(EPOCHS)]
        )  # fmt: skip


def finish(root: str, output: Path) -> tuple[dict, dict]:
    process = fork(run_training, root, output)
    process.join(timeout=300)
    assert process.exitcode == 0, output.with_suffix(".txt").read_text()
    weights = torch.load(
        output / "ResidualAttention" / f"model.pth.tar-{EPOCHS}", weights_only=True
    )
    return weights["state_dict"], json.loads((output / "result.json").read_text())


def wait_for_training(process: BaseProcess, output: Path, seen: float) -> None:
    """Return when the run has saved an epoch, or ended."""
    file = output / "resume.pth.tar"
    while process.is_alive() and not (file.exists() and file.stat().st_mtime_ns > seen):
        time.sleep(0.01)


def test_ten_kills_leave_the_weights_bit_identical(shapes_root, tmp_path):
    expected, whole = finish(shapes_root, tmp_path / "whole")

    output = tmp_path / "killed"
    draw = random.Random(0)
    resumed = 0
    for kill in range(KILLS):
        file = output / "resume.pth.tar"
        seen = file.stat().st_mtime_ns if file.exists() else 0
        resumed += seen > 0
        process = fork(run_training, shapes_root, output)
        if kill % 5 == 4:
            time.sleep(draw.uniform(0, 1))  # anywhere, most likely before the first step
        else:
            wait_for_training(process, output, seen)
            time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
        assert not (output / "result.json").exists(), (
            "finished before it could be killed: raise EPOCHS"
        )
        if file.exists():  # never half a file
            torch.load(file, weights_only=True)
    assert resumed >= KILLS // 2

    weights, result = finish(shapes_root, output)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
    assert result["metrics"] == whole["metrics"]
    assert not (output / "resume.pth.tar").exists()
