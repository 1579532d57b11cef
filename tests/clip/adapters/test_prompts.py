import copy

import pytest
import torch
from torch import nn

import clip
from clip import (
    AppendedPrompts,
    attach_text_prompts,
    attach_vision_prompts,
    install_vision_prompts,
)
from clip.backbones import Backbone, InputSpec
from tests.conftest import MEAN, STD, tiny_model
from tests.trainers.plain import plain_image, plain_text

TEXTS = ["a photo of a cat.", "a photo of a very small dog that sleeps."]


def backbone_of(layers=4, change=lambda model: None):
    model = tiny_model(layers)
    change(model)
    return Backbone(model, "tiny", InputSpec(32, MEAN, STD)).requires_grad_(False).eval()


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def features(backbone):
    return backbone.encode_image(images()), backbone.encode_text(backbone.tokenize(TEXTS))


def attach_both(backbone, n_ctx=2, depth=3):
    torch.manual_seed(3)
    return (
        attach_text_prompts(backbone, n_ctx=n_ctx, depth=depth),
        attach_vision_prompts(backbone, n_ctx=n_ctx, depth=depth),
    )


def assert_same_gradients(fast, plain, fast_module, plain_module, vectors, plain_vectors):
    """Of the prompts, and of every weight of the host (None for those not taking part)."""
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(4)).to(fast)
    (fast * weight).sum().backward()
    (plain * weight).sum().backward()
    assert vectors.grad.flatten(1).abs().amax(1).min() > 1e-4  # every set takes part
    torch.testing.assert_close(vectors.grad, plain_vectors.grad, rtol=1e-9, atol=1e-9)
    hosts = dict(plain_module.named_parameters())
    for name, parameter in fast_module.named_parameters():
        expected = hosts[name].grad
        if expected is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("n_ctx", [1, 4])
def test_text_equals_the_plain_formula_with_gradients(n_ctx, depth):
    backbone = backbone_of().double().requires_grad_(True)
    reference = copy.deepcopy(backbone)
    prompts = attach_text_prompts(backbone, n_ctx=n_ctx, depth=depth)
    vectors = prompts.vectors.detach().clone().requires_grad_(True)

    fast = backbone.encode_text(backbone.tokenize(TEXTS))
    plain = plain_text(reference.model, backbone.tokenize(TEXTS), vectors)

    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert_same_gradients(fast, plain, backbone.model, reference.model, prompts.vectors, vectors)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("n_ctx", [1, 5])
def test_vision_equals_the_plain_formula_with_gradients(n_ctx, depth):
    backbone = backbone_of().double().requires_grad_(True)
    reference = copy.deepcopy(backbone)
    prompts = attach_vision_prompts(backbone, n_ctx=n_ctx, depth=depth)
    vectors = prompts.vectors.detach().clone().requires_grad_(True)

    fast = backbone.encode_image(images(3))
    plain = plain_image(reference.model, images(3).double(), vectors)

    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    assert_same_gradients(fast, plain, backbone.model, reference.model, prompts.vectors, vectors)


def test_shallow_text_prompts_start_as_their_words(tiny_backbone):
    tokens = tiny_backbone.tokenize(TEXTS)
    plain = tiny_backbone.encode_text(tokens)
    attach_text_prompts(tiny_backbone, n_ctx=4, depth=1)
    assert torch.equal(tiny_backbone.encode_text(tokens), plain)


def test_first_words_are_learned_and_deeper_sets_random(tiny_backbone):
    torch.manual_seed(0)
    prompts = attach_text_prompts(tiny_backbone, n_ctx=2, depth=2)
    a, photo = tiny_backbone.tokenize("a photo")[0, 1:3]
    table = tiny_backbone.model.token_embedding.weight
    assert torch.equal(prompts.vectors[0], table[torch.stack([a, photo])])
    assert prompts.vectors[1].std().item() == pytest.approx(0.02, rel=0.2)


def test_without_words_all_sets_are_random(tiny_backbone):
    torch.manual_seed(0)
    text = attach_text_prompts(tiny_backbone, n_ctx=16, depth=2, init="").vectors
    vision = attach_vision_prompts(tiny_backbone, n_ctx=16, depth=2).vectors
    for vectors in (text, vision):
        for set_ in vectors:
            assert set_.std().item() == pytest.approx(0.02, rel=0.1)
            assert abs(set_.mean()) < 2e-3


