"""Samplers, transforms and datasets that behave as Dassl's do."""

import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dassl.data import DatasetWrapper, read_image
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform, randaugment
from tests.dassl.data.test_data import images, picture, small_cfg


def counts_as_dassl(items, batch_size, n_ins):
    """How many images of each class Dassl's class sampler gives, by its rule written out."""
    left = {}
    for label, number in Counter(item.label for item in items).items():
        left[label] = max(1, number // n_ins)
    per_batch = batch_size // n_ins
    taken = Counter()
    while len(left) >= per_batch:
        for label in random.sample(sorted(left), per_batch):
            taken[label] += n_ins
            left[label] -= 1
            if not left[label]:
                del left[label]
    return taken


@pytest.mark.parametrize(
    ("counts", "batch_size", "n_ins", "expected"),
    [
        ([8, 8, 8, 1], 8, 2, {0: 2, 1: 2, 2: 2, 3: 2}),  # the one image twice
        ([8, 8, 8, 2], 8, 2, {0: 2, 1: 2, 2: 2, 3: 2}),
        ([5, 5], 4, 2, {0: 4, 1: 4}),
        ([1, 1, 1], 12, 4, {0: 4, 1: 4, 2: 4}),
        ([7, 7, 7], 9, 2, None),
    ],
)
def test_class_sampler_counts_are_dassls(counts, batch_size, n_ins, expected):
    items = images(counts)
    if expected is None:  # every class takes part in a batch of 9 // 2 = 4, there are 3
        with pytest.raises(ValueError, match="needs 4 classes, there are 3"):
            build_sampler("RandomClassSampler", None, items, batch_size=batch_size, n_ins=n_ins)
        return
    assert counts_as_dassl(items, batch_size, n_ins) == expected
    sampler = build_sampler("RandomClassSampler", None, items, batch_size=batch_size, n_ins=n_ins)
    order = list(sampler)
    assert Counter(items[i].label for i in order) == expected
    assert len(sampler) == len(order)
    assert {items[i].label for i in order[:batch_size]} == set(expected)


def test_class_sampler_with_fewer_classes_per_batch(capsys):
    items = images([8, 8, 8, 1])
    random.seed(0)
    longest = {sum(counts_as_dassl(items, 4, 2).values()) for _ in range(300)}
    sampler = build_sampler("RandomClassSampler", None, items, batch_size=4, n_ins=2)
    lengths = {len(list(sampler)) for _ in range(300)}
    assert lengths <= longest
    assert max(lengths) == len(sampler)
    sampler = build_sampler("RandomClassSampler", None, items, batch_size=5, n_ins=2)
    assert "N_INS 2 does not divide BATCH_SIZE 5" in capsys.readouterr().out
    order = list(sampler)
    for start in range(0, len(order), 4):  # two classes each, rounded down
        assert sorted(Counter(items[i].label for i in order[start : start + 4]).values()) == [2, 2]


def test_domain_sampler_ends_where_dassls_does():
    """After the batch in which a chosen domain has less than a share left."""
    items = [
        Datum(str(n), 0, domain) for domain, count in enumerate([9, 9, 5]) for n in range(count)
    ]
    sampler = build_sampler("RandomDomainSampler", None, items, batch_size=6, n_domain=0)
    assert len(sampler) == len(list(sampler)) == 12  # the third domain has 1 left after two
    lengths = set()
    sampler = build_sampler("RandomDomainSampler", None, items, batch_size=4, n_domain=2)
    sampler._length = len(items)
    for _ in range(300):
        order = list(sampler)
        lengths.add(len(order))
        left = Counter(item.domain for item in items)
        for start in range(0, len(order), 4):
            chosen = Counter(items[i].domain for i in order[start : start + 4])
            assert sorted(chosen.values()) == [2, 2]
            left -= chosen
            ends = any(left[domain] < 2 for domain in chosen)
            assert ends == (start + 4 == len(order))
    assert min(lengths) < max(lengths)  # it depends on the draw
    order = list(build_sampler("SeqDomainSampler", None, items, batch_size=6))
    assert [items[i].domain for i in order] == [0, 0, 1, 1, 2, 2] * 2


@pytest.mark.parametrize("name", ["archive.zip", "archive.tar", "archive.tar.gz", "archive.tgz"])
def test_download_data(tmp_path, monkeypatch, capsys, name):
    content = tmp_path / "content" / "images"
    content.mkdir(parents=True)
    (content / "a.txt").write_text("picture")
    kind = {"zip": "zip", "tar": "tar"}.get(name.split(".")[-1], "gztar")
    packed = shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "content")
    dataset = DatasetBase(train_x=images([1]))
    target = tmp_path / "data" / "set" / name
    dataset.download_data(f"file://{packed}", str(target), from_gdrive=False)
    assert (target.parent / "images" / "a.txt").read_text() == "picture"
    assert f"File extracted to {target.parent}" in capsys.readouterr().out

    def download(url, output, quiet):
        shutil.copy(url, output)
        return output

    monkeypatch.setattr("gdown.download", download)
    second = tmp_path / "second" / name
    dataset.download_data(packed, str(second))
    assert (second.parent / "images" / "a.txt").read_text() == "picture"
    with pytest.raises(ValueError, match=r"must end in \.zip, \.tar, \.tar\.gz or \.tgz"):
        dataset.download_data(packed, str(tmp_path / "a.rar"))
    broken = tmp_path / "broken"
    broken.write_text("no archive")
    with pytest.raises(ValueError, match="cannot be extracted"):
        dataset.download_data(str(broken), str(tmp_path / "third" / name))
    monkeypatch.setattr("gdown.download", lambda *args, **kwargs: None)
    with pytest.raises(ConnectionError, match="cannot download"):
        dataset.download_data(packed, str(tmp_path / "fourth" / name))


