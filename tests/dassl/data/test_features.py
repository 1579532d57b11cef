import errno
import fcntl
import json
import multiprocessing
import os
import random
import signal
import time
import zlib
from collections import namedtuple

import numpy as np
import pytest
import torch

from dassl.data.features import cache as feature_cache
from dassl.data.features import entry as feature_entry
from dassl.data.features.cache import FeatureCache, FeatureCacheError, clear_cache, list_cache

KEY = {"dataset": "Toy", "split": "test", "backbone": "tiny", "files": "abc"}
ROWS = np.arange(12, dtype=np.float32).reshape(6, 2) / 7
FORK = multiprocessing.get_context("fork")


def writing(values=ROWS, missing=(), calls=None):
    def make(writer):
        if calls is not None:
            calls.append(1)
        order = [row for row in (4, 0, 5, 2, 1, 3) if row not in missing]
        for start in range(0, len(order), 4):
            rows = order[start : start + 4]
            writer.add(rows, values[rows])
        writer.missing.update({row: f"row {row} is bad" for row in missing})

    return make


def refuse(writer):
    raise AssertionError("made although it was there")


def only_entry(directory):
    (entry,) = list_cache(directory)
    assert os.listdir(directory) == [entry.path.name]
    return entry


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_was_written_is_read_from_a_map(tmp_path, capsys, dtype):
    values = ROWS.astype(dtype)
    entry, made = FeatureCache(tmp_path / "c").fetch(KEY, 6, writing(values, missing=(2,)))
    other, read = FeatureCache(tmp_path / "c").fetch(KEY, 6, refuse)

    kept = [0, 1, 3, 4, 5]
    for features in (made, read):
        assert features.dtype == getattr(torch, dtype)
        assert torch.equal(features[kept], torch.from_numpy(values[kept]))
    assert other == entry
    assert other.missing == {2: "row 2 is bad"}
    assert entry.shape == (6, 2)
    log = capsys.readouterr().out
    assert log.count("making") == log.count("reading") == 1
    assert 'c" holds 0.0 MiB in 1 entries' in log

    read += 1  # belongs to this process
    _, again = FeatureCache(tmp_path / "c").fetch(KEY, 6, refuse)
    assert torch.equal(again, made)
    assert json.loads((entry.path / "key.json").read_text())["key"] == {
        "format": feature_cache.FORMAT,
        **KEY,
    }
    assert np.array_equal(np.load(entry.path / "features.npy")[kept], values[kept])
    only_entry(tmp_path / "c")


def test_any_other_key_and_format_is_another_entry(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    names = {cache.fetch(KEY, 6, writing())[0].path.name}
    for name, value in (("dataset", "To y"), ("split", "val"), ("files", "abd"), ("view", 0)):
        names.add(cache.fetch({**KEY, name: value}, 6, writing())[0].path.name)
    monkeypatch.setattr(feature_cache, "FORMAT", feature_cache.FORMAT + 1)
    names.add(cache.fetch(KEY, 6, writing())[0].path.name)
    assert len(names) == 6
    assert {name[:-17] for name in names} == {"Toy-test", "Toy-val", "To_y-test"}


def shorten(path):
    os.truncate(path / "features.npy", (path / "features.npy").stat().st_size - 1)


def lengthen(path):
    with open(path / "features.npy", "ab") as file:
        file.write(b"0")


def save(array):
    return lambda path: np.save(path / "features.npy", array, allow_pickle=True)


def rewrite_key(change):
    def damage(path):
        content = json.loads((path / "key.json").read_text())
        change(content)
        (path / "key.json").write_text(json.dumps(content))

    return damage


def zero(path):
    """Numbers that are none of the images', behind an intact header."""
    content = (path / "features.npy").read_bytes()
    (path / "features.npy").write_bytes(content[:128] + bytes(len(content) - 128))


def flip(path):
    content = bytearray((path / "features.npy").read_bytes())
    content[-2] ^= 1
    (path / "features.npy").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        zero,
        flip,
        rewrite_key(lambda content: content["meta"].pop("crc32")),  # of an older version
        shorten,
        lengthen,
        save(ROWS[:5]),
        save(ROWS.astype(np.float64)),
        save(np.array([{}] * 6, dtype=object)),
        lambda path: (path / "features.npy").write_bytes(b""),
        lambda path: (path / "features.npy").unlink(),
        lambda path: (path / "key.json").unlink(),
        lambda path: (path / "key.json").write_text('{"key": {"da'),
        lambda path: (path / "key.json").write_text("[]"),
        rewrite_key(lambda content: content["key"].update(files="abd")),
        rewrite_key(lambda content: content["key"].pop("dataset")),
        rewrite_key(lambda content: content["meta"].pop("shape")),
        rewrite_key(lambda content: content["meta"].update(missing=None)),
    ],
)
def test_a_damaged_entry_is_made_again(tmp_path, capsys, damage):
    cache = FeatureCache(tmp_path)
    path = cache.fetch(KEY, 6, writing())[0].path
    damage(path)
    calls = []
    _, features = cache.fetch(KEY, 6, writing(ROWS + 1, calls=calls))
    assert calls == [1]
    assert torch.equal(features, torch.from_numpy(ROWS + 1))
    assert "damaged and is made again" in capsys.readouterr().out
    assert only_entry(tmp_path).path == path


