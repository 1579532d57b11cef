"""Schedules by their golden values, optimisers by what they hold."""

import copy
import math

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine.checkpoint import plain_state
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl.optim.optimizer import has_fused_kernel
from dassl.optim.radam import AdamW, PlainRAdam, RAdam


def optim_cfg(**changes):
    cfg = get_cfg_default().OPTIM
    for key, value in changes.items():
        assert key in cfg
        cfg[key] = value
    return cfg


def rates(epochs, lr=2e-3, steps_per_epoch=None, **changes):
    """Return the learning rate in epochs 1, 2, ..."""
    cfg = optim_cfg(NAME="sgd", LR=lr, **changes)
    optim = build_optimizer(nn.Linear(1, 1), cfg)
    sched = build_lr_scheduler(optim, cfg, steps_per_epoch)
    result = []
    for _ in range(epochs):
        result.append(optim.param_groups[0]["lr"])
        optim.step()
        sched.step()
    return result


WARM = {"LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"}


def test_cosine_with_one_constant_warmup_epoch():
    """Golden values of a user's log in CoOp's issue 26 (E = 50, lr 2e-3)."""
    got = rates(50, MAX_EPOCH=50, **WARM)
    assert got[:4] == pytest.approx([1e-5, 2e-3, 1.99803e-3, 1.99211e-3], abs=5e-9)
    assert got[0] == 1e-5
    assert got[-1] == pytest.approx(7.9e-6, rel=5e-3)
    for epoch in range(2, 51):
        exact = 1e-3 * (1 + math.cos(math.pi * (epoch - 2) / 50))
        assert got[epoch - 1] == pytest.approx(exact)
    assert rates(10, MAX_EPOCH=10, **WARM)[-1] == pytest.approx(1.9e-4, rel=0.01)
    # authors' logs of a 5-epoch run
    assert rates(5, lr=1.0, MAX_EPOCH=5, **WARM)[1:] == pytest.approx(
        [1, 0.905, 0.655, 0.345], abs=6e-4
    )


def test_cosine_without_warmup():
    got = rates(4, lr=1.0, MAX_EPOCH=4, LR_SCHEDULER="cosine")
    assert got == pytest.approx([1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5)])


def test_linear_warmup():
    got = rates(6, lr=1.0, MAX_EPOCH=10, LR_SCHEDULER="cosine", WARMUP_EPOCH=3)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(3)]
    assert got == pytest.approx([1e-5, 1 / 3, 2 / 3, *cosine])


def test_steps():
    assert rates(5, lr=1.0, MAX_EPOCH=2) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert rates(5, lr=1.0, STEPSIZE=(3,)) == pytest.approx([1, 1, 1, 0.1, 0.1])
    milestones = {"LR_SCHEDULER": "multi_step", "STEPSIZE": (1, 3), "GAMMA": 0.5}
    assert rates(5, lr=1.0, **milestones) == pytest.approx([1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("name", ["cosine", "multi_step", "single_step"])
def test_without_recount_equals_torchs_recursive_schedulers(name):
    """Dassl moves the wrapped scheduler's counter to the end of the warm-up; torch recurses."""
    changes = {"MAX_EPOCH": 8, "LR_SCHEDULER": name, "STEPSIZE": (1, 4), "GAMMA": 0.5}
    got = rates(8, lr=1.0, WARMUP_EPOCH=2, WARMUP_RECOUNT=False, WARMUP_TYPE="constant", **changes)
    optim = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    inner = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optim, 8),
        "multi_step": lambda: torch.optim.lr_scheduler.MultiStepLR(optim, [1, 4], 0.5),
        "single_step": lambda: torch.optim.lr_scheduler.StepLR(optim, 4, 0.5),
    }[name]()
    inner.last_epoch = 2
    expected = [1e-5, 1e-5]
    for _ in range(6):
        expected.append(optim.param_groups[0]["lr"])
        optim.step()
        inner.step()
    assert got == pytest.approx(expected)


def test_state_is_plain_and_resumes_exactly():
    cfg = optim_cfg(NAME="sgd", LR=2e-3, MAX_EPOCH=9, **WARM)

    def make():
        optim = build_optimizer(nn.Linear(1, 1), cfg)
        return optim, build_lr_scheduler(optim, cfg)

    optim, sched = make()
    for _ in range(4):
        optim.step()
        sched.step()
    state = copy.deepcopy(sched.state_dict())
    assert state == {"last_epoch": 4, "base_lrs": [2e-3]}
    other_optim, other = make()
    other.load_state_dict(state)
    for _ in range(4):
        assert other_optim.param_groups[0]["lr"] == optim.param_groups[0]["lr"]
        assert other.get_last_lr() == sched.get_last_lr()
        for one, two in ((optim, sched), (other_optim, other)):
            one.step()
            two.step()
    with pytest.raises(ValueError, match="2 parameter groups"):
        other.load_state_dict({"last_epoch": 1, "base_lrs": [1.0, 2.0]})


