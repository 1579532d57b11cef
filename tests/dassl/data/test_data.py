"""Few-shot draws, loaders that do not depend on workers, bad images, transforms, samplers."""

import os
import pickle
import random
import resource
import shutil
import time
from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper, build_data_loader, read_image
from dassl.data.data_manager import _allow_open_files
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.samplers.epochs import SeededIndex, mix_seed
from dassl.data.transforms import AVAILABLE_TRANSFORMS, INTERPOLATION_MODES, build_transform
from dassl.data.wrapper import BadImageError
from dassl.engine import build_trainer, read_result
from dassl.utils import set_random_seed


def images(counts, domains=1):
    """Return shuffled images, ``counts[label]`` of each label."""
    items = [
        Datum(f"{label}/{n}.png", label, n % domains, f"class {label}")
        for label, count in enumerate(counts)
        for n in range(count)
    ]
    random.Random(7).shuffle(items)
    return items


# ---------------------------------------------------------------------- datasets


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fewshot_draw_is_coops(seed):
    train, val = images([9, 5, 12]), images([6, 2, 8])
    dataset = DatasetBase(train_x=train, val=val, test=train)

    random.seed(seed)  # CoOp's rule, written out
    expected = []
    for source, shots in ((train, 8), (val, 4)):
        by_label = {}
        for item in source:
            by_label.setdefault(item.label, []).append(item)
        drawn = []
        for items in by_label.values():
            drawn += random.sample(items, shots) if len(items) >= shots else items
        expected.append(drawn)

    set_random_seed(seed)
    got = [dataset.generate_fewshot_dataset(train, num_shots=8)]
    got.append(dataset.generate_fewshot_dataset(val, num_shots=4))
    assert got == expected
    rng = random.Random(seed)
    state = random.getstate()
    assert dataset.generate_fewshot_dataset(train, num_shots=8, rng=rng) == expected[0]
    assert dataset.generate_fewshot_dataset(val, num_shots=4, rng=rng) == expected[1]
    assert random.getstate() == state


def test_small_classes_are_noted_and_only_the_first_are_named(make_cfg):
    many = images([2] * 12)
    dataset = DatasetBase(train_x=many)
    dataset.generate_fewshot_dataset(many, num_shots=3)
    (note,) = dataset.notes
    assert note.count(" (2)") == 10
    assert note.endswith(" and 2 more classes")
    trainer = build_trainer(make_cfg(DATASET__NUM_SHOTS=7))  # each class has 6
    trainer.test()
    said = "Classes with fewer than 7 images, all of them are used: red_square (6)"
    assert read_result(trainer.output_dir)["notes"][0].startswith(said)


def test_fewshot_cases(capsys):
    train = images([3, 8])
    dataset = DatasetBase(train_x=train)
    assert dataset.generate_fewshot_dataset(train) is train
    assert dataset.generate_fewshot_dataset(train, train) == [train, train]
    both = dataset.generate_fewshot_dataset(train, train, num_shots=4)
    assert [Counter(i.label for i in part) for part in both] == [{0: 3, 1: 4}] * 2
    assert "Classes with fewer than 4 images, all of them are used: class 0 (3)" in (
        capsys.readouterr().out
    )
    note = "Classes with fewer than 4 images, all of them are used: class 0 (3)"
    assert dataset.notes == [note, note]
    filled = dataset.generate_fewshot_dataset(train, num_shots=4, repeat=True)
    assert Counter(i.label for i in filled) == {0: 4, 1: 4}
    assert dataset.generate_fewshot_dataset(train, num_shots=0) is train
    assert dataset.generate_fewshot_dataset(train, train, num_shots=0) == [train, train]


def test_the_engine_seeds_before_the_draw(make_cfg):
    def draw(seed):
        random.seed(1234)
        trainer = build_trainer(make_cfg(SEED=seed, DATASET__NUM_SHOTS=2))
        return [item.impath for item in trainer.dm.dataset.train_x]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    cfg = make_cfg(SEED=1, DATASET__NUM_SHOTS=2)
    set_random_seed(1)
    assert [item.impath for item in build_dataset(cfg).train_x] == draw(1)


