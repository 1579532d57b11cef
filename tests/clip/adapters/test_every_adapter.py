"""What holds for every adapter: off it is CLIP, it alone trains, it is saved and copied exactly."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch

import clip
from clip import (
    adapters_disabled,
    attach_coupled_prompts,
    attach_multimodal_adapters,
    attach_residual_attention,
    attach_text_prompts,
    attach_vision_prompts,
)
from clip.backbones import Backbone
from tests.clip.adapters import test_lightra as residual
from tests.clip.adapters import test_mma as multimodal
from tests.clip.adapters import test_prompts as prompts
from tests.clip.adapters.test_prompts import features, images


@dataclass
class Kind:
    """An adapter: how it is attached, away from where it starts as CLIP, and what it adds.

    Attributes:
        attach: Attaches it, with the same numbers every time.
        attach_anew: Attaches one of the same sizes with other numbers.
        own: Names of its parameters.
        backbone_of: Makes a backbone of three or four blocks.
    """

    attach: Callable[[Backbone], object]
    attach_anew: Callable[[Backbone], object]
    own: set[str]
    backbone_of: Callable[[], Backbone] = prompts.backbone_of


def random_prompts(backbone: Backbone) -> None:
    torch.manual_seed(9)
    attach_text_prompts(backbone, n_ctx=2, depth=3, init="")
    attach_vision_prompts(backbone, n_ctx=2, depth=3)


def coupled(backbone: Backbone, seed: int = 3) -> None:
    torch.manual_seed(seed)
    attach_coupled_prompts(backbone, n_ctx=2, depth=3)


def residuals(backbone: Backbone) -> None:
    torch.manual_seed(3)
    attach_residual_attention(backbone, vision_depth=2, text_depth=2)
    residual.perturb(backbone)  # values are 0 at the start


def parts(modules: Iterable[str], kinds: Iterable[str] = ("weight", "bias")) -> set[str]:
    return {f"{module}.{kind}" for module in modules for kind in kinds}


KINDS = {
    "prompts": Kind(
        attach=prompts.attach_both,
        attach_anew=random_prompts,
        own={"text_prompts.vectors", "vision_prompts.vectors"},
    ),
    "coupled prompts": Kind(
        attach=coupled,
        attach_anew=lambda backbone: coupled(backbone, seed=9),
        own={"text_prompts.vectors"} | parts(f"vision_prompts.maps.{j}" for j in range(3)),
    ),
    "multimodal": Kind(
        attach=multimodal.attach,
        attach_anew=lambda backbone: attach_multimodal_adapters(
            backbone, layers=2, bottleneck=8, scale=0.1
        ),
        own=parts(
            f"multimodal_adapters.{i}.{part}"
            for i in range(2)
            for part in ("down_text", "down_vision", "shared", "up_text", "up_vision")
        ),
        backbone_of=multimodal.backbone_of,
    ),
    "residual": Kind(
        attach=residuals,
        attach_anew=lambda backbone: attach_residual_attention(
            backbone, vision_depth=2, text_depth=2
        ),
        own=parts(
            (
                f"model.{tower}transformer.resblocks.{i}.attn.residual"
                for tower in ("", "visual.")
                for i in (0, 1)
            ),
            ("key", "value"),
        ),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.mark.parametrize("training", [False, True])
def test_disabled_is_plain_clip_exactly(kind, training):
    backbone = kind.backbone_of()
    plain = features(backbone)
    kind.attach(backbone)
    for parameter in clip.adapter_parameters(backbone).values():
        parameter.data.normal_()  # prompts are words no more
    backbone.train(training)
    with adapters_disabled(backbone):
        off = features(backbone)
    for before, disabled, enabled in zip(plain, off, features(backbone), strict=True):
        assert torch.equal(before, disabled)
        assert (before - enabled).abs().max() > 1e-3


def test_it_alone_trains_and_the_host_keeps_its_keys(kind):
    backbone = kind.backbone_of()
    before = set(backbone.state_dict())
    kind.attach(backbone)
    clip.freeze_except(backbone)
    assert set(backbone.state_dict()) == before | kind.own  # what towers share is there once
    sum(f.square().sum() for f in features(backbone)).backward()
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == kind.own
    assert {n for n, p in backbone.named_parameters() if p.grad is not None} == kind.own


@pytest.mark.parametrize(
    ("name", "ending", "index"),
    [
        *(("prompts", "vectors", j) for j in range(3)),
        ("coupled prompts", "text_prompts.vectors", slice(None)),
        ("multimodal", "up_text.bias", slice(None)),
        ("residual", "value", slice(None)),
    ],
)
def test_deep_copy_is_independent(name, ending, index):
    backbone = KINDS[name].backbone_of()
    KINDS[name].attach(backbone)
    clone = copy.deepcopy(backbone)
    before = features(backbone)
    with adapters_disabled(backbone):  # the copy's switches are its own
        copied = features(clone)
    endings = (ending, ending.replace("text", "vision"))
    for own, parameter in clip.adapter_parameters(clone).items():
        if own.endswith(endings):
            parameter.data[index].normal_()
    changed = features(clone)
    for old, same, twin, new in zip(before, features(backbone), copied, changed, strict=True):
        assert torch.equal(old, same)
        assert torch.equal(old, twin)
        assert (old - new).abs().max() > 1e-2


def test_save_and_load_is_exact(kind):
    first, second = kind.backbone_of(), kind.backbone_of()
    kind.attach(first)
    kind.attach_anew(second)
    state = {n: p.detach().clone() for n, p in clip.adapter_parameters(first).items()}
    different = features(second)
    clip.load_adapters(second, state)
    for a, b, c in zip(features(first), features(second), different, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_modes_and_batches_make_no_difference(kind):
    backbone = kind.backbone_of()
    kind.attach(backbone)
    evaluated = features(backbone)
    for a, b in zip(evaluated, features(backbone.train()), strict=True):
        assert torch.equal(a, b)
    singly = torch.cat([backbone.encode_image(i[None]) for i in images()])
    torch.testing.assert_close(singly, evaluated[0], rtol=1e-5, atol=1e-5)


def test_half_precision_autocast_trains(kind):
    backbone = kind.backbone_of()
    kind.attach(backbone)
    clip.freeze_except(backbone)
    exact = features(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        rough = features(backbone)
    sum(f.float().square().sum() for f in rough).backward()
    for a, b in zip(exact, rough, strict=True):
        assert torch.cosine_similarity(a, b.float()).min() > 0.99
    for name, parameter in clip.adapter_parameters(backbone).items():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_is_in_single_precision_in_half_precision_weights(kind, precision):
    encoded = []
    for chosen in (precision, "fp32"):
        backbone = clip.load("shapes", precision=chosen)
        kind.attach(backbone)
        size = backbone.image_size
        pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
        text = backbone.encode_text(backbone.tokenize(["a red circle.", "a blue square."]))
        encoded.append((backbone.encode_image(pictures), text))
        assert all(f.dtype == backbone.dtype for f in encoded[-1])
        sum(f.float().square().sum() for f in encoded[-1]).backward()
        for name, parameter in clip.adapter_parameters(backbone).items():
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0, name
    for half, single in zip(*encoded, strict=True):
        assert torch.cosine_similarity(half.float(), single).min() > 0.99
