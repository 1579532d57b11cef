"""CUDA graphs, with a stand-in that records and replays on the CPU."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import StepOutput, graphs
from dassl.engine.graphs import GraphedStep, Replayed, why_eager
from dassl.engine.record import Notes


class Recording:
    """Runs the function again on the tensors that it had when it was recorded."""

    device_type = "cpu"
    replays = 0

    def capture(self, function):
        self.function, self.results = function, function()
        for result in self.results:
            if result is not None:
                result.fill_(torch.nan)  # a recording computes nothing
        return self.results

    def replay(self):
        Recording.replays += 1
        for result, new in zip(self.results, self.function(), strict=True):
            if result is not None:
                result.copy_(new)


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(graphs, "CUDAGraph", Recording)
    monkeypatch.setattr(Recording, "replays", 0)
    return Recording


class Unrecordable(Recording):
    def capture(self, function):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


class Toy:
    """A layer that trains, one that does not, and one that is not used."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = nn.ModuleDict({name: nn.Linear(5, 3) for name in ("used", "fixed", "idle")})
        self.model["fixed"].requires_grad_(False)
        self.calls = 0

    def forward_loss(self, image, label) -> StepOutput:
        self.calls += 1
        logits = self.model["used"](image) + self.model["fixed"](image)
        ce = F.cross_entropy(logits, label)
        return StepOutput(ce + logits.square().mean(), logits, {"ce": ce})

    def gradients(self, loss) -> list[torch.Tensor | None]:
        self.model.zero_grad()
        loss.backward()
        return [p.grad for p in self.model.parameters()]


def test_a_step_that_is_replayed_equals_one_that_is_not(recording):
    toy, plain = Toy(), Toy()
    step = GraphedStep(toy.model, toy.forward_loss, Notes())
    outcomes = []
    for weight, (image, label) in zip((1, 1, 0.3, 1), batches(4, 4, 4, 2), strict=True):
        out, expected = step(image, label), plain.forward_loss(image, label)
        assert torch.equal(out.loss, expected.loss)
        assert torch.equal(out.logits, expected.logits)
        assert out.parts.keys() == {"ce"}
        assert torch.equal(out.parts["ce"], expected.parts["ce"])
        found, true = toy.gradients(out.loss * weight), plain.gradients(expected.loss * weight)
        assert [g is None for g in found] == [False] * 2 + [True] * 4
        # The factor comes behind the backward pass here, before it there.
        for ours, theirs in zip(found[:2], true[:2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6 if weight != 1 else 0, atol=0)
        outcomes.append((out, expected))
    for out, expected in outcomes:  # a later step changes nothing of an earlier one's
        assert torch.equal(out.loss, expected.loss)
        assert torch.equal(out.logits, expected.logits)
    assert recording.replays == 3, "all but the short batch"


def test_inputs_of_another_type_are_not_replayed(recording):
    double = Replayed(lambda x: [2 * x], Notes())
    assert double.takes(torch.ones(3))
    assert not double.takes(torch.ones(4))
    assert not double.takes(torch.ones(3, dtype=torch.float64))
    (result,) = double(torch.full((3,), 4.0))
    assert result.tolist() == [8.0] * 3


def test_what_cannot_be_recorded_runs_as_always_and_is_reported_once(monkeypatch):
    monkeypatch.setattr(graphs, "CUDAGraph", Unrecordable)
    toy, notes = Toy(), Notes()
    step = GraphedStep(toy.model, toy.forward_loss, notes)
    for image, label in batches(4, 4):
        assert torch.equal(step(image, label).loss, toy.forward_loss(image, label).loss)
    assert notes == [
        "TRAIN.CUDA_GRAPHS: not recorded: operation not permitted when stream is capturing"
    ]
    with pytest.raises(RuntimeError, match="takes"):
        step.passes(*batches(4)[0])


def test_a_step_fits_as_long_as_the_same_parameters_train(recording):
    toy = Toy()
    step = GraphedStep(toy.model, toy.forward_loss, Notes())
    assert step.fits(toy.model)
    toy.model["fixed"].requires_grad_()
    assert not step.fits(toy.model)


@pytest.mark.parametrize(
    ("changes", "processes", "said"),
    [
        ({}, 1, ""),
        ({"precision": "fp16"}, 1, ""),
        ({"static_step": False}, 1, "steps of SimpleNamespace differ"),
        ({"precision": "amp"}, 1, "in amp, PyTorch casts weights"),
        ({"precision": "bf16"}, 1, "set PREC fp32"),
        ({}, 2, "several processes"),
    ],
)
def test_why_steps_are_no_graphs(changes, processes, said, monkeypatch):
    monkeypatch.setattr(graphs, "world_size", lambda: processes)
    trainer = SimpleNamespace(**{"static_step": True, "precision": "fp32", **changes})
    assert said in why_eager(trainer)
    assert bool(said) == bool(why_eager(trainer))


def test_other_devices_have_no_graphs(capsys):
    notes = Notes()
    assert graphs.has_graphs(torch.device("cuda", 1), notes)
    assert not notes
    assert not graphs.has_graphs(torch.device("cpu"), notes)
    assert "no CUDA graphs on cpu" in capsys.readouterr().out