def test_dataset_properties():
    items = [Datum("a", 2, 0, "c"), Datum("b", 0, 1, "a"), Datum("c", 1, 1, "b")]
    dataset = DatasetBase(train_x=items, test=items[:1])
    assert dataset.classnames == ["a", "b", "c"]
    assert dataset.lab2cname == {0: "a", 1: "b", 2: "c"}
    assert dataset.num_classes == 3
    assert list(dataset.split_dataset_by_label(items)) == [2, 0, 1]
    assert [len(v) for v in dataset.split_dataset_by_domain(items).values()] == [1, 2]
    assert DatasetBase(test=items[1:]).num_classes == 2
    with pytest.raises(ValueError, match="neither training nor test"):
        DatasetBase(train_x=[])
    dataset.domains = ["photo", "sketch"]
    dataset.check_input_domains(["photo"], [])
    with pytest.raises(ValueError, match="Did you mean 'sketch'"):
        dataset.check_input_domains([], ["sketches"])
    with pytest.raises(TypeError, match="impath"):
        Datum(3)
    with pytest.raises(AttributeError):
        items[0].label = 4


def test_registry_names(make_cfg):
    from dassl.data.datasets import base_dataset

    assert base_dataset.DATASET_REGISTRY is DATASET_REGISTRY
    assert base_dataset.build_dataset is build_dataset
    with pytest.raises(ValueError, match=r"'ToySquare' is not available.*'ToySquares'"):
        build_dataset(make_cfg(DATASET__NAME="ToySquare"))


# ---------------------------------------------------------------------- loaders


def epoch_images(cfg, epochs=2):
    set_random_seed(cfg.SEED)
    dm = DataManager(cfg)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    batches = [list(dm.train_loader_x) for _ in range(epochs)]
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    return batches


ALL_RANDOM = ("random_resized_crop", "random_flip", "colorjitter", "randaugment", "gaussian_noise")


def test_augmentation_does_not_depend_on_workers(make_cfg):
    runs = [
        epoch_images(make_cfg(DATALOADER__NUM_WORKERS=n, INPUT__TRANSFORMS=ALL_RANDOM))
        for n in (0, 1, 2)
    ]
    for other in runs[1:]:
        for one_epoch, other_epoch in zip(runs[0], other, strict=True):
            for one, two in zip(one_epoch, other_epoch, strict=True):
                assert one["impath"] == two["impath"]
                assert torch.equal(one["img"], two["img"])
    first, second = (
        {path: image for b in epoch for path, image in zip(b["impath"], b["img"], strict=True)}
        for epoch in runs[0]
    )
    assert list(first) != list(second)  # another order in the next epoch
    shared = set(first) & set(second)
    assert shared
    assert not any(torch.equal(first[path], second[path]) for path in shared)
    other_seed = epoch_images(make_cfg(SEED=2, INPUT__TRANSFORMS=ALL_RANDOM))
    assert other_seed[0][0]["impath"] != runs[0][0][0]["impath"]


def test_batches_have_dassls_keys(make_cfg):
    batch = epoch_images(make_cfg())[0][0]
    assert set(batch) == {"img", "label", "domain", "impath", "index"}
    assert batch["img"].shape == (4, 3, 8, 8)
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    dm = DataManager(make_cfg())
    for batch in dm.train_loader_x:
        for index, path in zip(batch["index"], batch["impath"], strict=True):
            assert dm.dataset.train_x[index].impath == path