def test_every_group_keeps_its_own_base_rate():
    cfg = optim_cfg(NAME="sgd", LR=1.0, MAX_EPOCH=4, **WARM)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optim = build_optimizer([{"params": parameters[:1]}, {"params": parameters[1], "lr": 6.5}], cfg)
    sched = build_lr_scheduler(optim, cfg)
    assert [group["lr"] for group in optim.param_groups] == [1e-5, 1e-5]
    optim.step()
    sched.step()
    assert [group["lr"] for group in optim.param_groups] == [1.0, 6.5]


def test_scheduler_errors():
    with pytest.raises(ValueError, match=r"'cosin' is not available.*Did you mean 'cosine'"):
        rates(1, LR_SCHEDULER="cosin")
    with pytest.raises(ValueError, match="constant"):
        rates(1, LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="slow")
    with pytest.raises(ValueError, match="steps per epoch"):
        rates(1, LR_SCHEDULER="cosine_step")
    with pytest.raises(ValueError, match="MAX_EPOCH"):
        rates(1, LR_SCHEDULER="cosine", MAX_EPOCH=0)


def test_cosine_step_reaches_zero_at_the_last_step():
    got = rates(
        21, lr=1.0, steps_per_epoch=10, MAX_EPOCH=2, LR_SCHEDULER="cosine_step", WARMUP_STEP=4
    )
    assert got[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert got[20] == pytest.approx(0.0, abs=1e-12)
    assert got[12] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "dampening": 0}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("radam", RAdam, {"betas": (0.9, 0.999), "decoupled_weight_decay": True}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.99}),
    ],
)
def test_optimizers(name, kind, expected):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    for trainable_only, kept in ((False, model), (True, model[1])):
        for source in (model, model.parameters(), [{"params": model.parameters()}]):
            cfg = optim_cfg(NAME=name, LR=0.5)
            optim = build_optimizer(source, cfg, trainable_only=trainable_only)
            (group,) = optim.param_groups
            assert [id(p) for p in group["params"]] == [id(p) for p in kept.parameters()]
        assert type(optim) is kind
        assert (group["lr"], group["weight_decay"]) == (0.5, 5e-4)
        assert {key: group[key] for key in expected} == expected


class On:
    """All that is asked of a parameter on a device."""

    def __init__(self, device, floating=True):
        self.device = torch.device(device)
        self.is_floating_point = lambda: floating


@pytest.mark.parametrize(
    ("name", "params", "fused"),
    [
        ("sgd", [On("cuda"), On("cuda:1")], True),
        ("sgd", [On("cpu")], False),
        ("sgd", [On("cuda"), On("cpu")], False),
        ("adam", [On("cuda")], True),
        ("adamw", [On("cpu")], True),
        ("amsgrad", [On("mps")], False),
        ("sgd", [On("cuda", floating=False)], False),
    ],
)
def test_which_parameters_one_kernel_updates(name, params, fused):
    assert has_fused_kernel(name, params) is fused


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adamw"])
@pytest.mark.parametrize("fused", [True, False])
def test_every_optimiser_with_such_a_kernel_is_told(monkeypatch, name, fused):
    asked = []
    monkeypatch.setattr(
        "dassl.optim.optimizer.has_fused_kernel", lambda *args: asked.append(args) or fused
    )
    model = nn.Linear(2, 2)
    optim = build_optimizer(model, optim_cfg(NAME=name))
    assert [id(p) for p in asked[0][1]] == [id(p) for p in model.parameters()]
    assert optim.param_groups[0]["fused"] is fused
    # What lets a gradient scaler leave the look at infinite gradients to the step.
    assert getattr(optim, "_step_supports_amp_scaling", False) is fused


def two_layers(monkeypatch, fused, **changes):
    """Two parameters, and SGD with one kernel for both or without."""
    monkeypatch.setattr("dassl.optim.optimizer.has_fused_kernel", lambda *args: fused)
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    return params, build_optimizer(params, optim_cfg(NAME="sgd", LR=0.1, **changes))


def uninitialised(tensor, **_):
    return torch.full_like(tensor, torch.nan)


