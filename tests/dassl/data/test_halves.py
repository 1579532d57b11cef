"""Bytes from the workers and floats on the device are what the whole transform makes."""

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dassl.data import DataManager, DatasetWrapper, data_manager
from dassl.data.transforms import batch_steps, crop_border_first, finish, to_bytes
from dassl.utils import set_random_seed

# Tests let batches go to the CPU as to a GPU, for which memory would be pinned.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def all_bytes():
    """A picture with every byte in every channel."""
    return Image.fromarray(np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, -1))


@pytest.mark.parametrize("steps", [[], [T.Normalize(MEAN, STD)], [T.Normalize((0.5,), (0.3,))]])
@pytest.mark.parametrize("border", [0, 2])
def test_the_halves_make_the_whole_to_the_bit(steps, border):
    whole = crop_border_first(T.Compose([T.Resize(12), T.ToTensor(), *steps]), border)
    half = to_bytes(whole, all_bytes())
    assert half.dtype == torch.uint8
    images = torch.stack([half, half])
    before = images.clone()
    finished = finish(images, batch_steps(whole))
    assert torch.equal(images, before)
    assert finished.dtype == torch.float32
    for image in finished:
        assert torch.equal(image, whole(all_bytes()))


@pytest.mark.parametrize(
    "transform",
    [
        None,
        T.Resize(12),
        T.Compose([T.Resize(12)]),
        T.Compose([T.ToTensor(), T.RandomErasing()]),
        T.Compose([T.ToTensor(), T.Normalize(MEAN, STD), T.RandomErasing()]),
        T.Compose([T.ToTensor(), lambda image: image.flip(0)]),
    ],
)
def test_other_transforms_are_not_split(transform):
    assert batch_steps(transform) is None


def test_an_image_of_another_mode_is_finished_at_once():
    transform = T.Compose([T.Lambda(lambda im: im.convert("F")), T.ToTensor(), T.Normalize(0, 2)])
    image = all_bytes()
    assert torch.equal(to_bytes(transform, image), transform(image))


# ---------------------------------------------------------------------- loaders


@pytest.fixture
def on_device(monkeypatch):
    """Let loaders hand their images to the CPU, as they do to a GPU where there is one."""
    monkeypatch.setattr(data_manager, "_gpu", lambda _: torch.device("cpu"))


def pass_of(loader):
    set_random_seed(1)
    loader.sampler.set_epoch(0)
    return list(loader)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"DATALOADER__K_TRANSFORMS": 2, "DATALOADER__RETURN_IMG0": True},
        {"INPUT__TRANSFORMS": ("random_flip", "normalize", "gaussian_noise")},
        {"INPUT__TRANSFORMS": ("random_flip",)},
    ],
)
def test_batches_are_the_same(make_cfg, on_device, monkeypatch, changes):
    cfg = make_cfg(DATALOADER__NUM_WORKERS=1, **changes)
    set_random_seed(1)
    found = pass_of(DataManager(cfg).train_loader_x)
    monkeypatch.setattr(data_manager, "_gpu", lambda _: None)
    set_random_seed(1)
    expected = pass_of(DataManager(cfg).train_loader_x)
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() & {"img", "img0"}:
            pairs = zip(one[key], two[key], strict=True)
            assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in pairs)


def test_workers_hand_over_bytes_and_this_process_reads_floats(make_cfg, on_device, monkeypatch):
    seen = []
    monkeypatch.setattr(
        DatasetWrapper, "finish", lambda self, batch: seen.append(batch["img"].dtype)
    )
    loaders = [DataManager(make_cfg(DATALOADER__NUM_WORKERS=n)).train_loader_x for n in (0, 1)]
    for loader in loaders:
        next(iter(loader))
        assert loader.dataset[0]["img"].dtype == torch.float32
    assert seen == [torch.float32, torch.uint8]


def test_a_subclass_of_the_wrapper_gets_floats(make_cfg, on_device):
    class Own(DatasetWrapper):
        def _transform_image(self, transform, image):
            return super()._transform_image(transform, image) + 1

    cfg = make_cfg(DATALOADER__NUM_WORKERS=1)
    plain, own = (DataManager(cfg, dataset_wrapper=wrapper) for wrapper in (None, Own))
    assert (plain.test_loader.dataset.device, own.test_loader.dataset.device) == (
        torch.device("cpu"),
        None,
    )
    one, two = (next(iter(manager.test_loader))["img"] for manager in (plain, own))
    assert torch.equal(one + 1, two)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "cuda"),
        ({"DEVICE": "cuda:1"}, "cuda:1"),
        ({"DEVICE": "cpu"}, None),
        ({"DEVICE": "mps"}, None),
        ({"USE_CUDA": False}, None),
    ],
)
def test_where_images_go(make_cfg, monkeypatch, changes, expected):
    cfg = make_cfg(**{"DEVICE": "auto", **changes})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert data_manager._gpu(cfg) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert data_manager._gpu(cfg) == (expected and torch.device(expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_makes_the_same_floats(make_cfg):
    found, expected = (
        next(iter(DataManager(make_cfg(DEVICE=device, DATALOADER__NUM_WORKERS=1)).test_loader))
        for device in ("cuda", "cpu")
    )
    assert found["img"].is_cuda
    assert found["img"].is_contiguous()
    torch.testing.assert_close(found["img"].cpu(), expected["img"], rtol=0, atol=1e-6)
