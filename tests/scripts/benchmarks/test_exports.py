"""The table of what is exported of every method."""

import pytest

from scripts.benchmarks import exports
from tests.runs import OURS

ABOUT = {
    "agreement": {
        "model.onnx": {"logits": 7.6e-6, "features": 1.5e-7},
        "model.pt2": {"logits": 0.0, "features": 2e-9},
    },
    "cosine": True,
    "left_out": {"weights": "adapters in the way"},
}


def test_all_methods_are_in_it():
    # Other tests register methods of their own.
    assert set(OURS) <= set(exports.methods())


def test_a_row_has_the_worst_difference_of_each_file():
    found = exports.row("X", ABOUT)
    why = "`clip_weights.pt`: adapters in the way"
    assert found == ["X", "7.6e-06", "2.0e-09", "-", "yes", why]


def test_methods_without_a_graph_have_their_reason(capsys):
    assert exports.main(["--trainers", "RAdaTTT", "TPT"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["RAdaTTT", "TPT"]
    assert all("each test image trains the model by steps of its own" in row for row in rows)


def test_one_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    def measure(name, runs):
        if name == "RAda":
            raise ValueError("model.onnx does not\nagree")
        return ABOUT

    monkeypatch.setattr(exports, "measure", measure)
    assert exports.main(["--trainers", "RAda", "CoOp"]) == 1
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert "model.onnx does not agree" in first
    assert "7.6e-06" in second

    def broken(name, runs):
        raise KeyError("a mistake in the code")

    monkeypatch.setattr(exports, "measure", broken)
    with pytest.raises(KeyError):
        exports.main(["--trainers", "RAda"])
