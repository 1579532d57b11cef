"""INPUT.DECODE cuda: the device decodes JPEGs; the CPU stands for the GPU, by the same code."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from dassl.config import config_hash
from dassl.data import (
    DatasetWrapper,
    build_data_loader,
    data_manager,
    jpegs,
    read_image,
)
from dassl.data.datasets import Datum
from dassl.data.image_cache import build_image_cache
from dassl.data.jpegs import JpegDataset
from dassl.data.samplers.epochs import SeededIndex
from dassl.data.transforms import build_transform
from dassl.data.wrapper import BadImageError
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from scripts.benchmarks.tools import run_config, write_pictures
from tests.conftest import REPOSITORY

# The CPU has no memory to pin for itself.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
SIZE = (48, 40)
PHOTOS = ["wide.jpg", "high.jpg", "progressive.jpg", "grey.jpg"]
# Decoded by Pillow: other formats and colours, turned photos, and bytes behind the image.
OTHERS = ["plain.png", "cmyk.jpg", "turned.jpg", "stored_rgb.jpg", "longer.jpg"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Pictures with areas, edges and grain, in files of all kinds."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(blobs).resize((160, 120), Image.Resampling.BICUBIC), float)
    wide = Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))
    wide.save(folder / "wide.jpg", quality=90)
    wide.transpose(Image.Transpose.ROTATE_90).save(folder / "high.jpg", quality=75)
    wide.save(folder / "progressive.jpg", progressive=True)
    wide.convert("L").save(folder / "grey.jpg")
    wide.save(folder / "plain.png")
    wide.convert("CMYK").save(folder / "cmyk.jpg")
    wide.save(folder / "stored_rgb.jpg", keep_rgb=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(folder / "turned.jpg", exif=exif)
    content = (folder / "wide.jpg").read_bytes()
    (folder / "longer.jpg").write_bytes(content + b"\0\0\0")
    (folder / "cut_off.jpg").write_bytes(content[: len(content) // 2])
    (folder / "no_image.jpg").write_bytes(b"no image")
    # The tables of quantisation become a remark: all else is whole, but nobody can decode it.
    (folder / "damaged.jpg").write_bytes(content.replace(b"\xff\xdb", b"\xff\xfe"))
    return folder


@pytest.fixture
def on_device(monkeypatch):
    """Let loaders hand their images to the CPU, as they do to a GPU where there is one."""
    monkeypatch.setattr(data_manager, "_gpu", lambda _: torch.device("cpu"))


@pytest.fixture
def make_loader(make_cfg, files):
    def make(names, decode="cuda", batch=None, **changes):
        given = {"INPUT__SIZE": SIZE, "INPUT__INTERPOLATION": "bicubic", **changes}
        cfg = make_cfg(INPUT__DECODE=decode, **given)
        set_random_seed(1)
        return build_data_loader(
            cfg,
            data_source=[Datum(str(files / name), label) for label, name in enumerate(names)],
            batch_size=batch or len(names),
            tfm=build_transform(cfg, is_train=True),
        )

    return make


def levels(images):
    """Normalised floats -> 0 to 255, whatever the mean."""
    return images * torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1) * 255


# ---------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize(
    "names", [("random_resized_crop", "random_flip"), ("random_resized_crop",)]
)
@pytest.mark.parametrize("name", PHOTOS)
def test_crops_and_flips_are_those_of_the_transform(make_loader, on_device, files, name, names):
    dataset = make_loader([name], INPUT__TRANSFORMS=names).dataset
    crop, image, flips = dataset.transform.transforms[0], read_image(files / name), set()
    for seed in range(12):
        torch.manual_seed(seed)
        drawn = dataset[0]["img"].crop
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        box = crop.get_params(image, crop.scale, crop.ratio)
        flipped = "random_flip" in names and bool(torch.rand(1) < 0.5)
        assert drawn == (box, flipped)
        flips.add(flipped)
        torch.manual_seed(seed)
        dataset.transform(image)
        assert torch.equal(after, torch.get_rng_state()), "what is drawn next is the same"
    assert flips == ({True, False} if "random_flip" in names else {False})


def test_a_loaders_item_has_its_seed(make_loader, on_device):
    dataset = make_loader(["wide.jpg"]).dataset
    first, again, other = dataset.__getitems__([SeededIndex(0, seed) for seed in (3, 3, 4)])
    assert first["img"].crop == again["img"].crop != other["img"].crop


# ---------------------------------------------------------------------- pixels


# Where two pixels are as near, another one is taken: by whole edges then.
@pytest.mark.parametrize(
    ("mode", "mean", "most"), [("bicubic", 0.3, 2), ("bilinear", 0.3, 2), ("nearest", 2, 255)]
)
def test_pixels_are_near_pillows(make_loader, on_device, mode, mean, most):
    names = PHOTOS * 8
    found, expected = (
        next(iter(make_loader(names, decode, INPUT__INTERPOLATION=mode)))
        for decode in ("cuda", "pillow")
    )
    assert found["impath"] == expected["impath"]
    assert found["label"].tolist() == expected["label"].tolist()
    assert found["img"].shape == expected["img"].shape == (32, 3, *SIZE)
    assert found["img"].dtype == torch.float32
    difference = levels(found["img"] - expected["img"]).abs()
    # Measured: 0.22, 0.21 and 1.25 levels at most; pictures moved by a pixel differ by 11.
    assert difference.mean((1, 2, 3)).max() < mean
    assert difference.max() <= most + 1e-3


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_no_plain_jpeg_is_pillows_to_the_bit(make_loader, on_device, workers, capsys):
    names = [OTHERS[0], "wide.jpg", *OTHERS[1:], "grey.jpg"]
    found, expected = (
        next(iter(make_loader(names, decode, DATALOADER__NUM_WORKERS=workers)))
        for decode in ("cuda", "pillow")
    )
    log = capsys.readouterr().out
    for path, one, two in zip(found["impath"], found["img"], expected["img"], strict=True):
        name = Path(path).name
        assert torch.equal(one, two) == (name in OTHERS), name
        assert levels(one - two).abs().mean() < 0.3, name
    assert log.count("* Pillow decodes what is no plain JPEG, as ") == 1


def test_batches_of_one_kind_only(make_loader, on_device):
    for names in (PHOTOS, OTHERS):
        assert next(iter(make_loader(names)))["img"].isfinite().all()


def test_batches_are_the_same_for_any_workers_and_again(make_loader, on_device):
    names = [*PHOTOS, *OTHERS, *PHOTOS]
    passes = [
        list(make_loader(names, batch=4, DATALOADER__NUM_WORKERS=workers))
        for workers in (0, 1, 2, 0)
    ]
    assert len(passes[0]) == 3
    for other in passes[1:]:
        for one, two in zip(passes[0], other, strict=True):
            assert one["impath"] == two["impath"]
            assert torch.equal(one["img"], two["img"])


def test_workers_hand_over_files(make_loader, on_device, files):
    loader = make_loader(PHOTOS)
    batch = loader.collate_fn(loader.dataset.__getitems__(range(4)))["img"]
    contents = [(files / name).read_bytes() for name in PHOTOS]
    assert batch.data.numpy().tobytes() == b"".join(contents)
    assert batch.sizes == [len(content) for content in contents]
    assert batch.decoded.numel() == 0


def test_large_batches_are_decoded_in_parts(make_loader, on_device, monkeypatch):
    whole = next(iter(make_loader(PHOTOS * 2)))["img"]
    monkeypatch.setattr(jpegs, "_AT_ONCE", 3)
    counts, decode = [], jpegs.decode
    monkeypatch.setattr(jpegs, "decode", lambda f, d: counts.append(len(f)) or decode(f, d))
    assert torch.equal(next(iter(make_loader(PHOTOS * 2)))["img"], whole)
    assert counts == [3, 3, 2]


# ---------------------------------------------------------------------- what cannot be decoded

BAD = ["cut_off.jpg", "no_image.jpg", "damaged.jpg"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_the_same_error(make_loader, on_device, files, name, workers):
    with pytest.raises(BadImageError) as expected:
        read_image(files / name)
    with pytest.raises(BadImageError, match=re.escape(str(expected.value))):
        list(make_loader(["wide.jpg", name], DATALOADER__NUM_WORKERS=workers))


def test_a_missing_file_is_the_same_error(make_loader, on_device):
    with pytest.raises(FileNotFoundError, match=r"No image at .*gone\.jpg"):
        list(make_loader(["wide.jpg", "gone.jpg"]))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_and_the_others_stay(make_loader, on_device, workers):
    names = [BAD[0], "wide.jpg", *BAD[1:], "plain.png", "grey.jpg"]
    found, reasons = [], []
    for decode in ("cuda", "pillow"):
        loader = make_loader(
            names, decode, DATALOADER__NUM_WORKERS=workers, INPUT__ON_BAD_IMAGE="skip"
        )
        found += list(loader)
        reasons.append(loader.bad_images)
    assert reasons[0] == reasons[1]
    assert len(reasons[0]) == 3
    one, two = found
    assert one.keys() == two.keys()
    assert sorted(one["label"].tolist()) == [1, 4, 5]
    for key in one.keys() - {"img"}:
        assert list(one[key]) == list(two[key])
    assert levels(one["img"] - two["img"]).abs().mean() < 0.3


def test_a_batch_of_bad_images_is_left_out(make_loader, on_device):
    loader = make_loader(BAD, INPUT__ON_BAD_IMAGE="skip")
    assert list(loader) == []
    assert len(loader.bad_images) == 3
    loader = make_loader([BAD[2]], INPUT__ON_BAD_IMAGE="skip")
    assert list(loader) == []


def test_what_only_pillow_can_decode(make_loader, on_device, monkeypatch, files):
    expected = next(iter(make_loader(PHOTOS)))["img"]
    unknown, decode = (files / "high.jpg").stat().st_size, jpegs.decode

    def refuse(given, device):
        if any(len(file) == unknown for file in given):
            raise RuntimeError("nvjpegDecodeBatched failed: 4")
        return decode(given, device)

    monkeypatch.setattr(jpegs, "decode", refuse)
    found = next(iter(make_loader(PHOTOS)))["img"]
    assert levels(found - expected).abs().mean() < 0.1


def test_a_full_card_is_no_damaged_file(make_loader, on_device, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    loader = make_loader(PHOTOS)
    monkeypatch.setattr(jpegs, "decode", full)
    with pytest.raises(torch.OutOfMemoryError):
        list(loader)


# ---------------------------------------------------------------------- a run


def test_images_to_test_on_are_pillows(make_cfg, on_device, capsys):
    cfg = make_cfg(INPUT__DECODE="cuda")
    trainer = build_trainer(cfg)
    assert type(trainer.train_loader_x.dataset) is JpegDataset
    assert type(trainer.test_loader.dataset) is type(trainer.val_loader.dataset) is DatasetWrapper
    assert build_image_cache(cfg, trainer.dm.dataset.train_x) is None
    assert "* INPUT.DECODE cuda: the GPU decodes training JPEGs" in capsys.readouterr().out
    assert config_hash(cfg) != config_hash(make_cfg())


@pytest.fixture
def run(tmp_path, monkeypatch, shapes_root):
    monkeypatch.setattr("dassl.utils.setup_logger", lambda _: None)  # it would keep sys.stdout
    write_pictures(tmp_path, 3, 4, test=2, side=96)

    def run(output, *options):
        """Train; return the weights of the last epoch."""
        words = ["--root", tmp_path, "--output-dir", tmp_path / output, "--seed", "1"]
        words += ["--dataset-config-file", REPOSITORY / "configs/datasets/folder.yaml"]
        words += ["--config-file", REPOSITORY / "configs/trainers/LightRA/few_shot.yaml"]
        words += ["--backbone", "shapes", "--device", "cpu", "DATASET.NUM_SHOTS", "4"]
        words += ["OPTIM.MAX_EPOCH", "2", "DATASET.DIR", "pictures", *options]
        train.main([str(word) for word in words])
        (path,) = (tmp_path / output).glob("*/model.pth.tar-2")
        return torch.load(path, weights_only=True)["state_dict"]

    return run


def test_a_run_of_train_py(run, on_device, capsys):
    plain, found, again = (
        run(f"run{number}", "INPUT.DECODE", decode, "DATALOADER.NUM_WORKERS", workers)
        for number, (decode, workers) in enumerate([("pillow", 0), ("cuda", 0), ("cuda", 2)])
    )
    assert capsys.readouterr().out.count("INPUT.DECODE cuda: the GPU decodes training JPEGs") == 2
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert any(not torch.equal(found[name], plain[name]) for name in found)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=0.1, atol=1e-2)


def test_cached_features_of_training_images(tmp_path, on_device):
    write_pictures(tmp_path, 3, 4, test=2, side=96)
    found = []
    for decode in ("cuda", "pillow"):
        options = ("INPUT.DECODE", decode, "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
        cache = ("FEATURE_CACHE.ENABLED", True, "FEATURE_CACHE.DIR", tmp_path / "features")
        cfg = run_config("CLIPAdapter", tmp_path, "shapes", "cpu", *options, *cache)
        batches = list(build_trainer(cfg).train_loader_x)
        found.append(torch.cat([batch["img"] for batch in batches]))  # (N, D)
    assert torch.nn.functional.cosine_similarity(*found).min() > 0.99
    assert not torch.equal(*found), "one does not take what the other has kept"
