"""Images are resized by Pillow to the byte; with INPUT.FAST_RESIZE they differ by little."""

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dassl.config import config_hash, get_cfg_default
from dassl.data import DataManager, data_manager, read_image, wrapper
from dassl.data.transforms import build_transform, takes_pixels, to_floats
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

# Wide, high, square, smaller and much larger than the result, and sides that divide by nothing.
SIZES = [(500, 375), (375, 500), (64, 64), (33, 20), (7, 90), (1, 5), (401, 397), (1200, 90)]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SIDE = 48


def picture(size: tuple[int, int]) -> Image.Image:
    """Noise and plain areas: steps between them are where filters overshoot."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (0, 255, 128)
    return Image.fromarray(pixels)


def transform(fast: bool, mode: str, *names: str, train: bool = False):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (SIDE, SIDE), mode
    cfg.INPUT.TRANSFORMS, cfg.INPUT.FAST_RESIZE = names, fast
    return build_transform(cfg, is_train=train)


def levels(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) of 0 to 1 -> of 0 to 255."""
    return (image * 255).round()


def width_first(image: Image.Image, size: tuple[int, int], mode: str) -> Image.Image:
    """Pillow's resizing in two passes, in the order that PyTorch's kernels always have."""
    return image.resize((size[0], image.height), FILTERS[mode]).resize(size, FILTERS[mode])


def check_close(fast: torch.Tensor, exact: torch.Tensor, most: int = 2) -> None:
    assert fast.shape == exact.shape
    difference = (levels(fast) - levels(exact)).abs()
    assert difference.max() <= most
    assert (difference > 0).float().mean() < 0.05


