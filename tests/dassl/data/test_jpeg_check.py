"""INPUT.DECODE cuda: what the GPU cannot do is refused in one line before training."""

import pytest
import torch

import train
from dassl.data import DatasetWrapper, build_data_loader, data_manager, jpeg_check
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform, crop_border_first
from dassl.engine import build_trainer
from tests.conftest import REPOSITORY


class Own(DatasetWrapper):
    """As a method may have it."""


@pytest.fixture
def on_device(monkeypatch):
    """Let loaders hand their images to the CPU, as they do to a GPU where there is one."""
    monkeypatch.setattr(data_manager, "_gpu", lambda _: torch.device("cpu"))


@pytest.fixture
def load(make_cfg):
    """Makes a loader of training images; a border is cut off first."""

    def make(wrapper=None, border=0, **changes):
        cfg = make_cfg(INPUT__DECODE="cuda", **changes)
        return build_data_loader(
            cfg,
            data_source=[Datum("photo.jpg")],
            batch_size=1,
            tfm=crop_border_first(build_transform(cfg, is_train=True), border),
            dataset_wrapper=wrapper,
        )

    return make


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"INPUT__FAST_DECODE": True}, "INPUT.FAST_DECODE is True, which only Pillow can do"),
        ({"DATALOADER__K_TRANSFORMS": 2}, "DATALOADER.K_TRANSFORMS is 2, not 1"),
        ({"DATALOADER__RETURN_IMG0": True}, "DATALOADER.RETURN_IMG0 is True"),
        (
            {"INPUT__TRANSFORMS": ("randaugment", "normalize")},
            "Resize, RandAugment, Normalize, and",
        ),
        (
            {"INPUT__TRANSFORMS": ("normalize",)},
            "training images go through Resize, Normalize, and",
        ),
        (
            {"INPUT__TRANSFORMS": ("random_resized_crop", "gaussian_noise")},
            "RandomResizedCrop, GaussianNoise, and a GPU does random_resized_crop with or without "
            "random_flip and normalize (INPUT.TRANSFORMS)",
        ),
        (
            {"INPUT__TRANSFORMS": ("random_resized_crop", "random_flip", "colorjitter")},
            "RandomResizedCrop, RandomHorizontalFlip, ColorJitter, and",
        ),
        ({"INPUT__NO_TRANSFORM": True}, "training images go through NoneType, and"),
        ({"border": 2}, "training images go through CropBorder, RandomResizedCrop, "),
        ({"wrapper": Own}, "the method reads images in a way of its own"),
    ],
)
def test_it_refuses_in_a_line(load, on_device, changes, reason):
    with pytest.raises(ValueError, match=r"^INPUT\.DECODE is cuda, but ") as error:
        load(**changes)
    assert reason in str(error.value)
    assert str(error.value).endswith("; set INPUT.DECODE pillow")
    assert "\n" not in str(error.value)


def test_it_refuses_without_a_gpu(load):
    said = r"but the run has no CUDA GPU \(DEVICE cpu, USE_CUDA True\); set INPUT.DECODE pillow"
    with pytest.raises(ValueError, match=said):
        load()


def test_it_refuses_a_torchvision_that_cannot(load, on_device, monkeypatch):
    def refuse(*_):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nmore")

    monkeypatch.setattr(jpeg_check, "decode", refuse)
    said = r"decodes no JPEG on cpu \(decode_jpegs_cuda: .* nvJPEG support\); set INPUT.DECODE"
    with pytest.raises(ValueError, match=said):
        load()


def test_test_time_methods_refuse_it(make_config):
    cfg = make_config("TPT/ttt", "INPUT.DECODE", "cuda", dataset="shapes_v2")
    with pytest.raises(ValueError, match=r"INPUT.DECODE is cuda, .* TPT learns from views of test"):
        build_trainer(cfg)


def test_train_py_says_it_too(tmp_path, shapes_root, monkeypatch):
    monkeypatch.setattr("dassl.utils.setup_logger", lambda _: None)  # it would keep sys.stdout
    words = ["--root", shapes_root, "--output-dir", tmp_path / "run", "--device", "cpu"]
    words += ["--dataset-config-file", REPOSITORY / "configs/datasets/shapes.yaml"]
    words += ["--config-file", REPOSITORY / "configs/trainers/LightRA/base2novel.yaml"]
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in [*words, "INPUT.DECODE", "cuda"]])
    assert str(stop.value).startswith("error: INPUT.DECODE is cuda, but the run has no CUDA GPU")


def test_what_a_gpu_can_do_is_not_refused(load, on_device):
    for names in (("random_resized_crop",), ("normalize", "random_flip", "random_resized_crop")):
        for fast in (False, True):
            assert load(INPUT__TRANSFORMS=names, INPUT__FAST_RESIZE=fast).dataset is not None
