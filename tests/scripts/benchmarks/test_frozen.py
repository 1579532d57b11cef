"""The training of methods on frozen features, at a tiny size."""

import json

import numpy as np
import pytest

from dassl.engine import TRAINER_REGISTRY
from scripts import bench
from scripts.benchmarks import frozen


def test_all_methods_on_frozen_features_are_timed():
    names = frozen.methods()
    assert len(names) == 9
    assert {TRAINER_REGISTRY.get(name).__module__.split(".")[1] for name in names} == {"frozen"}


@pytest.mark.parametrize("method", ["GDA", "LPPlusPlus", "TaskRes"])
def test_a_training_is_timed(method):
    found = frozen.measure(method, "dtd", 3, 2, "cpu", width=8, views=2)
    assert found.keys() == frozen.COLUMNS.keys()
    assert (found["method"], found["input"], found["classes"]) == (method, "dtd", 3)
    assert found["seconds"] > 0


def test_a_datasets_own_settings_are_taken():
    assert frozen.own_options("GDA", "imagenet") == ["VAL.POLICY", "none"]
    assert "TRAINER.TipAdapter.ALPHA" in frozen.own_options("TipAdapter", "dtd")
    assert frozen.own_options("CLAP", "dtd") == []


def test_features_lie_around_their_class(tmp_path):
    frozen.write_features(tmp_path, 4, 8, 64, 3)
    train, text = np.load(tmp_path / "train.npz"), np.load(tmp_path / "text.npz")
    assert train["features"].shape == (32, 3, 64)
    found = train["features"].mean(1) @ text["text_features"].T
    assert (found.argmax(1) == train["labels"]).mean() > 0.9


def test_rows(monkeypatch, capsys):
    def measure_apart(command, task, threads):
        return {"method": task["method"], "input": task["kind"], "classes": task["classes"]}

    monkeypatch.setattr(frozen, "measure_apart", measure_apart)
    words = ["--trainers", "GDA", "CLAP", "--datasets", "dtd", "eurosat", "--json"]
    assert bench.main(["frozen", *words]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["method"], r["input"], r["classes"]) for r in rows] == [
        *(("GDA", "dtd", 47), ("GDA", "eurosat", 10)),
        *(("CLAP", "dtd", 47), ("CLAP", "eurosat", 10)),
    ]
    assert bench.main(["frozen", "--trainers", "CLIP"]) != 0


def test_what_is_measured_is_printed_before_the_next_one(monkeypatch, capsys):
    """An interrupted command has lost nothing."""

    def ask_process(*words, stderr):
        task = json.loads(words[2])
        if task["method"] == "CLAP":
            raise KeyboardInterrupt
        return {"method": task["method"], "input": task["kind"], "classes": 47, "seconds": 1.5}

    monkeypatch.setattr("scripts.benchmarks.command.ask_process", ask_process)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        frozen.main(["--trainers", "GDA", "CLAP", "--datasets", "dtd"])
    line = capsys.readouterr().err.splitlines()[0]
    assert json.loads(line) == {"method": "GDA", "input": "dtd", "classes": 47, "seconds": 1.5}
