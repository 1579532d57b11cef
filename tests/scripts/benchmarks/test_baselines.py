"""The step table of the methods compared with, at a tiny size."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

import clip
from dassl.engine import TRAINER_REGISTRY, read_result
from scripts import bench
from scripts.benchmarks import baselines as bench_baselines
from scripts.benchmarks import command as bench_command
from scripts.benchmarks import efficiency
from scripts.benchmarks.tools import build_run, run_config


def test_ours_and_zero_shot_are_no_baselines_and_all_others_are():
    names = bench_baselines.baselines()
    assert set(names) >= {"MMA", "CLIPAdapter", "HPT", "TPT", "PromptAlign"}
    left_out = {*efficiency.methods(), *bench_baselines.test_time_methods()} - set(names)
    assert {"LightRA", "RAda", "RAdaTTT", "ZeroshotCLIP"} <= left_out
    for name in left_out - {*bench_baselines.OURS, *bench_baselines.ZERO_SHOT}:
        assert "base2novel" not in TRAINER_REGISTRY.get(name).protocols


@pytest.mark.parametrize("method", bench_baselines.baselines())
def test_every_baseline_makes_a_step(root, method):
    kind = bench_baselines.tasks([method], {method: 4})[0]["kind"]
    assert kind == ("views" if method in ("TPT", "PromptAlign") else "pictures")
    found = bench_baselines.measure(method, kind, 4, root, "shapes", "cpu", 1)
    assert found.keys() == bench_baselines.COLUMNS.keys()
    assert (found["method"], found["input"], found["batch"]) == (method, kind, 4)
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


@pytest.mark.parametrize(("method", "adapted"), [("TPT", 4 * 128), ("PromptAlign", 33_536)])
def test_a_step_of_test_time_training_is_its_episodes(root, monkeypatch, method, adapted):
    calls = []
    trainer, look = TRAINER_REGISTRY.get(method), bench_baselines.classify
    infer = trainer.model_inference

    def classify(trainer, batch, weights):
        calls.append(("look", batch["img"]))
        return look(trainer, batch, weights)

    def model_inference(self, views):
        calls.append(("step", views))
        return infer(self, views)

    monkeypatch.setattr(bench_baselines, "classify", classify)
    monkeypatch.setattr(trainer, "model_inference", model_inference)
    found = bench_baselines.measure(method, "views", 2, root, "shapes", "cpu", 2)
    assert [what for what, _ in calls] == ["step", "look"] * 3, "a warm-up and two pairs"
    assert (found["parameters"], found["batch"]) == (adapted, 2)
    assert calls[0][1].shape == (2, 64, 3, 48, 48)
    plain = build_run("ZeroshotCLIP", Path(root), "shapes", "cpu", "DATALOADER.NUM_WORKERS", 0)
    pictures = next(iter(plain.test_loader))["img"][:2]
    torch.testing.assert_close(calls[1][1], pictures)


def test_promptalign_starts_from_an_untrained_maple_of_its_form(root):
    start = bench_baselines.untrained_start("PromptAlign", Path(root), "shapes", "cpu")
    options = ("DATALOADER.NUM_WORKERS", 0, "FIRST_STAGE.DIR", start)
    trainer = build_run("PromptAlign", Path(root), "shapes", "cpu", *options)
    assert trainer.cfg.TRAINER.MaPLe.PROMPT_DEPTH == 3
    assert read_result(start)["config"]["TRAINER"]["MaPLe"] == trainer.cfg.TRAINER.MaPLe
    trainer.load_model("")
    assert trainer.statistics.images == 6, "all pictures to train on"
    again = bench_baselines.untrained_start("PromptAlign", Path(root), "shapes", "cpu")
    assert again == start
    assert bench_baselines.untrained_start("TPT", Path(root), "shapes", "cpu") is None
    other = bench_baselines.untrained_start("TPT:ttt_coop", Path(root), "shapes", "cpu")
    assert read_result(other)["trainer"] == "CoOp"


def test_other_files_of_a_method(root):
    cfg = run_config("DePT:base2novel_maple", Path(root), "shapes", "cpu")
    assert (cfg.TRAINER.NAME, cfg.TRAINER.DePT.HOST) == ("DePT", "MaPLe")
    assert run_config("TPT", Path(root), "shapes", "cpu").TRAINER.TPT.START == ""
    found = bench_baselines.measure(
        "DePT:base2novel_maple", "pictures", 4, root, "shapes", "cpu", 1
    )
    host = bench_baselines.measure("MaPLe", "pictures", 4, root, "shapes", "cpu", 1)
    assert found["parameters"] == host["parameters"] + 4 * 128 + 129 * 3
    with pytest.raises(ValueError, match=r"DePT:maple: .*maple\.yaml.*base2novel_maple"):
        run_config("DePT:maple", Path(root), "shapes", "cpu")


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
    batches = {"MMA": 16, "CLIPAdapter": 32, "HPT": 8, "TPT": 1, "TPT:ttt_coop": 2}
    found = bench_baselines.tasks(list(batches), batches)
    assert [tuple(task.values()) for task in found] == [
        ("MMA", "pictures", 16),
        ("CLIPAdapter", "pictures", 32),
        ("CLIPAdapter", "features", 32),
        ("HPT", "pictures", 8),
        ("TPT", "views", 1),
        ("TPT:ttt_coop", "views", 2),
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

    monkeypatch.setattr(bench_command.subprocess, "run", run)
    words = ["--backbone", "shapes", "--trainers", "TPT", "MMA", "HPT", "--classes", "2", "--json"]
    assert bench.main(["baselines", *words]) == 1
    found = {(one["method"], one["batch"]): one for one in json.loads(capsys.readouterr().out)}
    assert found.keys() == {("TPT", 1), ("MMA", 16), ("HPT", 8)}
    assert found["HPT", 8]["error"] == "ValueError: no ViT"

    assert bench.main(["baselines", *words[:-1], "--batch", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for heading, _ in bench_baselines.COLUMNS.values():
        assert heading in lines[0]
    assert lines[2].split()[:3] == ["TPT", "views", "5"]
    assert lines[3].split() == [
        "MMA",
        "pictures",
        "5",
        "fp32",
        "1,234",
        "1.500",
        "3.00",
        "2",
        "9",
    ]
    assert lines[-1] == "HPT (pictures, batch 5): ValueError: no ViT"


@pytest.mark.usefixtures("forked_processes")
def test_a_process_of_its_own(capsys):
    words = ["--backbone", "shapes", "--trainers", "MMA", "PromptAlign", "--classes", "2"]
    words += ["--batch", "2", "--steps", "1", "--device", "cpu", "--threads", "1", "--json"]
    assert bench_baselines.main(words) == 0
    for found in json.loads(capsys.readouterr().out):
        assert found["ratio"] > 0
        assert found.keys() == bench_baselines.COLUMNS.keys()


def test_wrong_words(capsys):
    assert bench_baselines.main(["--trainers", "MAA"]) == 1
    assert "Did you mean 'MMA'" in capsys.readouterr().err
    assert bench_baselines.main(["--trainers", "DePT:maple", "--backbone", "shapes"]) == 1
    assert "base2novel_maple" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_baselines.main(["--classes", "0"])
    assert "--classes must be at least 1, got 0" in capsys.readouterr().err
