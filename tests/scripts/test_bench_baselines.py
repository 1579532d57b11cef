"""The step table of the methods compared with, at a tiny size."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

import clip
from dassl.engine import TRAINER_REGISTRY
from scripts import bench, bench_baselines, efficiency
from scripts.bench_tools import build_run, write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("baselines")
    write_pictures(path, classes=3, train=2, test=1, side=48)
    return str(path)


def test_ours_and_zero_shot_are_no_baselines_and_all_others_are():
    names = bench_baselines.baselines()
    assert set(names) >= {"MMA", "CLIPAdapter", "HPT"}
    left_out = set(efficiency.methods()) - set(names)
    assert {"LightRA", "RAda", "ZeroshotCLIP"} <= left_out
    for name in left_out - {*bench_baselines.OURS, *bench_baselines.ZERO_SHOT}:
        assert "base2novel" not in TRAINER_REGISTRY.get(name).protocols


@pytest.mark.parametrize("method", bench_baselines.baselines())
def test_every_baseline_makes_a_step(root, method):
    found = bench_baselines.measure(method, "pictures", 4, root, "shapes", "cpu", 1)
    assert found.keys() == bench_baselines.COLUMNS.keys()
    assert (found["method"], found["input"], found["batch"]) == (method, "pictures", 4)
    assert found["parameters"] > 0
    assert found["ratio"] > 0
    assert found["speed"] == pytest.approx(4 / found["seconds"])


def test_a_step_trains_and_zero_shot_only_looks(root, monkeypatch):
    calls = []
    trainer = TRAINER_REGISTRY.get("CLIPAdapter")
    update, classify = trainer.model_update, bench_baselines.classify
    monkeypatch.setattr(trainer, "model_update", lambda *a: calls.append("step") or update(*a))
    monkeypatch.setattr(
        bench_baselines, "classify", lambda *a: calls.append("look") or classify(*a)
    )
    found = bench_baselines.measure("CLIPAdapter", "pictures", 4, root, "shapes", "cpu", 2)
    assert calls == ["step", "look"] * 3, "a warm-up and two pairs"
    assert found["ratio"] > 0
    calls.clear()
    found = bench_baselines.measure("CLIPAdapter", "features", 4, root, "shapes", "cpu", 2)
    assert calls == ["step"] * 3
    assert found["ratio"] is None


def test_zero_shot_is_the_frozen_model(root):
    trainer = build_run("MaPLe", Path(root), "shapes", "cpu", "DATALOADER.NUM_WORKERS", 0)
    pictures, weights = torch.randn(2, 3, 48, 48), torch.eye(5, 128)
    found = bench_baselines.classify(trainer, {"img": [pictures, pictures + 1]}, weights)
    with torch.no_grad():
        frozen = clip.load("shapes").encode_image(pictures)
        assert not torch.allclose(trainer.model.backbone.encode_image(pictures), frozen)
    torch.testing.assert_close(found, 100 * torch.nn.functional.normalize(frozen)[:, :5])


def test_methods_without_a_step(root):
    with pytest.raises(ValueError, match="ZeroshotCLIP does not train"):
        bench_baselines.measure("ZeroshotCLIP", "pictures", 4, root, "shapes", "cpu", 1)


def test_tasks_are_methods_by_input():
    batches = {"MMA": 16, "CLIPAdapter": 32, "HPT": 8}
    found = bench_baselines.tasks(["MMA", "CLIPAdapter", "HPT"], batches)
    assert [tuple(task.values()) for task in found] == [
        ("MMA", "pictures", 16),
        ("CLIPAdapter", "pictures", 32),
        ("CLIPAdapter", "features", 32),
        ("HPT", "pictures", 8),
    ]


def test_batches_are_the_configs(monkeypatch, capsys):
    def run(command, **_):
        assert command[2] == "baselines"
        task = json.loads(command[command.index("--worker") + 1])
        if task["method"] == "HPT":
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: no ViT\n")
        good = {"method": task["method"], "input": task["kind"], "batch": task["batch"]}
        good |= {"precision": "fp32", "parameters": 1234, "seconds": 1.5, "ratio": 3.0}
        good |= {"speed": 2.0, "peak_mib": 9}
        return subprocess.CompletedProcess(command, 0, json.dumps(good), "")

    monkeypatch.setattr(efficiency.subprocess, "run", run)
    words = ["--backbone", "shapes", "--trainers", "MMA", "HPT", "--classes", "2", "--json"]
    assert bench.main(["baselines", *words]) == 1
    found = {(one["method"], one["batch"]): one for one in json.loads(capsys.readouterr().out)}
    assert found.keys() == {("MMA", 16), ("HPT", 8)}
    assert found["HPT", 8]["error"] == "ValueError: no ViT"

    assert bench.main(["baselines", *words[:-1], "--batch", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for heading, _ in bench_baselines.COLUMNS.values():
        assert heading in lines[0]
    assert lines[2].split() == [
        "MMA",
        "pictures",
        "5",
        "fp32",
        "1,234",
        "1.500",
        "3.00",
        "2.0",
        "9",
    ]
    assert lines[-1] == "HPT (pictures, batch 5): ValueError: no ViT"


def test_a_process_of_its_own(capsys):
    words = ["--backbone", "shapes", "--trainers", "MMA", "--classes", "2", "--batch", "2"]
    words += ["--steps", "1", "--device", "cpu", "--threads", "1", "--json"]
    assert bench_baselines.main(words) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ratio"] > 0
    assert found.keys() == bench_baselines.COLUMNS.keys()


def test_wrong_words(capsys):
    assert bench_baselines.main(["--trainers", "MAA"]) == 1
    assert "Did you mean 'MMA'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_baselines.main(["--classes", "0"])
    assert "--classes must be at least 1, got 0" in capsys.readouterr().err
