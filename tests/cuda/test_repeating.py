"""The same bits again on the same card: with TRAIN.DETERMINISTIC, also of resumed runs."""

from pathlib import Path

import pytest
import torch

from dassl.engine import build_trainer
from tests.runs import SMALL, in_precision

pytestmark = pytest.mark.cuda

METHODS = ["LightRA", "RAda", "CoOp", "MaPLe", "PromptSRC", "RAdaAdapter", "FT"]
EXACT = (*SMALL, "TRAIN.DETERMINISTIC", "True", "OPTIM.MAX_EPOCH", "3")


@pytest.fixture(autouse=True)
def own_switches(monkeypatch):
    """What TRAIN.DETERMINISTIC sets in the process ends with the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # and is set back afterwards
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


def saved(trainer):
    (path,) = Path(trainer.output_dir).glob("*/model.pth.tar-3")
    return torch.load(path, weights_only=True)["state_dict"]


def check_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("precision", ["fp32", "amp"])
@pytest.mark.parametrize("name", METHODS)
def test_two_runs_are_equal(name, precision, runs):
    states = []
    for _ in range(2):
        options = (*EXACT, *in_precision(name, precision))
        trainer = build_trainer(runs.of_method(name, *options, first=SMALL))
        trainer.train()
        states.append(saved(trainer))
    check_same_bits(*states)


@pytest.mark.parametrize("precision", ["fp32", "amp"])
@pytest.mark.parametrize("name", ["LightRA", "RAda"])
def test_a_resumed_run_is_the_uninterrupted_one(name, precision, runs, monkeypatch):
    options = (*EXACT, *in_precision(name, precision))
    # The same config in two folders, one of which is left in the middle of its second epoch.
    whole = build_trainer(runs.of_method(name, *options))
    whole.train()

    cfg = runs.of_method(name, *options)
    first = build_trainer(cfg)
    forward = first.forward_loss

    def interrupted(image, label):
        if (first.epoch, first.batch_idx) == (1, 2):
            raise KeyboardInterrupt
        return forward(image, label)

    monkeypatch.setattr(first, "forward_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = build_trainer(cfg)
    second.train()
    assert second.start_epoch == 1
    check_same_bits(saved(second), saved(whole))