def test_the_checksum_is_of_the_file_and_read_once_per_process(tmp_path, monkeypatch, count_calls):
    entry, _ = FeatureCache(tmp_path).fetch(KEY, 6, writing())
    assert entry.crc32 == zlib.crc32((entry.path / "features.npy").read_bytes())
    calls = count_calls(feature_entry, "file_crc32")
    monkeypatch.setattr(feature_entry, "_verified", set())  # as in a new process
    for _ in range(3):
        FeatureCache(tmp_path).fetch(KEY, 6, refuse)
    assert len(calls) == 1


def test_a_folder_with_other_files_is_never_removed(tmp_path):
    cache = FeatureCache(tmp_path)
    path = cache.fetch(KEY, 6, writing())[0].path
    (path / "thesis.tex").write_text("mine")
    with pytest.raises(FeatureCacheError, match=r"FEATURE_CACHE.DIR.*also holds thesis.tex"):
        cache.fetch(KEY, 6, writing())
    assert sorted(os.listdir(path)) == ["features.npy", "key.json", "thesis.tex"]


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        with pytest.raises(FeatureCacheError, match="FEATURE_CACHE.DIR is .*ENABLED False"):
            FeatureCache(path)


def test_space_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(feature_entry.shutil, "disk_usage", lambda path: usage(3 * 2**20))
    values = np.zeros((6, 2**18), np.float32)
    with pytest.raises(FeatureCacheError, match=r"6\.0 MiB are needed, 3\.0 MiB are free"):
        cache.fetch(KEY, 6, writing(values))
    assert os.listdir(tmp_path) == []
    cache.fetch(KEY, 6, writing(values[:, :8]))
    only_entry(tmp_path)


@pytest.mark.parametrize("at", ["write", "flush"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, at):
    class Full:
        def __init__(self, *args, **kwargs):
            self.file = open(*args, **kwargs)

        def __getattr__(self, name):
            if name == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

    cache = FeatureCache(tmp_path)
    monkeypatch.setattr(feature_entry, "open", Full, raising=False)
    with pytest.raises(FeatureCacheError, match=r"No space left on device.*make space"):
        cache.fetch(KEY, 6, writing())
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    assert torch.equal(cache.fetch(KEY, 6, writing())[1], torch.from_numpy(ROWS))


@pytest.mark.parametrize("error", [KeyboardInterrupt, FileNotFoundError("no image"), None])
def test_an_extraction_that_fails_leaves_nothing(tmp_path, error):
    def make(writer):
        writer.add([0, 3], ROWS[[0, 3]])
        if error:
            raise error

    cache = FeatureCache(tmp_path)
    expected = error if isinstance(error, type) else type(error) if error else ValueError
    with pytest.raises(expected, match=None if error else "4 rows were not written, such as 1"):
        cache.fetch(KEY, 6, make)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="none of the images can be read"):
        cache.fetch(KEY, 6, lambda writer: None)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ processes


def no_locks(descriptor, mode):
    raise OSError(errno.ENOLCK, "no locks here")


def run(directory, log, pause, locks=True):
    """A job: makes the entry slowly and leaves a line in the log when it starts to."""

    def make(writer):
        with open(log, "a") as file:
            file.write("made\n")
        for row in range(6):
            writer.add([row], ROWS[[row]])
            time.sleep(pause)

    if not locks:
        fcntl.flock = no_locks
    _, features = FeatureCache(directory).fetch(KEY, 6, make)
    os._exit(0 if torch.equal(features, torch.from_numpy(ROWS)) else 1)


def start(*args, **kwargs):
    process = FORK.Process(target=run, args=args, kwargs=kwargs)
    process.start()
    return process


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def temporaries(directory):
    return list(directory.glob(".*.tmp"))


def test_of_jobs_at_the_same_time_one_makes_the_entry(tmp_path):
    cache, log = tmp_path / "c", tmp_path / "log"
    jobs = [start(cache, log, 0.05) for _ in range(3)]
    for job in jobs:
        job.join(20)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert log.read_text() == "made\n"
    only_entry(cache)


def test_a_killed_job_leaves_nothing_that_passes(tmp_path):
    cache, log = tmp_path / "c", tmp_path / "log"
    job = start(cache, log, 60)
    wait_for(lambda: temporaries(cache))
    waiting = start(cache, log, 0)  # for a lock whose owner is about to die
    time.sleep(0.2)
    assert waiting.is_alive()
    assert log.read_text() == "made\n"
    assert list_cache(cache) == []

    os.kill(job.pid, signal.SIGKILL)
    job.join(20)
    waiting.join(20)
    assert (job.exitcode, waiting.exitcode) == (-signal.SIGKILL, 0)
    assert log.read_text() == "made\nmade\n"
    only_entry(cache)