@pytest.mark.parametrize("changes", [{}, {"SGD_NESTEROV": True}, {"MOMENTUM": 0.0}])
def test_a_skipped_first_step_leaves_no_uninitialised_momentum(monkeypatch, changes):
    found = []
    monkeypatch.setattr(torch, "empty_like", uninitialised)
    for fused in (True, False):
        params, optim = two_layers(monkeypatch, fused, **changes)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for slope in (torch.inf, 1.0, -2.0):
            optim.zero_grad()
            scaler.scale(sum((slope * p.square()).sum() for p in params)).backward()
            scaler.step(optim)
            scaler.update()
        assert scaler.get_scale() == 2.0
        found.append(params)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one[0] != 1


def test_a_parameter_may_get_its_first_gradient_later(monkeypatch):
    found = []
    for fused in (True, False):
        params, optim = two_layers(monkeypatch, fused)
        for used in (params[:1], params, params[1:]):
            optim.zero_grad()
            sum(p.square().sum() for p in used).backward()
            optim.step()
        found.append(params)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_dampened_momentum_is_not_fused(monkeypatch):
    _, optim = two_layers(monkeypatch, True, SGD_DAMPNING=0.5)
    assert optim.param_groups[0]["fused"] is False


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "radam"])
def test_a_state_from_another_device_leaves_the_kernels_alone(monkeypatch, name):
    def stepped(fused):
        monkeypatch.setattr("dassl.optim.optimizer.has_fused_kernel", lambda *args: fused)
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        optim = build_optimizer(model, optim_cfg(NAME=name, LR=0.1))
        model(torch.ones(1, 2)).sum().backward()
        optim.step()
        return optim

    saved, optim = stepped(False), stepped(True)
    before = optim.param_groups[0].get("fused")
    optim.load_state_dict(plain_state({**saved.state_dict()}))
    assert optim.param_groups[0].get("fused") is before
    assert optim.param_groups[0]["lr"] == 0.1
    for own, other in zip(*(o.param_groups[0]["params"] for o in (optim, saved)), strict=True):
        for key, value in saved.state[other].items():
            torch.testing.assert_close(optim.state[own][key], value)
    optim.step()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optim.load_state_dict({"state": {}, "param_groups": []})


def test_optimizer_errors():
    with pytest.raises(ValueError, match=r"'adamW' is not available.*Did you mean 'adamw'"):
        build_optimizer(nn.Linear(1, 1), optim_cfg(NAME="adamW"))
    frozen = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to optimise: no parameter requires a gradient"):
        build_optimizer(frozen, optim_cfg(), trainable_only=True)
    with pytest.raises(ValueError, match="nothing to optimise"):
        build_optimizer([], optim_cfg())


def test_staged_lr():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    cfg = optim_cfg(STAGED_LR=True, NEW_LAYERS=("head",), LR=1.0, BASE_LR_MULT=0.1)
    base, new = build_optimizer(model, cfg).param_groups
    assert (base["lr"], new["lr"]) == (0.1, 1.0)
    assert {id(p) for p in new["params"]} == {id(p) for p in model["head"].parameters()}
    cfg.NEW_LAYERS = ("heda",)
    with pytest.raises(ValueError, match="Did you mean 'head'"):
        build_optimizer(model, cfg)
    with pytest.raises(TypeError, match="needs a module"):
        build_optimizer(list(model.parameters()), cfg)


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adamw", "radam", "rmsprop"])
def test_frozen_parameters_are_in_the_optimiser_and_stay_as_they_are(name):
    """The indices of the state are Dassl's; what trains is changed as if nothing else was there."""

    def steps(trainable_only):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        cfg = optim_cfg(NAME=name, LR=0.1, WEIGHT_DECAY=0.1)
        optim = build_optimizer(model, cfg, trainable_only=trainable_only)
        for _ in range(7):
            optim.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optim.step()
        return model.state_dict(), optim.state_dict()

    (all_weights, every), (weights, trained) = steps(False), steps(True)
    assert all(torch.equal(all_weights[key], weights[key]) for key in weights)
    assert every["param_groups"][0]["params"] == [0, 1, 2, 3]
    assert list(every["state"]) == [2, 3]
    assert list(trained["state"]) == [0, 1]


def test_parameters_thawed_after_the_optimiser_was_built_train():
    model = nn.Linear(2, 1).requires_grad_(False)
    optim = build_optimizer(model, optim_cfg(NAME="sgd", LR=1.0, WEIGHT_DECAY=0.0))
    model.requires_grad_(True)
    before = model.bias.item()
    model(torch.ones(1, 2)).sum().backward()
    optim.step()
    assert model.bias.item() == pytest.approx(before - 1)


