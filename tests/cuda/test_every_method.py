"""Every method trains, is evaluated and saved on the GPU, in every precision."""

from pathlib import Path

import pytest
import torch

from dassl.engine import build_trainer, read_result, trainable_state
from dassl.engine.device import PRECISIONS
from tests.cuda.agreement import TOLERANCE, difference
from tests.runs import OURS, SMALL, in_precision, logits_of

pytestmark = pytest.mark.cuda

# Methods that train an encoder refuse weights in half precision.
NEED_SINGLE = {"CLIPAdapterFT", "FLYP", "FT", "L2SP", "LPFT", "RAdaFT", "WiseFT"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", OURS)
def test_trains_and_its_checkpoint_is_read_on_cpu_and_back(name, precision, runs, device, tmp_path):
    options = (*SMALL, *in_precision(name, precision))
    if precision == "fp16" and name in NEED_SINGLE:
        with pytest.raises(ValueError, match=f"PREC is fp16, but {name} trains an encoder"):
            build_trainer(runs.of_method(name, *options, first=SMALL))
        return
    trainer = build_trainer(runs.of_method(name, *options, first=SMALL))
    start = {key: value.clone() for key, value in trainable_state(trainer.model).items()}
    trainer.train()

    state = trainable_state(trainer.model)
    assert state.keys() == start.keys()
    for key, value in state.items():
        assert value.device.type == device.type
        assert value.isfinite().all(), key
    assert not start or any(not torch.equal(value, start[key]) for key, value in state.items())
    result = read_result(trainer.output_dir)
    assert 0 <= result["metrics"]["accuracy"] <= 100
    if device.type == "cuda" and (precision != "bf16" or torch.cuda.is_bf16_supported()):
        assert trainer.precision == precision

    # From the same config, whose precision a CPU may not have.
    on_cpu = build_trainer(runs.of_method(name, *options, first=SMALL, device="cpu"))
    on_cpu.load_model(trainer.output_dir if start else "")
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    expected = logits_of(on_cpu, images)  # (4, 20), in fp32 or bf16
    assert difference(logits_of(trainer, images), expected) <= TOLERANCE[precision]
    if start:
        check_same(trainable_state(on_cpu.model), state)
        on_cpu.save_model(0, tmp_path)
        back = build_trainer(runs.of_method(name, *options, first=SMALL))
        back.load_model(tmp_path, epoch=1)
        check_same(trainable_state(back.model), state)


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key].cpu(), value.cpu()), key


def test_a_checkpoint_names_no_device(runs):
    """It is read where there is no GPU, by plain ``torch.load`` too."""
    trainer = build_trainer(runs.of_method("RAda", *SMALL))
    trainer.train()
    (path,) = Path(trainer.output_dir).glob("*/model.pth.tar-1")
    content = torch.load(path, weights_only=True)
    assert {value.device.type for value in content["state_dict"].values()} == {"cpu"}
