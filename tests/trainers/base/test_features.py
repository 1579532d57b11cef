import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import config_hash
from dassl.data.features.cache import list_cache
from dassl.data.features.key import hash_files, hash_tensors
from dassl.engine import TRAINER_REGISTRY, StepOutput, build_trainer, read_result
from tests.dassl.toys import make_images
from tests.processes import fork
from trainers.base import CLIPTrainer, PromptedCLIP
from trainers.base import features as module
from trainers.base.features import FeatureLoader, FrozenEncoder


class LinearHeadCLIP(PromptedCLIP):
    def __init__(self, backbone, prompts):
        super().__init__(backbone, prompts, renormalize=True)
        self.linear = nn.Linear(backbone.embed_dim, len(prompts))

    def forward(self, image):
        return self.linear(self.image_features(image))


@TRAINER_REGISTRY.register()
class FrozenLinearHead(CLIPTrainer):
    """A trained linear head on frozen features; keeps what it saw."""

    frozen_image_encoder = True

    def build_model(self):
        self.seen = []
        names = [[name] for name in self.dm.dataset.classnames]
        return LinearHeadCLIP(self.load_backbone(), names)

    def forward_loss(self, image, label):
        logits = self.model(image)
        return StepOutput(F.cross_entropy(logits, label), logits)

    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        self.seen.append((batch["index"].tolist(), batch["impath"], summary["loss"]))
        return summary


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("toys")
    make_images(root)
    return root


@pytest.fixture
def build(make_config, toy_root, tmp_path):
    """A trainer on 12 test, 6 validation and 18 training images; three epochs of four batches."""

    def make(*options, cached=True, trainer="FrozenLinearHead", root=toy_root, output="run"):
        cfg = make_config(
            None,
            *("DATASET.NAME", "ToySquares", "OPTIM.MAX_EPOCH", "3", "OPTIM.LR", "0.05"),
            *("DATALOADER.TRAIN_X.BATCH_SIZE", "4", "DATALOADER.TEST.BATCH_SIZE", "5"),
            *("FEATURE_CACHE.DIR", str(tmp_path / "cache")),
            *options,
            flags=("--trainer", trainer, "--root", str(root), *["--feature-cache"] * cached),
            output=output,
        )
        return build_trainer(cfg)

    return make


def entries(tmp_path):
    return sorted((e.key["split"], e.key.get("view")) for e in list_cache(tmp_path / "cache"))


def forbid(*args):
    raise AssertionError("encoded although it was cached")


def logits_of(trainer, split="test"):
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return [trainer.model(batch["img"]) for batch in getattr(trainer, f"{split}_loader")]


def test_config_and_flag(make_config, tmp_path):
    cfg = make_config("ZeroshotCLIP/base2novel")
    assert cfg.FEATURE_CACHE == {
        "ENABLED": False,
        "REQUIRED": True,
        "DIR": "./feature_cache",
        "VIEWS": 4,
    }
    on = make_config("ZeroshotCLIP/base2novel", flags=("--feature-cache",))
    assert on.FEATURE_CACHE.ENABLED is True
    elsewhere = make_config("ZeroshotCLIP/base2novel", "FEATURE_CACHE.DIR", str(tmp_path))
    assert config_hash(elsewhere) == config_hash(cfg) != config_hash(on)


def test_without_it_the_loaders_are_the_plain_ones(build, tmp_path):
    trainer = build(cached=False)
    assert not isinstance(trainer.train_loader_x, FeatureLoader)
    assert next(iter(trainer.test_loader))["img"].shape == (5, 3, 48, 48)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluation_agrees_bit_for_bit(build, tmp_path, monkeypatch, split):
    plain = logits_of(build(cached=False), split)
    making = logits_of(build(), split)
    monkeypatch.setattr(FrozenEncoder, "encode", forbid)
    reading = logits_of(build(), split)
    sizes = {"test": [5, 5, 2], "val": [5, 1]}[split]
    for logits in (plain, making, reading):
        assert [len(batch) for batch in logits] == sizes
        assert all(torch.equal(a, b) for a, b in zip(plain, logits, strict=True))
    assert entries(tmp_path) == [(split, None)]  # nothing else was needed


