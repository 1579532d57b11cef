"""How much of a card's memory a step takes, and how a run ends that needs more."""

from contextlib import suppress

import pytest
import torch

import clip
from dassl.engine import build_trainer
from dassl.errors import TRAINING_MEMORY, plain_errors
from scripts.benchmarks import cases
from scripts.benchmarks.tools import RANDOM_VIT, backbone_name, peak_mib, reset_peak
from tests.runs import SMALL

pytestmark = pytest.mark.cuda

ALLOWED = 8e9  # bytes, with 1000 classes


def test_a_thousand_classes_fit_into_8_gb(device, tmp_path, tiny_checkpoint):
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if free < 1.2 * ALLOWED:
            pytest.skip(f"needs {1.2 * ALLOWED / 1e9:.1f} GB, {free / 1e9:.1f} are free")
    # The logic alone needs no large model.
    classes = 1000 if device.type == "cuda" else 3
    backbone = backbone_name(RANDOM_VIT, tmp_path) if device.type == "cuda" else tiny_checkpoint
    case = cases.Case("LightRA", classes, 4, "LightRA", cases.lightra.LightRA, precision="amp")
    cases.write_inputs(tmp_path, classes, case.batch)
    trainer = cases.build(case, tmp_path, backbone, str(device))
    assert len(trainer.model.bank) == classes
    assert trainer.model.backbone.image_size == clip.input_spec(backbone).size
    step = cases.our_step(case, trainer, cases.batch_of(case, trainer))
    reset_peak(trainer.device)
    for _ in range(3):
        step()
    peak = peak_mib(trainer.device)
    assert peak > 0
    if device.type == "cuda":
        assert peak * 2**20 <= ALLOWED


def test_a_full_card_ends_a_run_with_one_line(runs, device):
    if device.type != "cuda":
        pytest.skip("only CUDA's allocator can be limited; tests/dassl/test_memory.py has fakes")
    trainer = build_trainer(runs.of_method("LightRA", *SMALL))
    # No more than what is taken now, and that to the last byte: the first step finds no room.
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(device) / total)
    hoard = []
    for size in (2**20, 2**12):
        with suppress(torch.OutOfMemoryError):
            while True:
                hoard.append(torch.empty(size, dtype=torch.uint8, device=device))
    try:
        with pytest.raises(SystemExit) as end, plain_errors():
            trainer.train()
    finally:
        hoard.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    said = str(end.value.code)
    assert said.startswith("error: CUDA out of memory. Tried to allocate")
    assert "free" in said
    assert said.endswith(TRAINING_MEMORY)
    assert "\n" not in said