@pytest.mark.parametrize("mode", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_test_images(size, mode):
    image = picture(size)
    scale = SIDE / min(size)
    # The longer side is rounded down.
    width, height = (SIDE if side == min(size) else int(side * scale + 1e-9) for side in size)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    resized = image.resize((width, height), FILTERS[mode])
    expected = T.functional.to_tensor(resized.crop((left, top, left + SIDE, top + SIDE)))
    assert torch.equal(transform(False, mode)(image), expected)
    resized = width_first(image, (width, height), mode)
    near = T.functional.to_tensor(resized.crop((left, top, left + SIDE, top + SIDE)))
    check_close(transform(True, mode)(image), near)


@pytest.mark.parametrize("mode", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_random_crops(size, mode):
    image = picture(size)
    draw = T.RandomResizedCrop(SIDE, scale=(0.08, 1.0))
    for seed in range(5):
        torch.manual_seed(seed)
        top, left, height, width = draw.get_params(image, draw.scale, draw.ratio)
        part = image.crop((left, top, left + width, top + height))
        expected = T.functional.to_tensor(part.resize((SIDE, SIDE), FILTERS[mode]))
        found, states = [], []
        for fast in (False, True):
            torch.manual_seed(seed)
            found.append(transform(fast, mode, "random_resized_crop", train=True)(image))
            states.append(torch.get_rng_state())
        assert torch.equal(found[0], expected)
        check_close(found[1], T.functional.to_tensor(width_first(part, (SIDE, SIDE), mode)))
        assert torch.equal(*states), "what is drawn next is the same"


@pytest.mark.parametrize("mode", FILTERS)
def test_training_images_without_a_crop(mode):
    image = picture((500, 375))
    expected = T.functional.to_tensor(image.resize((SIDE, SIDE), FILTERS[mode]))
    assert torch.equal(transform(False, mode, train=True)(image), expected)
    check_close(transform(True, mode, train=True)(image), expected, most=1)


def test_it_is_another_way_of_resizing():
    """Else the comparisons above would hold without it."""
    image = picture((500, 375))
    assert not torch.equal(*(transform(fast, "bicubic")(image) for fast in (False, True)))


def test_the_nearest_pixel_is_taken_as_ever():
    image = picture((500, 375))
    assert torch.equal(*(transform(fast, "nearest")(image) for fast in (False, True)))


def test_large_jpegs_are_decoded_at_a_half_only_if_asked(tmp_path):
    # Both sides keep 48 pixels or more; of 500 x 375 a quarter does.
    sizes = {(500, 375): (125, 94), (400, 95): (400, 95), (96, 96): (48, 48), (95, 200): (95, 200)}
    for size, smaller in sizes.items():
        for suffix in ("jpg", "png"):
            path = tmp_path / f"{size[0]}.{suffix}"
            picture(size).save(path)
            assert read_image(path, SIDE).size == (smaller if suffix == "jpg" else size)
            assert read_image(path).size == size


@pytest.mark.parametrize("key", ["FAST_RESIZE", "FAST_DECODE"])
def test_a_run_says_it_and_is_another_one(make_config, capsys, key):
    options = ("DATASET.NUM_SHOTS", "1")
    plain = make_config("ZeroshotCLIP/base2novel", *options)
    fast = make_config("ZeroshotCLIP/base2novel", *options, f"INPUT.{key}", "True")
    assert config_hash(plain) != config_hash(fast)
    said = {
        "FAST_RESIZE": "INPUT.FAST_RESIZE: some pixels differ from Pillow's",
        "FAST_DECODE": "INPUT.FAST_DECODE: pixels of large JPEGs differ",
    }[key]
    build_trainer(plain)
    assert said not in capsys.readouterr().out
    trainer = build_trainer(fast)
    assert said in capsys.readouterr().out
    dataset = trainer.test_loader.dataset
    assert ("FastResize" in repr(dataset.transform)) == (key == "FAST_RESIZE")
    assert dataset.least == (48 if key == "FAST_DECODE" else 0)


def test_views_of_a_test_image_are_made_by_it_too(make_config):
    cfg = make_config("TPT/ttt", "INPUT.FAST_RESIZE", "True", dataset="shapes_v2")
    shown = repr(build_trainer(cfg).test_loader.dataset.transform)
    assert "FastResize" in shown
    assert "FastRandomResizedCrop" in shown


# ---------------------------------------------------------------------- kept bytes, without a copy


@pytest.mark.parametrize("mode", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_size(size, mode):
    image = picture(size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
    made = transform(True, mode, "random_resized_crop", "random_flip", train=True)
    assert takes_pixels(made)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = made(image)
        torch.manual_seed(seed)
        assert torch.equal(to_floats(made, pixels), expected)


@pytest.fixture
def train_loader(make_cfg):
    """Makes a loader of training images with INPUT.FAST_RESIZE."""

    def make(**changes):
        names = ("random_resized_crop", "random_flip", "normalize")
        given = {"INPUT__FAST_RESIZE": True, "INPUT__TRANSFORMS": names, **changes}
        cfg = make_cfg(**given)
        set_random_seed(1)
        return DataManager(cfg).train_loader_x

    return make


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_bytes_are_cut_as_images_are(train_loader, monkeypatch, device, workers):
    monkeypatch.setattr(data_manager, "_gpu", lambda _: device)
    loader = train_loader(DATALOADER__NUM_WORKERS=workers)
    found = [batch for _ in range(2) for batch in loader]  # decoded, then kept
    assert len(loader.dataset.cache._rows) == len(loader.dataset)
    monkeypatch.setattr(wrapper, "takes_pixels", lambda _: False)
    loader = train_loader(DATALOADER__CACHE_IMAGES=0.0)
    expected = [batch for _ in range(2) for batch in loader]
    for one, two in zip(found, expected, strict=True):
        assert one["impath"] == two["impath"]
        assert torch.equal(one["img"], two["img"])


@pytest.mark.parametrize(
    ("changes", "type_"),
    [
        ({}, torch.Tensor),
        ({"INPUT__TRANSFORMS": ("random_resized_crop",)}, torch.Tensor),
        ({"INPUT__FAST_RESIZE": False}, Image.Image),
        ({"INPUT__TRANSFORMS": ("random_resized_crop", "colorjitter")}, Image.Image),
        ({"INPUT__TRANSFORMS": ("random_resized_crop", "cutout")}, Image.Image),
        ({"INPUT__TRANSFORMS": ("random_flip", "normalize")}, Image.Image),
        ({"DATALOADER__RETURN_IMG0": True}, Image.Image),
    ],
)
def test_only_a_fast_crop_and_a_flip_work_on_bytes(train_loader, changes, type_):
    dataset = train_loader(**changes).dataset
    path = dataset.data_source[0].impath
    for _ in range(2):
        assert isinstance(dataset._read(path), type_)
    assert dataset[0]["img"].dtype == torch.float32


def test_kept_bytes_stay_what_they_are(train_loader):
    loader = train_loader(DATALOADER__K_TRANSFORMS=2, DATALOADER__TRAIN_X__BATCH_SIZE=3)
    list(loader)
    before = loader.dataset.cache._bytes[: 18 * 20 * 24 * 3].copy()
    list(loader)
    assert (loader.dataset.cache._bytes[: before.size] == before).all()
    assert before.any()
