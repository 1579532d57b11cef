"""The loaders of the comparison give the same kind of batches, and every picture once."""

import pytest
import torch

from scripts.benchmarks import loading as bench_loading
from scripts.benchmarks.tools import write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("loading")
    write_pictures(path, bench_loading.CLASSES, 7, test=1, side=64)
    return path


def test_loaders_give_the_same_kind_of_batches(root):
    ours, theirs, fast = (
        next(iter(bench_loading.build_loader(kind, root, 0, 48)))
        for kind in ("ours", "torchvision", "fast resize")
    )
    assert ours["img"].shape == theirs[0].shape == (32, 3, 48, 48)
    assert ours["img"].dtype == theirs[0].dtype == torch.float32
    # The same crops of the same pictures: two levels of 255 are 0.03 when normalised.
    assert 0 < (fast["img"] - ours["img"]).abs().max() < 0.04
    # Random pictures: means of a batch differ by little, and much if one were not normalised.
    assert abs(ours["img"].mean() - theirs[0].mean()) < 0.2


def test_steps_of_a_picture(root, monkeypatch):
    monkeypatch.setattr(bench_loading, "REPEATS", 2)
    picture = next((root / "pictures" / "train").rglob("*.jpg"))
    decoding, *transforms = bench_loading.steps_of_a_picture(picture, 48)
    assert decoding[1] == decoding[2] > 0, "decoding is the same"
    assert [name for name, *_ in transforms] == ["test transform", "training transform"]
    assert all(ms > 0 for _, *both in transforms for ms in both)


@pytest.mark.parametrize("kind", bench_loading.KINDS)
def test_an_epoch_drops_the_last_short_batch(root, kind):
    assert sum(bench_loading._pictures(bench_loading.build_loader(kind, root, 0, 48))) == 64
    assert bench_loading.measure(kind, root, 0, 48) > 0
