"""A training step and a test batch do not wait for the GPU."""

import pytest
import torch
from torch.nn import functional as F

from dassl.engine.progress import EpochProgress
from tests.waits import Waits

METHODS = [
    *("LightRA", "MaPLe", "CoOp", "CoCoOp", "RAda", "PromptSRC", "KgCoOp", "ProGrad", "MMA"),
    *("VPT", "IVLP", "DePT", "HPT", "ProVP", "CLIPAdapter", "RAdaPrompt", "RAdaAdapter"),
    "LightRAda",
]
OPTIONS = ("TRAIN.PRINT_FREQ", "2", "DATALOADER.NUM_WORKERS", "0")


def on_the_device(trainer):
    """All tensors that a GPU would hold before the first step."""
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    return tensors + [v for s in trainer._optims.values() for v in s.state.values()]


def steps(trainer, count=4):
    """What waits in some steps of an epoch, behind two that may make things once."""
    batch = next(iter(trainer.train_loader_x))
    trainer.set_model_mode("train")
    trainer.epoch, trainer.num_batches = 0, 100
    with Waits(on_the_device(trainer)) as waits:
        for trainer.batch_idx in range(2):
            trainer.forward_backward(batch)
        trainer.readings.read()
        waits.found.clear()
        progress = EpochProgress(trainer)
        for trainer.batch_idx in range(count):
            progress.loaded()
            progress.trained(trainer.forward_backward(batch))
    return waits.found


@pytest.mark.parametrize("method", METHODS)
def test_steps_wait_once_for_a_line_of_the_log(build, late_reading, method):
    assert steps(build(*OPTIONS, method=method)) == ["tolist", "tolist"]


@pytest.mark.parametrize("method", ["FT", "RAdaFT", "CLIPAdapterFFT"])
def test_so_do_those_of_full_fine_tuning(build_fft, late_reading, method):
    assert steps(build_fft(method, *OPTIONS)) == ["tolist", "tolist"]


@pytest.mark.parametrize("options", [("OPTIM.ACCUMULATE", "2"), ("OPTIM.MAX_GRAD_NORM", "1.0")])
def test_neither_do_parts_of_a_batch_or_clipped_gradients(build, late_reading, options):
    assert steps(build(*OPTIONS, *options, method="CoOp")) == ["tolist", "tolist"]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda out: out.item(), "aten._local_scalar_dense.default"),
        (lambda out: out if out > 0 else -out, "aten._local_scalar_dense.default"),
        (lambda out: out.detach().cpu(), "cpu"),
        (lambda out: out[None][out[None] > 0], "aten.index.Tensor by torch.bool"),
        (lambda out: out[None][torch.zeros(1).long()], "aten.index.Tensor by torch.int64"),
        (lambda out: torch.tensor(1.0, device=out.device), "tensor on the device"),
        (lambda out: torch.zeros(3).to(out.device), "to, without non_blocking"),
    ],
)
def test_a_waiting_loss_is_found(build, late_reading, monkeypatch, spoil, expected):
    trainer = build(*OPTIONS, method="RAda")
    original = trainer.forward_loss

    def waiting(image, label):
        out = original(image, label)
        spoil(out.loss)
        return out

    monkeypatch.setattr(trainer, "forward_loss", waiting)
    assert steps(trainer, 2) == [expected, expected, "tolist"]


def test_without_late_reading_every_step_waits(build):
    assert len(steps(build(*OPTIONS, method="RAda"))) >= 4


def test_a_test_waits_for_its_result_alone(build, late_reading):
    trainer = build(*OPTIONS, "DATALOADER.TEST.BATCH_SIZE", "7", method="CoOp")
    trainer.test_loader = list(trainer.test_loader)  # reading images is the host's own affair
    assert len(trainer.test_loader) > 3
    with Waits(on_the_device(trainer)) as waits:
        trainer.test()
    assert waits.found == ["tolist"]


def test_the_stand_in_knows_the_hosts_tensors_from_the_devices():
    weight, index = torch.randn(4, 2), torch.tensor([0, 2])
    with Waits([weight]) as waits:
        assert index.tolist() == [0, 2]  # of the host
        rows = weight.index_select(0, index.to(weight.device, non_blocking=True))
        index.tolist()
        F.cross_entropy(rows, torch.arange(2, device=rows.device))
        weight[torch.arange(2, device=rows.device)]
        assert not waits.found
        rows.sum().item()
        (rows + 1).tolist()
    assert waits.found == ["aten._local_scalar_dense.default", "tolist"]


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_scaler_waits_unless_the_step_is_fused(build, late_reading, monkeypatch, fused):
    monkeypatch.setattr("dassl.optim.optimizer.has_fused_kernel", lambda *args: fused)
    trainer = build(*OPTIONS, method="ProGrad")
    trainer.scaler = torch.amp.GradScaler("cpu")
    assert (steps(trainer) == ["tolist", "tolist"]) is fused