@pytest.mark.parametrize("layers", [2, 3])
def test_truncation_stays_exact(layers):
    backbone = backbone_of(layers).double()
    attach_text_prompts(backbone, n_ctx=4, depth=layers)
    tokens = backbone.tokenize(TEXTS)
    weight = torch.randn(2, backbone.embed_dim, dtype=torch.double)
    results = []
    for encode in (backbone.encode_text, backbone.model.encode_text):  # cut, whole
        encoded = encode(tokens)
        gradient = torch.autograd.grad((encoded * weight).sum(), backbone.text_prompts.vectors)[0]
        results.append((encoded, gradient))
    for cut, whole in zip(*results, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-9)


def test_gradient_checkpointing_makes_no_difference(tiny_backbone):
    prompts = attach_both(tiny_backbone, depth=2)
    gradients = []
    for enable in (False, True):
        tiny_backbone.model.set_grad_checkpointing(enable)
        tiny_backbone.zero_grad()
        sum(f.square().sum() for f in features(tiny_backbone)).backward()
        gradients.append([p.vectors.grad.clone() for p in prompts])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "vision", "count"),
    [
        ((4, 9), (4, 9), 46_080),  # IVLP and PromptSRC
        ((4, 3), (4, 3), 15_360),  # PromptSRC across datasets
        ((2, 12), (2, 12), 30_720),  # IVLP of MaPLe's repository
        ((4, 12), (0, 0), 24_576),  # deep language prompting
        ((0, 0), (8, 12), 73_728),  # VPT
        ((4, 1), (0, 0), 2_048),  # CoOp
        ((4, 99), (4, 99), 61_440),  # deeper than the towers
    ],
)
def test_parameters_on_vit_b16(vit_b16, text, vision, count):
    attached = (
        attach_text_prompts(vit_b16, n_ctx=text[0], depth=text[1]),
        attach_vision_prompts(vit_b16, n_ctx=vision[0], depth=vision[1]),
    )
    assert [prompts is None for prompts in attached] == [text[1] == 0, vision[1] == 0]
    clip.freeze_except(vit_b16)
    assert sum(p.numel() for p in vit_b16.parameters() if p.requires_grad) == count


def test_prompts_of_a_half_precision_tower_are_single_precision(tiny_backbone):
    for prompts in attach_both(tiny_backbone.bfloat16()):
        assert prompts.vectors.dtype == torch.float32
    assert all(f.dtype == torch.bfloat16 for f in features(tiny_backbone))


class CoupledPrompts(AppendedPrompts):
    """MaPLe's vision prompts: a linear map of each set of text prompts."""

    def __init__(self, text, width):
        super().__init__(text.n_ctx, text.depth)
        self.maps = nn.ModuleList(
            nn.Linear(text.vectors.shape[-1], width) for _ in range(text.depth)
        )
        self._text = (text,)  # in a tuple, so that its parameters are not listed here as well

    def vectors_of(self, index):
        return self.maps[index](self._text[0].vectors_of(index))


def test_prompts_computed_from_the_other_tower():
    backbone = backbone_of().double()
    reference = copy.deepcopy(backbone)
    text = attach_text_prompts(backbone, n_ctx=2, depth=3)
    torch.manual_seed(5)
    coupled = CoupledPrompts(text, 128)
    install_vision_prompts(backbone, coupled.double())
    sets = torch.stack([coupled.vectors_of(j) for j in range(3)])

    encoded = backbone.encode_image(images())
    torch.testing.assert_close(encoded, plain_image(reference.model, images().double(), sets))
    encoded.square().sum().backward()
    assert text.vectors.grad.flatten(1).abs().amax(1).min() > 0
    names = {name.rsplit(".", 1)[0] for name in clip.adapter_parameters(backbone)}
    assert names == {"text_prompts", *(f"vision_prompts.maps.{j}" for j in range(3))}
    clone = copy.deepcopy(backbone)
    assert clone.vision_prompts._text[0] is clone.text_prompts