def test_batches_are_the_plain_ones_with_features_not_normalised(build):
    trainer = build()
    for loader, plain in (
        (trainer.train_loader_x, trainer.train_loader_x.loader),
        (trainer.test_loader, trainer.test_loader.loader),
    ):
        for epoch in (1, 0):
            loader.set_epoch(epoch)
            served = list(loader)
            loader.set_epoch(epoch)
            expected = list(plain)
            assert len(served) == len(expected) == len(loader)
            for a, b in zip(served, expected, strict=True):
                assert a.keys() == b.keys() == {"img", "label", "domain", "impath", "index"}
                assert a["impath"] == b["impath"]
                for key in ("label", "domain", "index"):
                    assert torch.equal(a[key], b[key])
                    assert a[key].dtype == b[key].dtype
                features = trainer.model.backbone.encode_image(b["img"])
                torch.testing.assert_close(a["img"], features, rtol=1e-4, atol=1e-5)
                assert (features.norm(dim=-1) - 1).abs().min() > 0.1


def test_training_with_a_view_per_epoch_is_the_plain_training(build, tmp_path, monkeypatch):
    plain = build(cached=False)
    start = plain.model.linear.weight.detach().clone()
    plain.train()
    making = build("FEATURE_CACHE.VIEWS", "3", output="making")
    making.train()
    monkeypatch.setattr(FrozenEncoder, "encode", forbid)
    reading = build("FEATURE_CACHE.VIEWS", "3", output="reading")
    reading.train()

    assert entries(tmp_path) == [("test", None), ("train", 0), ("train", 1), ("train", 2)]
    for cached in (making, reading):
        assert [step[:2] for step in cached.seen] == [step[:2] for step in plain.seen]
        losses = [[step[2] for step in trainer.seen] for trainer in (cached, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        torch.testing.assert_close(
            cached.model.linear.weight, plain.model.linear.weight, rtol=1e-5, atol=1e-6
        )
    assert torch.equal(making.model.linear.weight, reading.model.linear.weight)
    assert (plain.model.linear.weight - start).abs().max() > 1e-3
    result = read_result(making.output_dir)
    assert result["metrics"] == read_result(plain.output_dir)["metrics"]
    assert result["notes"] == read_result(plain.output_dir)["notes"]


def test_views_take_turns_and_the_result_says_so(build, tmp_path):
    trainer = build("FEATURE_CACHE.VIEWS", "2")
    loader = trainer.train_loader_x

    def epoch(number):
        loader.set_epoch(number)
        batches = list(loader)
        rows = torch.cat([batch["index"] for batch in batches])
        return rows, dict(zip(rows.tolist(), torch.cat([b["img"] for b in batches]), strict=True))

    (order, first), (_, second), (later, third) = epoch(0), epoch(1), epoch(2)
    both = sorted(first.keys() & third.keys())
    assert len(both) >= 14  # of 18, 16 are in an epoch
    assert not torch.equal(order, later)
    assert all(torch.equal(first[row], third[row]) for row in both)
    assert not any(torch.equal(first[row], second[row]) for row in first.keys() & second.keys())
    assert entries(tmp_path) == [("train", 0), ("train", 1)]
    assert any("2 augmentations" in note and "3 epochs" in note for note in trainer.notes)


@pytest.mark.parametrize("sampler", ["RandomClassSampler", "SequentialSampler"])
def test_images_that_a_view_left_out_have_features_too(build, sampler):
    options = ("DATALOADER.TRAIN_X.SAMPLER", sampler, "DATALOADER.TRAIN_X.N_INS", "2")
    trainer = build(*options, "FEATURE_CACHE.VIEWS", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "4")
    loader = trainer.train_loader_x
    for epoch in range(6):
        loader.set_epoch(epoch)
        assert all((batch["img"].norm(dim=-1) > 0.1).all() for batch in loader)
    features, missing = loader.features(0)
    assert features.shape == (18, trainer.model.backbone.embed_dim)
    assert len(features.unique(dim=0)) == 18
    assert missing == set()


def test_in_half_precision_what_the_encoder_gave_is_kept_exactly(build, tmp_path):
    trainer = build("TRAINER.FrozenLinearHead.PREC", "bf16")
    loader = trainer.test_loader
    for cached, plain in zip(loader, loader.loader, strict=True):
        with torch.no_grad(), trainer.autocast():
            expected = trainer.model.backbone.encode_image(plain["img"])
        assert expected.dtype == torch.bfloat16
        assert cached["img"].dtype == torch.float32
        assert torch.equal(cached["img"], expected.float())
    (entry,) = list_cache(tmp_path / "cache")
    assert (entry.key["precision"], entry.key["autocast"]) == ("bf16", "torch.bfloat16")


def test_extraction_changes_neither_modes_nor_random_numbers(build):
    trainer = build()
    trainer.set_model_mode("train")
    state = torch.get_rng_state()
    list(trainer.train_loader_x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in trainer.model.backbone.modules())
    assert all(p.grad is None for p in trainer.model.parameters())


# ------------------------------------------------------------------ keys


def keys(trainer):
    """Names of the entries of test and of training view 0."""
    for loader in (trainer.test_loader, trainer.train_loader_x):
        next(iter(loader))
    return {e.key["split"]: e.path.name for e in list_cache(trainer.cfg.FEATURE_CACHE.DIR)}


@pytest.fixture
def fresh(build, tmp_path):
    """Builds with a cache of its own every time, so that its only entries are the run's."""
    count = iter(range(100))

    def make(*options, **kwargs):
        return build(*options, "FEATURE_CACHE.DIR", str(tmp_path / f"c{next(count)}"), **kwargs)

    return make


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (("OPTIM.LR", "0.1", "OPTIM.MAX_EPOCH", "9", "FEATURE_CACHE.VIEWS", "7"), set()),
        (("DATALOADER.TRAIN_X.BATCH_SIZE", "2"), set()),
        (("SEED", "2"), {"train"}),
        (("DATALOADER.TRAIN_X.SAMPLER", "SequentialSampler"), {"train"}),
        (("DATASET.NUM_SHOTS", "2"), {"train"}),
        (("DATALOADER.TEST.BATCH_SIZE", "6"), {"train", "test"}),
        (("INPUT.RRCROP_SCALE", "(0.5, 1.0)"), {"train", "test"}),
        (("INPUT.FAST_RESIZE", "True"), {"train", "test"}),
        (("TRAINER.FrozenLinearHead.PREC", "bf16"), {"train", "test"}),
    ],
)
def test_what_changes_features_makes_another_entry(fresh, options, changed):
    base, other = keys(fresh()), keys(fresh(*options, output="other"))
    assert {split for split in base if base[split] != other[split]} == changed


