"""What only a GPU can show. Where there is none, these tests are skipped.

``CUDA_TESTS_DEVICE=cpu pytest tests/cuda`` runs their logic on the CPU: it shows that the tests
themselves are whole, and nothing about GPUs.
"""

import os

import pytest
import torch

from tests.runs import SmallRuns

DEVICE = torch.device(os.environ.get("CUDA_TESTS_DEVICE", "cuda"))


def pytest_collection_modifyitems(items):
    # Marked rather than skipped by a fixture, so that nothing of a skipped test is prepared.
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="PyTorch sees no CUDA GPU")
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return DEVICE


@pytest.fixture(autouse=True)
def single_precision():
    """Products in single precision are exact to it: no TF32, whose error hides others."""
    # PyTorch rounds convolutions to TF32 unless it is told not to.
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(scope="session")
def runs(device, shapes_root, tmp_path_factory) -> SmallRuns:
    """Small runs on the device; its ``shapes_root`` has five test pictures of a class."""
    return SmallRuns(shapes_root, lambda: tmp_path_factory.mktemp("run"), str(device))
