"""Kept images are the decoded ones: the same batches, for any workers, in bounded memory."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import config_hash
from dassl.data import DataManager, image_cache, read_image
from dassl.data.image_cache import ImageCache, build_image_cache, free_memory
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

EPOCHS, IMAGES, SIZE = 3, 18, 20 * 24 * 3  # bytes of each
RANDOM = ("random_resized_crop", "random_flip", "colorjitter", "normalize")


def batches(cfg, transforms=None):
    """All training batches of some epochs, and the cache afterwards."""
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 3  # divides all images
    set_random_seed(cfg.SEED)
    loader = DataManager(cfg).train_loader_x
    if transforms:
        loader.dataset.transform = [loader.dataset.transform, *transforms]
    return [batch for _ in range(EPOCHS) for batch in loader], loader.dataset.cache


def check_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        assert one["impath"] == two["impath"]
        for key in ("img", "img2", "img0"):
            a, b = one.get(key), two.get(key)
            assert type(a) is type(b)
            views = zip(a, b, strict=True) if a is not None else ()
            assert all(torch.equal(x, y) for x, y in views), key


def no_decoding(*_):
    raise AssertionError("decoded again")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"DATALOADER__K_TRANSFORMS": 2, "DATALOADER__RETURN_IMG0": True}]
)
def test_batches_are_the_same_with_and_without(make_cfg, workers, changes):
    changes = {"INPUT__TRANSFORMS": RANDOM, **changes}
    plain, none = batches(make_cfg(DATALOADER__CACHE_IMAGES=0.0, **changes))
    found, cache = batches(make_cfg(DATALOADER__NUM_WORKERS=workers, **changes))
    assert none is None
    check_same(found, plain)
    assert cache._table[0].tolist() == [IMAGES * SIZE, IMAGES, 0], "each was kept once"


def test_two_transforms_of_one_image(make_cfg):
    def halved(image):
        return torch.from_numpy(np.array(image.resize((6, 6))))

    plain, found = (
        batches(make_cfg(DATALOADER__CACHE_IMAGES=size), [halved])[0] for size in (0.0, 1.0)
    )
    assert found[0]["img2"].shape == (3, 6, 6, 3)
    check_same(found, plain)


def test_nothing_is_decoded_again_and_the_log_says_what_is_kept(make_cfg, monkeypatch, capsys):
    loader = DataManager(make_cfg(DATALOADER__TRAIN_X__BATCH_SIZE=3)).train_loader_x
    list(loader)
    said = "18 of 18 training images, in 0 MiB (DATALOADER.CACHE_IMAGES)\n"
    assert capsys.readouterr().out.endswith(f"* Kept decoded after one pass: {said}")
    monkeypatch.setattr("dassl.data.wrapper.read_image", no_decoding)
    assert len(list(loader)) == 6
    assert capsys.readouterr().out == "", "only once"


@pytest.mark.parametrize("workers", [0, 2])
def test_images_beyond_the_bound_are_decoded_each_time(make_cfg, workers, capsys):
    few = 5 * SIZE + 1
    plain, _ = batches(make_cfg(DATALOADER__CACHE_IMAGES=0.0))
    found, cache = batches(
        make_cfg(DATALOADER__CACHE_IMAGES=few / 2**30, DATALOADER__NUM_WORKERS=workers)
    )
    check_same(found, plain)
    assert cache._table[0].tolist() == [few - 1, 5, 1]
    log = capsys.readouterr().out
    assert "* Kept decoded after one pass: 5 of 18 training images, " in log
    assert "; no more fit\n" in log


def test_images_of_other_modes_and_turned_ones(tmp_path):
    grey = np.arange(60, dtype=np.uint8).reshape(6, 10)
    paths = [str(tmp_path / name) for name in ("grey.png", "deep.png", "turned.jpg", "alpha.png")]
    Image.fromarray(grey).save(paths[0])
    Image.fromarray(grey.astype(np.uint16) * 1000).save(paths[1])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.stack([grey] * 3, -1)).save(paths[2], exif=exif)
    Image.fromarray(np.stack([grey] * 4, -1)).save(paths[3])
    cache = ImageCache(paths, 10_000)
    assert [cache.get(path) for path in paths] == [None] * 4
    for path in paths:
        cache.put(path, read_image(path))
    for path in paths:
        kept, image = cache.get(path), read_image(path)
        assert (kept.mode, kept.size) == (image.mode, image.size)
        assert kept.tobytes() == image.tobytes()
    assert cache.get(paths[2]).size == (6, 10)
    cache.get(paths[0]).putpixel((0, 0), (9, 9, 9))
    assert cache.get(paths[0]).getpixel((0, 0)) == (0, 0, 0), "what is given is a copy"
    other = str(tmp_path / "other.png")
    cache.put(other, read_image(paths[0]))
    assert cache.get(other) is None


def test_damaged_images_are_reported_as_without(make_cfg, toy_root, tmp_path, capsys):
    path = Path(DataManager(make_cfg()).dataset.train_x[0].impath)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    try:
        cfg = make_cfg(INPUT__ON_BAD_IMAGE="skip", DATALOADER__NUM_WORKERS=2)
        found, cache = batches(cfg)
        assert all(os.fspath(path) not in batch["impath"] for batch in found)
        assert capsys.readouterr().out.count("Skipping an image: ") == 1
        assert cache._table[0, 1] == IMAGES - 1
        with pytest.raises(OSError, match=path.name):
            batches(make_cfg())
    finally:
        path.write_bytes(content)


# ---------------------------------------------------------------------- processes and memory


def _in_another_process(cache, path):
    kept = cache.get(path)
    cache.put("b", Image.new("RGB", (2, 3), (4, 5, 6)))
    os._exit(0 if kept is not None and kept.getpixel((1, 1)) == (1, 2, 3) else 1)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_it_however_they_start(method):
    cache = ImageCache(["a", "b"], 1000)
    cache.put("a", Image.new("RGB", (3, 2), (1, 2, 3)))
    process = multiprocessing.get_context(method).Process(
        target=_in_another_process, args=(cache, "a")
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert cache.get("b").size == (2, 3)
    assert cache.get("b").getpixel((0, 0)) == (4, 5, 6)


def test_a_killed_process_leaves_neither_the_lock_nor_half_an_image():
    cache = ImageCache(["a", "b"], 1000)
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    started, cut = os.pipe()
    child = os.fork()
    if child == 0:
        stop = cache._reserve(1, 18)
        cache._bytes[stop - 18 : stop - 9] = 1
        with cache._locked():
            os.write(cut, b"x")
            signal.pause()
    os.read(started, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert cache.get("a") is None
    cache.put("a", image)
    cache.put("b", image)
    assert cache.get("a").tobytes() == cache.get("b").tobytes() == image.tobytes()


def test_no_file_has_its_memory_and_closing_it_gives_the_memory_back():
    before = set(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    cache = ImageCache(["a"], 10_000)
    cache.put("a", Image.new("RGB", (30, 20)))
    assert set(os.listdir("/dev/shm")) == before[0]
    assert len(os.listdir("/proc/self/fd")) > before[1]
    del cache
    assert len(os.listdir("/proc/self/fd")) == before[1]


def test_the_bound_is_a_quarter_of_what_is_free(make_cfg, monkeypatch):
    assert free_memory() > 2**20
    images = DataManager(make_cfg()).dataset.train_x
    monkeypatch.setattr(image_cache, "free_memory", lambda: 4000)
    assert len(build_image_cache(make_cfg(), images)._bytes) == 1000
    monkeypatch.setattr(image_cache, "local_size", lambda: 2)
    assert len(build_image_cache(make_cfg(), images)._bytes) == 500


def test_a_containers_limit_counts(monkeypatch):
    read, texts = Path.read_text, {"/proc/self/cgroup": "1:cpu:/x\n0::/job/step\n"}
    monkeypatch.setattr(Path, "read_text", lambda self: texts.get(str(self)) or read(self))
    texts["/sys/fs/cgroup/job/memory.max"] = "123456\n"
    assert free_memory() == 123456
    texts["/sys/fs/cgroup/job/step/memory.max"] = "max\n"
    assert free_memory() == 123456
    texts["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9999\n"
    assert free_memory() == 9999


@pytest.mark.parametrize("missing", ["memfd_create", "ftruncate"])
def test_without_such_memory_a_run_goes_on_and_says_it(make_cfg, monkeypatch, capsys, missing):
    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    if missing == "memfd_create":
        monkeypatch.delattr(os, missing)
    else:
        monkeypatch.setattr(os, missing, refuse)
    found, cache = batches(make_cfg())
    assert cache is None
    assert len(found) == 6 * EPOCHS
    log = capsys.readouterr().out
    assert log.count("* Training images are not kept decoded (DATALOADER.CACHE_IMAGES): ") == 1


def test_it_cannot_change_a_result(make_cfg):
    assert config_hash(make_cfg()) == config_hash(make_cfg(DATALOADER__CACHE_IMAGES=0.0))
    weights = []
    for size in (0.0, 1.0):
        trainer = build_trainer(make_cfg(f"run{size}", DATALOADER__CACHE_IMAGES=size))
        trainer.train()
        weights.append(trainer.model.state_dict().values())
    for one, two in zip(*weights, strict=True):
        assert torch.equal(one, two)