def test_an_image_or_a_weight_or_a_package_that_changes(fresh, tmp_path, monkeypatch):
    make_images(tmp_path / "data")
    base = keys(fresh(root=tmp_path / "data"))
    assert keys(fresh(root=tmp_path / "data")) == base

    (tmp_path / "data").rename(tmp_path / "moved")  # the place does not matter
    assert keys(fresh(root=tmp_path / "moved")) == base

    image = sorted(tmp_path.glob("moved/toy/images/red_square/*.png"))[-1]  # a test image
    os.utime(image, ns=(1, 1))
    touched = keys(fresh(root=tmp_path / "moved"))
    assert touched["train"] == base["train"]
    assert touched["test"] != base["test"]

    trainer = fresh(root=tmp_path / "moved")
    trainer.model.backbone.model.token_embedding.weight.data.add_(1)  # of the text side
    assert keys(trainer) == touched
    trainer = fresh(root=tmp_path / "moved")
    trainer.model.backbone.model.visual.proj.data[0, 0] += 1e-3
    weights = keys(trainer)
    monkeypatch.setattr(module.PIL, "__version__", "0")
    pillow = keys(fresh(root=tmp_path / "moved"))
    for split in base:
        assert len({touched[split], weights[split], pillow[split]}) == 3


def test_hashes_cover_what_they_claim(tmp_path):
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    variants = [
        ({"a": torch.arange(6.0).view(2, 3), "b": tensors["b"]}, ""),
        ({"a": torch.arange(6.0).half(), "b": tensors["b"]}, ""),
        ({"c": tensors["a"], "b": tensors["b"]}, ""),
        ({"a": tensors["a"], "b": torch.tensor(2)}, ""),
        (tensors, "GELU"),
        (tensors, ""),
    ]
    assert len({hash_tensors(*variant) for variant in variants}) == 6
    assert hash_tensors({"a": torch.arange(12.0)[::2] / 2, "b": tensors["b"]}) == hash_tensors(
        tensors
    )
    (tmp_path / "x").write_text("1")
    there = hash_files([str(tmp_path / "x")], str(tmp_path))
    (tmp_path / "x").unlink()
    assert hash_files([str(tmp_path / "x")], str(tmp_path)) != there


