"""What the figures of trained runs show."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.drawing import pictures
from scripts.drawing.mask_values import ValueCounts


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Return a function that draws and gives the figure instead of writing it."""

    def caught(save, *args):
        found = []
        monkeypatch.setattr(pictures, "save", lambda figure, path: found.append(figure))
        save(tmp_path / "x.png", *args)
        return found[0]

    return caught


def test_heat_maps(figure):
    rng = np.random.default_rng(0)
    names = ["red circle", "blue star"]
    maps = [
        pictures.HeatMap(
            Image.new("RGB", (9, 9)),
            ["a/b.png", "true: red circle", "predicted: red circle (51%)"],
            names,
            0,
            1 + scale * rng.normal(size=(2, 16)),
            rng.normal(size=(2, 16)),
        )
        for scale in (0.1, 0.5)
    ]
    drawn = figure(pictures.save_heat_maps, maps, "title")
    axes = [axis for axis in drawn.axes if axis.get_images()]
    assert len(axes) == 8
    norms = [axis.get_images()[0].norm for axis in axes[1:4]]
    assert [norm.vcenter for norm in norms] == [1, 0, 0]
    assert norms[1].halfrange == norms[2].halfrange
    for row in (axes[:4], axes[4:]):
        assert row[0].get_title(loc="left").splitlines()[1] == "true: red circle"
        assert [t.get_text() for t in row[1].get_yticklabels()] == names
        assert [a.get_images()[0].norm.halfrange for a in row[1:]] == [
            norm.halfrange for norm in norms
        ]
        assert all(axis.get_xlabel() == "embedding dimension d" for axis in row[1:])
        product = row[1].get_images()[0].get_array() * row[2].get_images()[0].get_array()
        np.testing.assert_allclose(row[3].get_images()[0].get_array(), product)
    bars = [axis.get_xlabel() for axis in drawn.axes if axis not in axes]
    assert [bar.split(" ")[0] for bar in bars] == ["M", "R", "M"]


def test_untrained_mask_has_colours(figure):
    one = pictures.HeatMap(
        Image.new("RGB", (9, 9)), ["a"], ["b"], None, np.ones((1, 4)), np.zeros((1, 4))
    )
    drawn = figure(pictures.save_heat_maps, [one], "title")
    assert all(
        axis.get_images()[0].norm.halfrange > 0 for axis in drawn.axes[1:4]
    )  # else division by zero


def test_scatter(figure):
    label = np.arange(60) % 30
    points = np.random.default_rng(0).normal(size=(60, 2))
    names = [f"class {k}" for k in range(30)]
    drawn = figure(
        pictures.save_scatter, [("R", points), ("M * R", -points)], label, names, "title"
    )
    assert [axis.get_title() for axis in drawn.axes] == ["R", "M * R"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == names
    offsets = drawn.axes[1].collections[7].get_offsets()
    np.testing.assert_allclose(offsets, -points[label == 7])
    styles = {json.dumps(pictures._style(k), default=str) for k in range(160)}
    assert len(styles) == 160


def test_histogram(figure):
    counts = ValueCounts()
    counts.add(torch.tensor([0.0, 1.0, 1.0, 1.5]))
    drawn = figure(pictures.save_histogram, counts, "title")
    (axis,) = drawn.axes
    assert axis.get_yscale() == "log"
    assert axis.get_title() == "title\n4 values from 0 to 1.5, 25% exactly 0, 50% exactly 1"
