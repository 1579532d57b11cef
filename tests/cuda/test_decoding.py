"""INPUT.DECODE cuda: crops, flips and pixels against Pillow's, and files that are no plain JPEG."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data import build_data_loader, data_manager
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer, trainable_state
from dassl.utils import set_random_seed
from scripts.benchmarks.loading import write_photograph
from scripts.benchmarks.tools import run_config, write_pictures
from tests.cuda.agreement import difference

pytestmark = pytest.mark.cuda

PHOTOS = [*(f"photo_{number}.jpg" for number in range(6)), "grey.jpg", "progressive.jpg"]
OTHERS = ["plain.png", "cmyk.jpg", "turned.jpg", "longer.jpg"]  # which Pillow decodes
BAD = ["cut_off.jpg", "damaged.jpg"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(PHOTOS[:6]):
        write_photograph(folder / name, np.random.default_rng(number))
    photo = Image.open(folder / PHOTOS[0])
    photo.convert("L").save(folder / "grey.jpg")
    photo.save(folder / "progressive.jpg", progressive=True)
    photo.save(folder / "plain.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    content = (folder / PHOTOS[0]).read_bytes()
    (folder / "longer.jpg").write_bytes(content + b"\0")
    (folder / "cut_off.jpg").write_bytes(content[: len(content) // 2])
    # The tables of quantisation become a remark: all else is whole, but nobody can decode it.
    (folder / "damaged.jpg").write_bytes(content.replace(b"\xff\xdb", b"\xff\xfe"))
    return folder


@pytest.fixture
def make_loader(files, device, monkeypatch):
    monkeypatch.setattr(data_manager, "_gpu", lambda _: device)

    def make(names, decode="cuda"):
        cfg = get_cfg_default()
        cfg.VERBOSE, cfg.DEVICE, cfg.DATALOADER.NUM_WORKERS = False, str(device), 2
        cfg.INPUT.DECODE, cfg.INPUT.ON_BAD_IMAGE = decode, "skip"
        cfg.INPUT.INTERPOLATION = "bicubic"
        cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
        set_random_seed(1)
        items = [Datum(str(files / name), label) for label, name in enumerate(names)]
        transform = build_transform(cfg, is_train=True)
        return build_data_loader(cfg, data_source=items, batch_size=len(items), tfm=transform)

    return make


def levels(images):
    """Normalised floats -> 0 to 255, whatever the mean."""
    return images.cpu() * torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1) * 255


def test_photos_are_near_pillows_and_the_same_again(make_loader, device):
    found, again, expected = (
        next(iter(make_loader(PHOTOS * 6, decode))) for decode in ("cuda", "cuda", "pillow")
    )
    assert found["img"].device.type == expected["img"].device.type == device.type
    assert found["impath"] == again["impath"] == expected["impath"]
    assert torch.equal(found["img"], again["img"])
    apart = levels(found["img"] - expected["img"]).abs().mean((1, 2, 3))
    # Another crop or a flip would differ by far more than decoders do.
    flipped = levels(found["img"] - found["img"].flip(-1)).abs().mean((1, 2, 3))
    assert apart.max() < 2
    assert flipped.min() > 10


def test_what_is_no_plain_jpeg_is_pillows_to_the_bit(make_loader):
    names = [OTHERS[0], *PHOTOS, *OTHERS[1:]]
    found, expected = (next(iter(make_loader(names, decode))) for decode in ("cuda", "pillow"))
    for path, one, two in zip(found["impath"], found["img"], expected["img"], strict=True):
        if Path(path).name in OTHERS:
            assert torch.equal(one, two), path


def test_bad_images_are_those_that_pillow_finds(make_loader):
    names = [BAD[0], *PHOTOS, BAD[1]]
    loaders = [make_loader(names, decode) for decode in ("cuda", "pillow")]
    found, expected = (next(iter(loader)) for loader in loaders)
    assert loaders[0].bad_images == loaders[1].bad_images
    assert len(loaders[0].bad_images) == len(BAD)
    assert found["impath"] == expected["impath"]
    assert found["label"].tolist() == expected["label"].tolist()
    assert len(found["img"]) == len(PHOTOS)


def test_a_run_learns_what_pillows_does(tmp_path, device, monkeypatch):
    monkeypatch.setattr(data_manager, "_gpu", lambda _: device)
    write_pictures(tmp_path, 3, 8, test=2, side=96)
    options = ("DATASET.NUM_SHOTS", 8, "DATALOADER.NUM_WORKERS", 2, "OPTIM.MAX_EPOCH", 2)
    found = []
    for decode in ("cuda", "pillow"):
        more = ("INPUT.DECODE", decode, "OUTPUT_DIR", tmp_path / decode)
        cfg = run_config("LightRA", tmp_path, "shapes", str(device), *options, *more)
        trainer = build_trainer(cfg)
        trainer.train()
        found.append(torch.cat([p.flatten() for p in trainable_state(trainer.model).values()]))
    assert 0 < difference(*found) < 0.05
