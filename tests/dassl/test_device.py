"""How a GPU is prepared: what is rounded in products of single precision."""

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.engine import device


@pytest.fixture
def switches():
    """Puts PyTorch's switches back behind a test."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.usefixtures("switches")
def test_tf32_is_the_configs_choice_on_a_gpu(monkeypatch, allowed):
    torch.set_float32_matmul_precision("highest" if allowed else "high")
    torch.backends.cudnn.allow_tf32 = not allowed
    monkeypatch.setattr(device, "resolve_device", lambda cfg: torch.device("cuda:1"))
    cfg = get_cfg_default()
    assert cfg.TRAIN.TF32 is False
    cfg.TRAIN.TF32 = allowed
    assert device.prepare_device(cfg) == torch.device("cuda:1")
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.usefixtures("switches")
def test_a_cpu_is_left_alone():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    cfg = get_cfg_default()
    cfg.DEVICE, cfg.TRAIN.TF32 = "cpu", True
    assert device.prepare_device(cfg) == torch.device("cpu")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
