"""Registries, files, logging, seeds, meters."""

import io
import json
import os
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    atomic_write,
    check_isfile,
    collect_env_info,
    count_num_param,
    download_url,
    get_most_similar_str_to_a_from_b,
    git_revision,
    init_network_weights,
    listdir_nohidden,
    mkdir_if_missing,
    open_all_layers,
    open_specified_layers,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)
from dassl.utils.files import is_text
from dassl.utils.logger import Logger, escape_unprintable, move_earlier_log


def test_registry():
    registry = Registry("THING")

    @registry.register()
    class Alpha:
        pass

    with pytest.raises(ValueError, match="'Alpha' is already registered in THING"):
        registry.register(Alpha)
    other = registry.register(type("Alpha", (), {}), force=True)
    assert registry.get("Alpha") is other
    registry.register(int, name="Number")
    registry.register("Text", str)  # Dassl's order
    assert registry.register("Other")(bytes) is bytes
    assert (registry.get("Text"), registry.get("Other")) == (str, bytes)
    assert registry.registered_names() == ["Alpha", "Number", "Text", "Other"]
    assert "Number" in registry
    assert len(registry) == 4
    with pytest.raises(ValueError, match="Did you mean 'Alpha'"):
        registry.get("alpha")
    with pytest.raises(ValueError, match="THING: .* is not available"):
        registry.get("xyz")


def test_json(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json({"name": "é", "x": [1, 2]}, path)
    assert read_json(path) == {"name": "é", "x": [1, 2]}
    path.write_text("{")
    with pytest.raises(ValueError, match="b.json is not valid JSON"):
        read_json(path)
    path.write_text('{"a": {"x": 1, "y": 2, "x": 3}}')
    with pytest.raises(
        ValueError, match="b.json is not valid JSON.*: the key 'x' is there 2 times"
    ):
        read_json(path)


def test_names_that_are_no_unicode_are_written_escaped(tmp_path, monkeypatch):
    """Bytes of another encoding in a file's name, and any name where the terminal is ASCII."""
    name = os.fsdecode(b"caf\xe9.jpg")
    assert not is_text(name)
    assert is_text("café 猫 \N{CAT FACE}")
    write_json({"path": name}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": name}
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    escape_unprintable()
    with Logger(tmp_path / "log.txt") as log:
        print(name, "café", file=log)
    console.flush()
    assert console.buffer.getvalue() == b"caf\\udce9.jpg caf\\xe9\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "caf\\udce9.jpg café\n"


def test_json_in_other_encodings_and_with_a_key_twice(tmp_path):
    path = tmp_path / "a.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes('{"é": 1}'.encode(encoding))
        assert read_json(path) == {"é": 1}
    path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(ValueError, match=r"a\.json .*the key 'c' is there 2 times"):
        read_json(path)


def test_writes_are_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write("old")
    assert (path.stat().st_mode & 0o777) == (0o666 & ~current_umask())

    def fail_halfway():
        with atomic_write(path) as file:
            file.write("new")
            file.flush()
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_json({}, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_directories(tmp_path):
    mkdir_if_missing(tmp_path / "x" / "y")
    mkdir_if_missing(tmp_path / "x" / "y")
    for name in (".hidden", "b", "a"):
        (tmp_path / "x" / name).touch()
    assert listdir_nohidden(tmp_path / "x", sort=True) == ["a", "b", "y"]
    assert check_isfile(tmp_path / "x" / "a")
    with pytest.warns(UserWarning, match="No file found"):
        assert not check_isfile(tmp_path / "none")


def test_logger_appends_and_leaves_stderr_alone(tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        setup_logger(None)
        setup_logger(tmp_path)
        setup_logger(tmp_path)  # the same file is not opened twice
        print("first")
        print("not this", file=sys.stderr)
        assert (tmp_path / "log.txt").read_text() == "first\n"  # already on disk
        setup_logger(tmp_path / "other.log")
        print("second")
        setup_logger(tmp_path)
        print("third")
        sys.stdout.close()
    assert (tmp_path / "log.txt").read_text() == "first\nthird\n"
    assert (tmp_path / "other.log").read_text() == "second\n"


def test_an_earlier_log_moves_and_the_own_goes_on(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "log.txt").write_text("earlier: é\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        setup_logger(tmp_path)
        print("own 1")
        move_earlier_log(tmp_path / "old")
        print("own 2")
        sys.stdout.close()
    assert (tmp_path / "old/log.txt").read_text() == "earlier: é\n"
    assert (tmp_path / "log.txt").read_text() == "own 1\nown 2\n"


def test_seeds():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    set_random_seed(0)
    first = draw()
    set_random_seed(0)
    assert draw() == first
    set_random_seed(1)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="SEED"):
            set_random_seed(seed)


def test_meters():
    meter = AverageMeter()
    meter.update(1.0)
    meter.update(torch.tensor(4.0), n=2)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (4.0, 3.0, 9.0, 3)
    ema = AverageMeter(ema=True)
    ema.update(1.0)
    ema.update(2.0)
    assert ema.avg == pytest.approx(1.1)
    metrics = MetricMeter()
    metrics.update({"loss": 1.0})
    metrics.update({"loss": 2.0, "acc": torch.tensor([50.0])})
    metrics.update(None)
    assert str(metrics) == "loss 2.0000 (1.5000) acc 50.0000 (50.0000)"
    with pytest.raises(TypeError, match="forward_backward"):
        metrics.update(1.0)


def test_environment():
    info = collect_env_info()
    assert f"torch: {torch.__version__}" in info
    assert set(git_revision()) == {"revision", "dirty"}


def test_parameters():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(1, 1)})
    assert count_num_param(model) == 11
    assert count_num_param(params={"params": model["a"].parameters()}) == 9
    with pytest.raises(ValueError, match="needs a model"):
        count_num_param()
    open_specified_layers(model, "a")
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
    assert (model["a"].training, model["b"].training) == (True, False)
    open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="'c' is not a child"):
        open_specified_layers(model, ["c"])


def test_small_tools(tmp_path):
    assert tolist_if_not("a") == ["a"]
    assert tolist_if_not(("a",)) == [("a",)]
    given = [1]
    assert tolist_if_not(given) is given
    assert get_most_similar_str_to_a_from_b("sgdd", ["adam", "sgd", "rmsprop"]) == "sgd"
    assert get_most_similar_str_to_a_from_b("sgd", []) is None
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (7, 7, 7))


def test_download_url(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("content")
    target = tmp_path / "deep" / "copy.txt"
    download_url(source.as_uri(), target)
    assert target.read_text() == "content"
    missing = (tmp_path / "nothing").as_uri()
    with pytest.raises(ConnectionError, match=f'cannot download "{missing}" to'):
        download_url(missing, tmp_path / "other.txt")
    assert not (tmp_path / "other.txt").exists()


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initial_weights(init_type):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Linear(64, 64))
    nn.init.constant_(model[1].weight, 5.0)
    init_network_weights(model, init_type, gain=0.5)
    deviation = model[3].weight.std().item()
    expected = {
        "normal": 0.5,
        "xavier": 0.5 * (2 / 128) ** 0.5,
        "kaiming": (2 / 64) ** 0.5,
        "orthogonal": 0.5 / 8,
    }
    assert deviation == pytest.approx(expected[init_type], rel=0.05)
    assert torch.equal(model[1].weight, torch.ones(64))
    assert all(not m.bias.any() for m in (model[0], model[1], model[3]))
    with pytest.raises(ValueError, match="Did you mean 'kaiming'"):
        init_network_weights(model, "kaming")
