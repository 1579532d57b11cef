"""An epoch from pictures and on cached features, at a tiny size."""

import json

import pytest

from clip.backbones import Backbone
from scripts import bench
from scripts.benchmarks import features


@pytest.mark.parametrize("kind", features.WAYS)
def test_only_pictures_are_encoded(root, kind, count_calls):
    """For each step of the one, and never for the other."""
    encoded = count_calls(Backbone, "encode_image")
    found = features.measure(kind, root, "shapes", "cpu", shots=2, steps=2)
    assert found["seconds"] > 0
    assert found["mib"] > 10
    assert [len(x) for _, x in encoded] == ([1, 1, 1] if kind == "pictures" else [])


def test_rows(monkeypatch, capsys):
    asked, seconds = [], iter([9, 2, 4, 1, 8, 3])

    def measure_apart(command, task, threads):
        asked.append(task["kind"])
        return {"seconds": next(seconds), "mib": len(asked)}

    monkeypatch.setattr(features, "measure_apart", measure_apart)
    words = ["--backbone", "shapes", "--classes", "2", "--shots", "1", "--rounds", "3", "--json"]
    assert bench.main(["features", *words]) == 0
    assert asked == ["pictures", "features"] * 3
    rows = json.loads(capsys.readouterr().out)
    assert [(r["input"], r["seconds"], r["mib"]) for r in rows] == [
        ("pictures", 8, 5),
        ("features", 2, 6),
    ]


def test_failures_are_shown(monkeypatch, capsys):
    monkeypatch.setattr(features, "measure_apart", lambda *_: {"error": "ValueError: no ViT"})
    words = ["--backbone", "shapes", "--classes", "2", "--shots", "1", "--rounds", "1"]
    assert bench.main(["features", *words]) == 1
    assert "RAda (pictures, batch 1): ValueError: no ViT" in capsys.readouterr().out
