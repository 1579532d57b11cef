import pytest
import torch
from torch import nn

import clip
from clip import Adapter, adapters_disabled, attach_residual_attention, load_adapters


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.host = nn.Linear(2, 2)
        self.one, self.two = Adapter(), Adapter()
        self.one.weight = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(2, 1)


def test_disabled_is_reentrant_and_restores_each_switch():
    model = Model()
    model.two.enabled = False
    with adapters_disabled(model):
        assert not model.one.enabled
        with adapters_disabled(model):
            assert not model.one.enabled
        assert not model.one.enabled
    assert (model.one.enabled, model.two.enabled) == (True, False)


def test_disabled_survives_exceptions_and_leaves_gradients_alone():
    model = Model()
    before = [p.requires_grad for p in model.parameters()]

    def fail():
        with adapters_disabled(model):
            assert [p.requires_grad for p in model.parameters()] == before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert model.one.enabled


def test_freezing_follows_structure():
    model = Model()
    clip.freeze_except(model, heads=[model.head])
    training = {n for n, p in model.named_parameters() if p.requires_grad}
    assert training == {"one.weight", "head.weight", "head.bias"}


def test_save_and_load_is_exact(tiny_backbone):
    attach_residual_attention(tiny_backbone)
    state = {n: torch.randn_like(p) for n, p in clip.adapter_parameters(tiny_backbone).items()}
    load_adapters(tiny_backbone, state)
    assert all(torch.equal(p, state[n]) for n, p in clip.adapter_parameters(tiny_backbone).items())


def test_load_refuses_other_names_and_shapes_and_changes_nothing(tiny_backbone):
    attach_residual_attention(tiny_backbone)
    state = {n: torch.ones_like(p) for n, p in clip.adapter_parameters(tiny_backbone).items()}
    first = next(iter(state))
    before = {n: p.clone() for n, p in clip.adapter_parameters(tiny_backbone).items()}
    with pytest.raises(ValueError, match="missing"):
        load_adapters(tiny_backbone, {n: t for n, t in state.items() if n != first})
    with pytest.raises(ValueError, match="unknown"):
        load_adapters(tiny_backbone, {**state, "other": torch.zeros(1)})
    last = list(state)[-1]
    with pytest.raises(ValueError, match="shape"):
        load_adapters(tiny_backbone, {**state, last: torch.zeros(1)})
    assert all(torch.equal(p, before[n]) for n, p in clip.adapter_parameters(tiny_backbone).items())