def test_staged_groups_may_be_empty_or_frozen():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "act": nn.ReLU(), "head": nn.Linear(2, 2)})
    model["body"].requires_grad_(False)
    cfg = optim_cfg(STAGED_LR=True, NEW_LAYERS=("head",), LR=1.0, BASE_LR_MULT=0.1)
    optim = build_optimizer(model, cfg)
    assert [(g["lr"], len(g["params"])) for g in optim.param_groups] == [(0.1, 2), (1.0, 2)]
    cfg.NEW_LAYERS = ("act",)
    optim = build_optimizer(model, cfg)
    assert [(g["lr"], len(g["params"])) for g in optim.param_groups] == [(0.1, 4), (1.0, 0)]
    optim = build_optimizer(model, cfg, trainable_only=True)
    assert [(g["lr"], len(g["params"])) for g in optim.param_groups] == [(0.1, 2)]


def radam_by_hand(weight, grads, lr, betas, decay, degenerated_to_sgd):
    """The authors' algorithm, with numbers."""
    first = second = 0.0
    longest = 2 / (1 - betas[1]) - 1
    for step, grad in enumerate(grads, start=1):
        first = betas[0] * first + (1 - betas[0]) * grad
        second = betas[1] * second + (1 - betas[1]) * grad**2
        power = betas[1] ** step
        length = longest - 2 * step * power / (1 - power)
        momentum = first / (1 - betas[0] ** step)
        if length > 5:
            share = (length - 4) * (length - 2) * longest
            share /= (longest - 4) * (longest - 2) * length
            weight -= decay * lr * weight
            weight -= lr * momentum * math.sqrt(share * (1 - power) / second)
        elif degenerated_to_sgd:
            weight -= decay * lr * weight
            weight -= lr * momentum
    return weight


@pytest.mark.parametrize("degenerated_to_sgd", [True, False])
@pytest.mark.parametrize("kind", [RAdam, PlainRAdam])
@pytest.mark.parametrize("steps", [3, 5, 12])
def test_radam(kind, degenerated_to_sgd, steps):
    grads = [0.5, -1.0, 2.0, 0.1] * 3
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optim = kind([weight], 0.1, weight_decay=0.2, degenerated_to_sgd=degenerated_to_sgd)
    for grad in grads[:steps]:
        weight.grad = torch.tensor([grad], dtype=torch.float64)
        optim.step()
    expected = radam_by_hand(2.0, grads[:steps], 0.1, (0.9, 0.999), 0.2, degenerated_to_sgd)
    assert weight.item() == pytest.approx(expected, rel=1e-6)
    assert optim.param_groups[0]["lr"] == 0.1
    if steps == 3 and not degenerated_to_sgd:
        assert weight.item() == 2.0


def test_adamw_with_warmup():
    def weights(make, rates=None):
        weight = nn.Parameter(torch.tensor([2.0]))
        optim = make([weight])
        for number in range(5):
            if rates:
                optim.param_groups[0]["lr"] = rates[number]
            weight.grad = torch.tensor([0.5])
            optim.step()
        return weight.item()

    rates = [1e-8 + 0.1 * step / 4 for step in (1, 2, 3)] + [0.1, 0.1]
    expected = weights(lambda p: torch.optim.AdamW(p, weight_decay=0.3), rates)
    assert weights(lambda p: AdamW(p, 0.1, weight_decay=0.3, warmup=4)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_chained_warmup_equals_the_closed_form(kind):
    """And resumes exactly from plain data."""

    def chain():
        optim = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.4)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 10)
        if kind == "constant":
            return optim, ConstantWarmupScheduler(optim, cosine, 3, 1e-3)
        return optim, LinearWarmupScheduler(optim, cosine, 3, 1e-3)

    optim, sched = chain()
    seen = []
    for _ in range(9):
        seen.append(optim.param_groups[0]["lr"])
        assert sched.get_last_lr() == [seen[-1]]
        optim.step()
        sched.step()
    expected = rates(
        9,
        lr=0.4,
        MAX_EPOCH=10,
        LR_SCHEDULER="cosine",
        WARMUP_EPOCH=3,
        WARMUP_TYPE=kind,
        WARMUP_CONS_LR=1e-3,
        WARMUP_MIN_LR=1e-3,
    )
    assert seen == pytest.approx(expected)
    for stop in (2, 5):
        optim, sched = chain()
        for _ in range(stop):
            optim.step()
            sched.step()
        saved = plain_state(sched.state_dict())
        optim, sched = chain()
        sched.load_state_dict(saved)
        rest = []
        for _ in range(9 - stop):
            rest.append(optim.param_groups[0]["lr"])
            optim.step()
            sched.step()
        assert rest == pytest.approx(expected[stop:])