def test_repeated_transforms_and_plain_image(make_cfg):
    cfg = make_cfg(DATALOADER__K_TRANSFORMS=2, DATALOADER__RETURN_IMG0=True)
    dm = DataManager(cfg)
    batch = next(iter(dm.train_loader_x))
    assert isinstance(batch["img"], list)
    assert not torch.equal(*batch["img"])
    assert batch["img0"].shape == (4, 3, 8, 8)
    assert isinstance(next(iter(dm.test_loader))["img"], torch.Tensor)
    item = DatasetWrapper(make_cfg(), dm.dataset.test, [T.ToTensor(), T.Resize((4, 4))])[0]
    assert item["img"].shape == (3, 20, 24)
    assert item["img2"].size == (4, 4)
    with pytest.raises(ValueError, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, dm.dataset.test, None, is_train=True)


def test_foreign_wrappers_and_transforms(make_cfg):
    class Wrapper(torch.utils.data.Dataset):
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.data_source = data_source

        def __len__(self):
            return len(self.data_source)

        def __getitem__(self, idx):
            return {"img": torch.zeros(1), "label": self.data_source[idx].label}

    dm = DataManager(make_cfg(), T.ToTensor(), T.ToTensor(), dataset_wrapper=Wrapper)
    assert set(next(iter(dm.test_loader))) == {"img", "label"}


def test_evaluation_reads_ahead(make_cfg):
    read = torch.zeros(1).share_memory_()

    def counted(image):
        read.add_(1)  # there is one worker only
        return T.functional.to_tensor(image)

    manager = DataManager(make_cfg(DATALOADER__NUM_WORKERS=1), custom_tfm_test=counted)
    passes = iter(manager.test_loader)
    assert len(next(passes)["img"]) == 5
    ended = time.monotonic() + 60
    while read < 12 and time.monotonic() < ended:
        time.sleep(0.01)
    assert read == 12, "while nobody has asked for the second batch of 5"