# ---------------------------------------------------------------------- transforms as Dassl's


def level_map(operation, value):
    """Return what an operation makes of the 256 grey levels."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, 0)).convert("RGB")
    return np.asarray(randaugment._APPLY[operation](ramp, value))[0, :, 0]


def test_randaugment_has_dassls_ranges(monkeypatch):
    levels = np.arange(256)
    ranges = {operation: (low, high) for operation, low, high in randaugment.RandAugment.table}
    assert len(randaugment.RandAugment.table) == 16
    assert ranges["posterize"] == (4, 8)
    picked = [op for op in randaugment.RandAugment.table if op[0] == "posterize"]
    monkeypatch.setattr(random, "choices", lambda operations, k: picked)
    ramp = Image.fromarray(levels.astype(np.uint8)[None].repeat(3, 0)).convert("RGB")
    for magnitude, bits in ((0, 4), (10, 5), (15, 6), (30, 8)):
        out = np.asarray(randaugment.RandAugment(1, magnitude)(ramp))[0, :, 0]
        assert np.array_equal(out, levels >> (8 - bits) << (8 - bits))
    brighter = np.minimum(255, levels + 36.5).astype(int)
    expected = np.where(brighter < 128, brighter, 255 - brighter)
    assert np.array_equal(level_map("solarize_add", 36.5), expected)
    expected = np.where(levels < 85.3, levels, 255 - levels)
    assert np.array_equal(level_map("solarize", 85.3), expected)


@pytest.mark.parametrize(
    ("make", "number", "low"),
    [(randaugment.RandAugment2, 15, 0.1), (randaugment.RandAugmentFixMatch, 14, 0.05)],
)
def test_randaugment_with_random_magnitudes(monkeypatch, make, number, low):
    ranges = {operation: span for operation, *span in make.table}
    assert len(ranges) == number
    assert ranges["posterize"] == [4, 8]
    assert ranges["rotate"] == [-30, 30]
    assert ranges["translate_x"] == ranges["shear_y"] == [-0.3, 0.3]
    assert ranges["contrast"][0] == low
    assert ("invert" in ranges) == (number == 15)
    seen = []

    def note(image, value):
        seen.append(value)
        return image

    monkeypatch.setattr(make, "table", [("note", -2, 4)])
    monkeypatch.setitem(randaugment._APPLY, "note", note)
    random.seed(0)
    for _ in range(1000):
        make(3)(picture())
    share = 0.6 if number == 15 else 1.0
    assert len(seen) == pytest.approx(3000 * share, rel=0.05)
    assert min(seen) == pytest.approx(-2, abs=0.02)
    assert max(seen) == pytest.approx(4, abs=0.02)
    assert sum(seen) / len(seen) == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match=r"INPUT\.RANDAUGMENT_N must not be negative"):
        make(-1)


def test_moving_is_a_share_of_the_side_or_pixels():
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    dark = {}
    random.seed(0)
    for operation, value in (
        ("translate_x", 0.25),
        ("translate_y", 0.25),
        ("translate_x_pixels", 4),
        ("translate_y_pixels", 4),
    ):
        moved = randaugment._APPLY[operation](image, value)
        dark[operation] = 255 * 800 - int(np.asarray(moved)[..., 0].sum())
    assert [count // 255 for count in dark.values()] == [200, 200, 80, 160]


@pytest.mark.parametrize("others", [(), ("random_flip",), ("random_resized_crop",)])
def test_center_crop_changes_nothing_in_training(others):
    results = []
    for names in (others, (*others, "center_crop"), ("center_crop", *others)):
        torch.manual_seed(1)
        results.append(build_transform(small_cfg(*names))(picture()))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_random_translation_is_bilinear(monkeypatch):
    transform = build_transform(small_cfg("random_translation", INTERPOLATION="bicubic"))
    moving = transform.transforms[1]
    monkeypatch.setattr(random, "random", lambda: 1.0)  # only resized
    image = T.Resize((16, 16), interpolation=T.InterpolationMode.BICUBIC)(picture())
    assert np.array_equal(np.asarray(moving(image)), np.asarray(image))
    assert moving.interpolation == T.InterpolationMode.BILINEAR


@pytest.mark.parametrize("name", ["imagenet_policy", "cifar10_policy", "svhn_policy"])
def test_policies_uncover_grey(name):
    policy = build_transform(small_cfg(name)).transforms[1]
    assert list(policy.fill) == [128, 128, 128]


def test_wrappers_have_the_plain_transform(make_cfg):
    """Subclasses apply it themselves, whatever RETURN_IMG0 says."""
    cfg = make_cfg()
    wrapper = DatasetWrapper(cfg, build_dataset(cfg).train_x, transform=build_transform(cfg))
    assert "img0" not in wrapper[0]
    image = read_image(wrapper.data_source[0].impath)
    expected = T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)(
        T.ToTensor()(T.Resize((8, 8))(image))
    )
    assert torch.equal(wrapper.to_tensor(image), expected)
