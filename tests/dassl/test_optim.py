"""Schedules by their golden values, optimisers by what they hold."""

import copy
import math

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer


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
        ("radam", torch.optim.RAdam, {"betas": (0.9, 0.999)}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9, "alpha": 0.99}),
    ],
)
def test_optimizers(name, kind, expected):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    for source in (model, model.parameters(), [{"params": model.parameters()}]):
        optim = build_optimizer(source, optim_cfg(NAME=name, LR=0.5))
        assert type(optim) is kind
        (group,) = optim.param_groups
        assert {id(p) for p in group["params"]} == {id(p) for p in model[1].parameters()}
        assert (group["lr"], group["weight_decay"]) == (0.5, 5e-4)
        assert {key: group[key] for key in expected} == expected


def test_optimizer_errors():
    with pytest.raises(ValueError, match=r"'adamW' is not available.*Did you mean 'adamw'"):
        build_optimizer(nn.Linear(1, 1), optim_cfg(NAME="adamW"))
    with pytest.raises(ValueError, match="nothing to optimise"):
        build_optimizer(nn.Linear(1, 1).requires_grad_(False), optim_cfg())
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
