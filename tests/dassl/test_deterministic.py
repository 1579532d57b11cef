"""TRAIN.DETERMINISTIC: what it sets in the process; tests/cuda shows what that does on a GPU."""

import os

import pytest
import torch

from dassl.config import config_hash
from dassl.engine import build_trainer

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def own_switches(monkeypatch):
    """Tests begin with PyTorch's defaults, and end with what was there before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(False)
    monkeypatch.setenv(VARIABLE, "x")  # so that it is set back, also where it was not there
    monkeypatch.delenv(VARIABLE)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_nothing_is_set_unless_asked_for(make_cfg):
    torch.backends.cudnn.benchmark = True
    build_trainer(make_cfg())
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert VARIABLE not in os.environ


def test_what_the_user_has_set_stays(make_cfg, monkeypatch):
    torch.use_deterministic_algorithms(True)
    build_trainer(make_cfg())
    assert torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(VARIABLE, ":16:8")
    build_trainer(make_cfg(TRAIN__DETERMINISTIC=True))
    assert os.environ[VARIABLE] == ":16:8"


def test_operations_without_a_deterministic_form_are_refused(make_cfg):
    torch.backends.cudnn.benchmark = True
    build_trainer(make_cfg(TRAIN__DETERMINISTIC=True)).train()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ[VARIABLE] == ":4096:8", "what cuBLAS needs for it"


def test_it_is_no_other_run(make_cfg):
    """Like the device, it may change the last bits."""
    assert config_hash(make_cfg()) == config_hash(make_cfg(TRAIN__DETERMINISTIC=True))