def test_pictures_of_one_size_and_time_that_change_places_are_noticed(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, content in zip(paths, (b"one", b"two"), strict=True):
        with open(path, "wb") as file:
            file.write(content)
        os.utime(path, ns=(1, 1))
    hashes = [hash_files(paths, str(tmp_path), contents) for contents in (False, True)]
    os.rename(paths[0], tmp_path / "c")
    os.rename(paths[1], paths[0])
    os.rename(tmp_path / "c", paths[1])
    swapped = [hash_files(paths, str(tmp_path), contents) for contents in (False, True)]
    assert all(old != new for old, new in zip(hashes, swapped, strict=True))

    shutil.copytree(tmp_path, tmp_path / "copy")  # only contents tell that these are the same
    copied = [str(tmp_path / "copy" / name) for name in ("a.png", "b.png")]
    assert hash_files(copied, str(tmp_path / "copy")) != swapped[0]
    assert hash_files(copied, str(tmp_path / "copy"), contents=True) == swapped[1]


def test_weights_are_hashed_once_and_again_when_they_are_loaded(build, count_calls):
    calls = count_calls(module, "hash_tensors")
    trainer = build("FEATURE_CACHE.VIEWS", "2")
    trainer.train()
    trainer.test()
    assert len(calls) == 1

    before = logits_of(trainer)
    visual = trainer.model.backbone.model.visual
    visual.load_state_dict({name: -value for name, value in visual.state_dict().items()})
    after = logits_of(trainer)
    assert len(calls) == 2
    plain = [trainer.model(batch["img"]).detach() for batch in trainer.test_loader.loader]
    assert all(torch.equal(a, b) for a, b in zip(after, plain, strict=True))
    assert not torch.equal(before[0], after[0])


# ------------------------------------------------------------------ what can go wrong


def test_refused_where_features_change(make_config):
    cfg = make_config("LightRA/base2novel", flags=("--feature-cache",))
    with pytest.raises(ValueError, match="FEATURE_CACHE.ENABLED.*LightRA changes"):
        build_trainer(cfg)


@pytest.mark.parametrize(("method", "cached"), [("LightRA", False), ("RAda", True)])
def test_where_it_is_not_required_methods_go_without(make_config, method, cached):
    options = ("FEATURE_CACHE.REQUIRED", "False")
    cfg = make_config(f"{method}/base2novel", *options, flags=("--feature-cache",))
    trainer = build_trainer(cfg)
    assert isinstance(trainer.train_loader_x, FeatureLoader) == cached
    assert any("no feature cache" in note for note in trainer.notes) != cached


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("FEATURE_CACHE.VIEWS", "0"), "FEATURE_CACHE.VIEWS must be a whole number 1 .*got 0"),
        (("DATALOADER.K_TRANSFORMS", "2"), r"K_TRANSFORMS 1 \(got 2\)"),
        (("DATALOADER.RETURN_IMG0", "True"), r"RETURN_IMG0 False \(got True\)"),
        (("FEATURE_CACHE.DIR", __file__), "FEATURE_CACHE.DIR is .*test_features.py.*Set it to"),
    ],
)
def test_refused_settings(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(*options)


def spoil(root, *names):
    make_images(root)
    for name in names:
        (root / "toy/images" / name).write_bytes(b"no image")


def test_unreadable_images_are_left_out_and_reported(build, tmp_path, capsys, monkeypatch):
    root, train, test = tmp_path / "data", "red_square/01.png", "blue square/11.png"
    spoil(root, train, test, "blue square/10.png")
    skip = ("INPUT.ON_BAD_IMAGE", "skip", "FEATURE_CACHE.VIEWS", "3")
    plain = build(*skip, cached=False, root=root)
    plain.train()
    capsys.readouterr()
    making = build(*skip, root=root, output="making")
    making.train()
    made = capsys.readouterr().out
    monkeypatch.setattr(FrozenEncoder, "encode", forbid)
    reading = build(*skip, root=root, output="reading")
    reading.train()

    assert made.count("Skipping") == capsys.readouterr().out.count("Skipping") == 3
    for cached in (making, reading):
        assert [step[:2] for step in cached.seen] == [step[:2] for step in plain.seen]
        assert cached.dm.bad_images() == plain.dm.bad_images()
        assert str(root / "toy/images" / train) in cached.dm.bad_images()
        assert [len(logits) for logits in logits_of(cached)] == [5, 5]  # 2 were a batch
        assert read_result(cached.output_dir)["notes"] == read_result(plain.output_dir)["notes"]


def test_an_unreadable_image_is_an_error_otherwise(build, tmp_path):
    spoil(tmp_path / "data", "blue square/11.png")
    trainer = build(root=tmp_path / "data")
    with pytest.raises(OSError, match=r"Cannot decode the image .*blue square/11\.png"):
        trainer.test()
    assert os.listdir(tmp_path / "cache") == []
    (tmp_path / "data/toy/images/blue square/11.png").unlink()
    with pytest.raises(FileNotFoundError, match="--root"):
        trainer.test()
    Image.new("RGB", (24, 20)).save(tmp_path / "data/toy/images/blue square/11.png")
    trainer.test()
    assert entries(tmp_path) == [("test", None)]


def evaluate(build, monkeypatch, pause, log):
    """A job that evaluates, encoding slowly, with a worker that reads images."""
    add = module.FeatureWriter.add

    def slow(self, *args):
        add(self, *args)
        with open(log, "a") as file:
            file.write("batch\n")
        time.sleep(pause)

    monkeypatch.setattr(module.FeatureWriter, "add", slow)
    trainer = build("DATALOADER.NUM_WORKERS", "1", output=str(os.getpid()))
    trainer.test()
    os._exit(0)


def test_two_runs_at_once_encode_once(build, tmp_path, monkeypatch):
    log = tmp_path / "log"
    arguments = (build, monkeypatch, 0.3, log)
    jobs = [fork(evaluate, *arguments) for _ in range(2)]
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert log.read_text() == "batch\n" * 3
    results = [read_result(tmp_path / str(job.pid))["metrics"] for job in jobs]
    assert results[0] == results[1]


def test_the_run_after_a_killed_one_succeeds(build, tmp_path, monkeypatch):
    log = tmp_path / "log"
    job = fork(evaluate, build, monkeypatch, 60, log)
    while not log.exists():
        assert job.is_alive()
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    while job.exitcode is None:  # join would wait for its worker too
        time.sleep(0.01)
    assert entries(tmp_path) == []
    assert list(Path(tmp_path, "cache").glob(".*.tmp"))
    plain, cached = logits_of(build(cached=False)), logits_of(build())
    assert all(torch.equal(a, b) for a, b in zip(plain, cached, strict=True))
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_batches_of_one_cost_microseconds(build):
    trainer = build("DATALOADER.TRAIN_X.BATCH_SIZE", "1", "FEATURE_CACHE.VIEWS", "1")
    loader = trainer.train_loader_x
    list(loader)
    costs = []
    for _ in range(30):
        started = time.perf_counter()
        count = sum(1 for _ in loader)
        costs.append((time.perf_counter() - started) / count)
    assert count == 18
    assert min(costs) < 200e-6  # about 20 with a core to itself; a DataLoader needs thousands


# ------------------------------------------------------------------ on a GPU


def epochs_of(trainer, count=3):
    """All batches of some epochs."""
    found = []
    for epoch in range(count):
        trainer.train_loader_x.set_epoch(epoch)
        found += list(trainer.train_loader_x)
    return found


@pytest.mark.parametrize("room", [10**9, 100])
def test_where_they_fit_features_are_looked_up_on_the_device(build, monkeypatch, capsys, room):
    views = ("FEATURE_CACHE.VIEWS", "2")
    expected = epochs_of(build(*views))
    assert "stay on" not in capsys.readouterr().out
    monkeypatch.setattr(module, "room_for_features", lambda device: room)
    trainer = build(*views)
    found = epochs_of(trainer)
    for batch, plain in zip(found, expected, strict=True):
        assert batch.keys() == plain.keys()
        for key in ("img", "label", "domain", "index"):
            assert torch.equal(batch[key], plain[key])
        assert batch["impath"] == plain["impath"]
    tables = trainer.train_loader_x._tables
    said = capsys.readouterr().out.count("Features of train images, ")
    if room == 100:  # bytes
        assert not tables
        assert said == 0
    else:
        assert sorted(view for view, _ in tables) == [0, 1]
        assert said == 1


def test_they_may_take_a_quarter_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 80_000))
    assert module.room_for_features(torch.device("cuda:0")) == 1000
    assert module.room_for_features(torch.device("cpu")) == 0
