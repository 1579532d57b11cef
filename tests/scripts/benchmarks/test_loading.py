"""The loaders of the comparison give the same kind of batches, and every picture once."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.data import data_manager
from scripts.benchmarks import loading as bench_loading
from scripts.benchmarks.tools import write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("loading")
    write_pictures(path, bench_loading.CLASSES, 7, test=1, side=64)
    return path


def test_loaders_give_the_same_kind_of_batches(root):
    ours, theirs, fast, cached = (
        next(iter(bench_loading.build_loader(kind, root, 0, 48)))
        for kind in ("ours", "torchvision", "fast resize", "cached")
    )
    assert torch.equal(cached["img"], ours["img"])
    assert ours["img"].shape == theirs[0].shape == (32, 3, 48, 48)
    assert ours["img"].dtype == theirs[0].dtype == torch.float32
    # The same crops of the same pictures: two levels of 255 are 0.03 when normalised.
    assert 0 < (fast["img"] - ours["img"]).abs().max() < 0.04
    # Random pictures: means of a batch differ by little, and much if one were not normalised.
    assert abs(ours["img"].mean() - theirs[0].mean()) < 0.2


def test_steps_of_a_picture(root, monkeypatch):
    monkeypatch.setattr(bench_loading, "REPEATS", 2)
    picture = next((root / "pictures" / "train").rglob("*.jpg"))
    decoding, cached, *transforms = bench_loading.steps_of_a_picture(picture, 48)
    assert decoding[1] == decoding[2] > 0, "decoding is the same"
    assert 0 < cached[1] == cached[2]
    assert [name for name, *_ in transforms] == ["test transform", "training transform"]
    assert all(ms > 0 for _, *both in transforms for ms in both)


def test_the_limit_of_pillows_resizing(root, monkeypatch):
    monkeypatch.setattr(bench_loading, "REPEATS", 5)
    found = re.search(
        r"takes ([0-9.]+) ms of torchvision's ([0-9.]+): .* is ([0-9.]+) times as fast",
        bench_loading.limit(next((root / "pictures" / "train").rglob("*.jpg")), 48),
    )
    resizing, whole, times = map(float, found.groups())
    assert 0 < resizing < whole
    assert times > 1


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_gpu_decodes_the_same_crops(root, monkeypatch):
    monkeypatch.setattr(data_manager, "_gpu", lambda _: torch.device("cpu"))
    kinds = ("ours", bench_loading.BY_GPU)
    loaders = [bench_loading.build_loader(kind, root, 0, 48) for kind in kinds]
    ours, decoded = (next(iter(loader))["img"] for loader in loaders)
    assert 0 < (ours - decoded).abs().mean() < 0.01
    assert bench_loading.measure(bench_loading.BY_GPU, root, 0, 48) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        bench_loading.main(["--decode", "cuda"])
    assert "--decode cuda needs a CUDA GPU, and PyTorch sees none" in capsys.readouterr().err


@pytest.mark.parametrize("kind", bench_loading.KINDS)
def test_an_epoch_drops_the_last_short_batch(root, kind):
    assert sum(bench_loading._pictures(bench_loading.build_loader(kind, root, 0, 48))) == 64
    assert bench_loading.measure(kind, root, 0, 48) > 0


def test_only_what_goes_to_a_gpu_is_handed_over_as_bytes(root):
    types = {
        kind: next(iter(bench_loading.build_loader(kind, root, 1, 48)))["img"].dtype
        for kind in ("cached", "bytes")
    }
    assert types == {"cached": torch.float32, "bytes": torch.uint8}


def test_photographs_have_their_usual_size(tmp_path):
    path = tmp_path / "a.jpg"
    bench_loading.write_photograph(path, np.random.default_rng(0))
    assert Image.open(path).size == (500, 375)
    assert 80_000 < path.stat().st_size < 130_000


def test_every_size_has_its_rows(tmp_path, monkeypatch):
    asked = []

    def speed(kind, root, workers, side):
        asked.append((root.name, workers, kind))
        return 100.0 * (1 + bench_loading.KINDS.index(kind))

    monkeypatch.setattr(bench_loading, "_measure_apart", speed)
    monkeypatch.setattr(bench_loading.os, "cpu_count", lambda: 2)
    rows = bench_loading.compare_sizes(tmp_path, 20, [0, 4], 32, 1)
    assert [row[:2] for row in rows] == [
        ["32x32", "0"], ["32x32", "4"], ["500x375", "0"], ["500x375", "4"]
    ]  # fmt: skip
    speeds = ["100 (1.00x)", "200 (2.00x)", "300 (3.00x)", "400 (4.00x)", "500 (5.00x)"]
    assert rows[1][2:] == [*speeds, "100"]
    assert rows[2][2:] == [*speeds, "200"]
    assert len(asked) == 4 * len(bench_loading.KINDS)