def test_last_short_batch(make_cfg):
    items = images([5, 6])
    cfg = make_cfg()
    assert len(build_data_loader(cfg, "RandomSampler", items, 4, is_train=True)) == 2
    assert len(build_data_loader(cfg, "RandomSampler", items, 4, is_train=False)) == 3
    assert len(build_data_loader(cfg, "RandomSampler", items, 99, is_train=True)) == 1
    assert len(build_data_loader(cfg, "RandomSampler", items, 4, drop_last=False)) == 3
    manager = DataManager(make_cfg(DATALOADER__TRAIN_X__DROP_LAST=False))
    assert len(manager.train_loader_x) == -(-len(manager.dataset.train_x) // 4)
    with pytest.raises(ValueError, match="data_source is empty"):
        build_data_loader(cfg, "RandomSampler", [], 4)
    with pytest.raises(ValueError, match="BATCH_SIZE"):
        build_data_loader(cfg, "RandomSampler", items, 0)


# ---------------------------------------------------------------------- bad images


@pytest.fixture
def damaged_root(toy_root, tmp_path):
    """Two damaged test images and one damaged, one missing training image."""
    root = tmp_path / "damaged"
    shutil.copytree(toy_root, root)
    directory = root / "toy" / "images" / "red_square"
    content = (directory / "09.png").read_bytes()
    (directory / "09.png").write_bytes(content[: len(content) // 2])
    (directory / "10.png").write_bytes(b"")
    (directory / "01.png").write_bytes(b"no image")
    (directory / "02.png").unlink()
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_an_error_with_its_path(make_cfg, damaged_root, workers):
    dm = DataManager(make_cfg(root=damaged_root, DATALOADER__NUM_WORKERS=workers))
    with pytest.raises(OSError, match=r"red_square/0[12]\.png"):
        list(dm.train_loader_x)
    with pytest.raises(BadImageError, match=r"red_square/09\.png"):
        list(dm.test_loader)
    with pytest.raises(FileNotFoundError, match=r"02\.png.*--root"):
        read_image(damaged_root / "toy" / "images" / "red_square" / "02.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_and_reported(make_cfg, damaged_root, workers, capsys):
    cfg = make_cfg(root=damaged_root, DATALOADER__NUM_WORKERS=workers, INPUT__ON_BAD_IMAGE="skip")
    trainer = build_trainer(cfg)
    trainer.train()
    log = capsys.readouterr().out
    result = read_result(cfg.OUTPUT_DIR)
    assert result["num_test"] == 10
    assert "* total: 10\n" in log
    note = next(note for note in result["notes"] if "unreadable" in note)
    assert note.startswith("4 unreadable images were skipped: ")
    for number in ("01", "02", "09", "10"):
        assert os.path.join("red_square", f"{number}.png") in note
    assert log.count("Skipping an image: ") == 4  # not again in every epoch


def test_whole_batches_of_bad_images(make_cfg, damaged_root):
    """The schedule advances once per epoch even if the last batch has no good image."""
    cfg = make_cfg(
        root=damaged_root,
        INPUT__ON_BAD_IMAGE="skip",
        DATALOADER__TRAIN_X__BATCH_SIZE=1,
        DATALOADER__TRAIN_X__SAMPLER="SequentialSampler",
    )
    trainer = build_trainer(cfg)
    source = trainer.train_loader_x.dataset.data_source
    source.sort(key=lambda item: "01.png" in item.impath and "red" in item.impath)
    trainer.model.head_norm = torch.nn.Identity()  # batches of one
    trainer.model.norm.eval()
    trainer.train()
    assert trainer._scheds["ToyMethod"].last_epoch == 3
    assert trainer.batch_idx + 1 < trainer.num_batches


def test_unknown_policy(make_cfg):
    with pytest.raises(ValueError, match="'ignore' is not available"):
        DataManager(make_cfg(INPUT__ON_BAD_IMAGE="ignore"))


# ---------------------------------------------------------------------- transforms


def picture(width=30, height=20):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def small_cfg(*names, **changes):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.INPUT.SIZE = (16, 16)
    cfg.INPUT.TRANSFORMS = names
    for key, value in changes.items():
        assert key in cfg.INPUT
        cfg.INPUT[key] = value
    return cfg


def test_test_transform_is_resize_and_centre_crop():
    cfg = small_cfg("random_resized_crop", "random_flip", "normalize", INTERPOLATION="bicubic")
    image = T.Resize(16, interpolation=T.InterpolationMode.BICUBIC)(picture())
    assert image.size == (24, 16)
    expected = T.ToTensor()(T.CenterCrop(16)(image))
    expected = T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)(expected)
    assert torch.equal(build_transform(cfg, is_train=False)(picture()), expected)


def test_train_transform_equals_torchvisions():
    cfg = small_cfg("normalize", "random_flip", "random_resized_crop", RRCROP_SCALE=(0.3, 0.9))
    by_hand = T.Compose(
        [
            T.RandomResizedCrop((16, 16), scale=(0.3, 0.9)),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )
    results = []
    for transform in (build_transform(cfg), by_hand):
        torch.manual_seed(3)
        results.append(transform(picture()))
    assert torch.equal(*results)


def test_without_a_crop_images_are_squashed():
    expected = T.ToTensor()(T.Resize((16, 16))(picture()))
    assert torch.equal(build_transform(small_cfg())(picture()), expected)


@pytest.mark.parametrize("name", AVAILABLE_TRANSFORMS)
def test_every_transform_keeps_the_size(name):
    transform = build_transform(small_cfg(name))
    outputs = []
    for seed in range(12):
        random.seed(seed)
        torch.manual_seed(seed)
        outputs.append(transform(picture()))
        assert outputs[-1].shape == (3, 16, 16)
        assert torch.isfinite(outputs[-1]).all()
    if name in ("normalize", "instance_norm", "center_crop"):
        assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    else:
        assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


def test_transform_errors():
    with pytest.raises(ValueError, match=r"'random_flipp'.*Did you mean 'random_flip'"):
        build_transform(small_cfg("random_flipp"))
    with pytest.raises(ValueError, match="'cubic' is not available"):
        build_transform(small_cfg(INTERPOLATION="cubic"))
    assert set(INTERPOLATION_MODES) == {"bilinear", "bicubic", "nearest"}
    assert build_transform(small_cfg(NO_TRANSFORM=True)) is None


# ---------------------------------------------------------------------- samplers


def test_passes_follow_from_seed_and_epoch():
    torch.manual_seed(4)
    sampler = build_sampler("RandomSampler", data_source=images([5, 5]))
    passes = [list(sampler) for _ in range(3)]
    assert sorted(passes[0]) == list(range(10))
    assert passes[0] != passes[1]
    sampler.set_epoch(0)
    again = list(sampler)
    assert [(i, i.seed) for i in again] == [(i, i.seed) for i in passes[0]]
    sampler.set_epoch(1)
    assert list(sampler) not in passes
    sequential = build_sampler("SequentialSampler", data_source=images([5, 5]))
    first, second = list(sequential), list(sequential)
    assert first == list(range(10))
    assert [i.seed for i in first] == [i.seed for i in second]
    assert len({i.seed for i in first}) == 10


def test_seeded_index_survives_pickling():
    index = pickle.loads(pickle.dumps(SeededIndex(3, 9)))
    assert (index, index.seed) == (3, 9)


def test_seeds_are_made_when_they_are_asked_for(monkeypatch):
    """Features need none, and hashing takes longer than a small step."""
    made = []

    def counted(*parts):
        made.append(parts)
        return mix_seed(*parts)

    monkeypatch.setattr("dassl.data.samplers.epochs.mix_seed", counted)
    indices = list(build_sampler("RandomSampler", data_source=images([5, 5])))
    (of_the_pass,) = made
    assert indices[3].seed == mix_seed(mix_seed(*of_the_pass), 3)
    assert len(made) == 2
    index = pickle.loads(pickle.dumps(indices[4]))
    assert (index, index.seed) == (indices[4], mix_seed(mix_seed(*of_the_pass), 4))


def test_domain_and_class_samplers():
    items = images([12, 12, 12], domains=3)
    sampler = build_sampler("RandomDomainSampler", None, items, batch_size=4, n_domain=2)
    order = list(sampler)
    for start in range(0, len(order), 4):
        assert sorted(Counter(items[i].domain for i in order[start : start + 4]).values()) == [2, 2]
    assert len(set(order)) == len(order) <= len(sampler) + 4
    order = list(build_sampler("SeqDomainSampler", None, items, batch_size=6))
    assert [items[i].domain for i in order[:6]] == [0, 0, 1, 1, 2, 2]
    assert len(order) == 36
    sampler = build_sampler("RandomClassSampler", None, items, batch_size=4, n_ins=2)
    order = list(sampler)
    assert len(set(order)) == len(order) <= len(sampler) <= 36
    for start in range(0, len(order), 4):
        assert sorted(Counter(items[i].label for i in order[start : start + 4]).values()) == [2, 2]
    for name, numbers in [
        ("RandomDomainSampler", {"n_domain": 4}),
        ("RandomDomainSampler", {"n_domain": 2, "batch_size": 5}),
        ("RandomDomainSampler", {"n_domain": 1, "batch_size": 13}),
        ("RandomClassSampler", {"n_ins": 5}),
        ("RandomClassSampler", {"n_ins": 1, "batch_size": 4}),
    ]:
        with pytest.raises(ValueError, match="N_DOMAIN|N_INS"):
            build_sampler(name, None, items, **{"batch_size": 4, **numbers})
    with pytest.raises(ValueError, match="Did you mean 'RandomSampler'"):
        build_sampler("RandSampler", None, items)


@pytest.mark.parametrize(
    ("limits", "after"), [((200, 300), (200, 300)), ((70, 300), (128, 300)), ((70, 100), None)]
)
def test_workers_may_open_enough_files_or_do_not_start(monkeypatch, limits, after):
    found = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda _: found[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: found.append(new))
    if after is None:
        with pytest.raises(ValueError, match=r"2 workers need about 128 open files.* may have 100"):
            _allow_open_files(2)
        return
    _allow_open_files(2)
    assert found[-1] == after