def test_what_a_killed_job_left_goes_with_the_next_entry_of_any_kind(tmp_path):
    cache, log = tmp_path / "c", tmp_path / "log"
    job = start(cache, log, 60)
    wait_for(lambda: temporaries(cache))
    FeatureCache(cache).fetch({**KEY, "split": "val"}, 6, writing())
    assert len(temporaries(cache)) == 1  # it is alive
    os.kill(job.pid, signal.SIGKILL)
    job.join(20)
    FeatureCache(cache).fetch({**KEY, "split": "train"}, 6, writing())
    assert sorted(entry.key["split"] for entry in list_cache(cache)) == ["train", "val"]
    assert len(os.listdir(cache)) == 2


def test_killed_at_any_moment(tmp_path):
    cache, log = tmp_path / "c", tmp_path / "log"
    cache.mkdir()
    draw = random.Random(0)
    for _ in range(25):
        job = start(cache, log, 0.001)
        time.sleep(draw.uniform(0, 0.03))
        os.kill(job.pid, signal.SIGKILL)
        job.join(20)
        for entry in list_cache(cache):  # whole or not there
            assert torch.equal(entry.features(), torch.from_numpy(ROWS))
            if draw.random() < 0.5:
                clear_cache(cache)
    FeatureCache(cache).fetch(KEY, 6, writing())
    clear_cache(cache)
    assert os.listdir(cache) == []


def test_without_locks_every_job_makes_it_and_one_entry_stays(tmp_path, monkeypatch, capsys):
    cache, log = tmp_path / "c", tmp_path / "log"
    jobs = [start(cache, log, 0.05, locks=False) for _ in range(2)]
    for job in jobs:
        job.join(20)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert log.read_text() == "made\nmade\n"
    only_entry(cache)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    _, features = FeatureCache(cache).fetch({**KEY, "split": "val"}, 6, writing())
    assert torch.equal(features, torch.from_numpy(ROWS))


def test_workers_do_not_keep_the_lock_of_a_killed_job(tmp_path):
    ours, theirs = os.pipe()

    def make(writer):
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        os.write(theirs, b"%d" % worker)
        time.sleep(60)

    job = FORK.Process(target=FeatureCache(tmp_path).fetch, args=(KEY, 6, make))
    job.start()
    worker = int(os.read(ours, 20))
    os.kill(job.pid, signal.SIGKILL)
    wait_for(lambda: job.exitcode is not None)  # join would wait for the worker too
    try:
        next_job = start(tmp_path, tmp_path.parent / "log", 0)
        next_job.join(20)
        assert next_job.exitcode == 0
        os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)
        next_job.kill()


# ------------------------------------------------------------------ clearing


def test_clearing_removes_entries_and_nothing_else(tmp_path):
    cache = FeatureCache(tmp_path / "c")
    for key in (KEY, {**KEY, "split": "val"}, {**KEY, "dataset": "Other"}):
        cache.fetch(key, 6, writing())
    whole = cache.fetch({**KEY, "split": "train"}, 6, writing())[0].path
    outside = tmp_path / "elsewhere" / whole.name
    outside.parent.mkdir()
    whole.rename(outside)
    (tmp_path / "c" / whole.name).symlink_to(outside)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    for name in ("photos", "Toy-test-0123456789abcdef", ".git"):
        (tmp_path / "c" / name).mkdir()
        (tmp_path / "c" / name / "key.json").write_text("{}")
    left = f".{whole.name}.{'0' * 32}.tmp"
    (tmp_path / "c" / left).mkdir()

    removed, others = clear_cache(tmp_path / "c", "Other")
    assert [entry.key["dataset"] for entry in removed] == ["Other"]
    removed, others = clear_cache(tmp_path / "c")
    assert sorted(entry.key["split"] for entry in removed) == ["test", "val"]
    foreign = [".git", whole.name, "Toy-test-0123456789abcdef", "notes.txt", "photos"]
    assert sorted(path.name for path in others) == sorted(foreign)
    assert sorted(os.listdir(tmp_path / "c")) == sorted(foreign)
    assert len(os.listdir(outside)) == 2


def test_clearing_spares_a_job_at_work(tmp_path):
    cache, log = tmp_path / "c", tmp_path / "log"
    job = start(cache, log, 0.1)
    wait_for(lambda: temporaries(cache))
    assert clear_cache(cache) == ([], [])
    job.join(20)
    assert job.exitcode == 0
    assert clear_cache(cache)[0][0].key["dataset"] == "Toy"
    assert os.listdir(cache) == []
