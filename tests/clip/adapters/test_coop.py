"""Contexts around class names: where they go, what stays exact, what is refused."""

import copy

import pytest
import torch

from clip import ClassContextBank, adapters_disabled, attach_context
from clip.text import text_tower

NAMES = ["cat", "very small dog that sleeps"]


def texts(prompts):
    return [prompts.template.format(name) for name in NAMES]


@pytest.mark.parametrize(
    ("position", "template", "slots"),
    [
        ("end", "X X X {}.", [[1, 2, 3], [1, 2, 3]]),
        ("middle", "X {} X X.", [[1, 3, 4], [1, 7, 8]]),
        ("front", "{} X X X.", [[2, 3, 4], [6, 7, 8]]),
    ],
)
def test_places(tiny_backbone, position, template, slots):
    prompts = attach_context(tiny_backbone, n_ctx=3, position=position)
    assert prompts.template == template
    tokens = tiny_backbone.tokenize(texts(prompts))
    assert prompts.slots(tokens).tolist() == slots
    prompts.check_texts(tokens)
    prompts.vectors.data = torch.arange(1.0, 4).reshape(1, 3, 1).expand(1, 3, 128)
    table = tiny_backbone.model.token_embedding
    placed = table(tokens)
    assert placed[torch.arange(2)[:, None], torch.tensor(slots), 0].tolist() == [[1, 2, 3]] * 2
    with adapters_disabled(tiny_backbone):
        plain = table(tokens)
    changed = (placed != plain).any(-1)
    assert [row.nonzero().flatten().tolist() for row in changed] == slots


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_truncation_and_both_ways_of_encoding_agree(tiny_backbone, position):
    backbone = tiny_backbone.double()
    prompts = attach_context(backbone, n_ctx=4, position=position)
    prompts.vectors.data = torch.randn(1, 4, 128, dtype=torch.double)
    tokens = backbone.tokenize(texts(prompts))
    whole = backbone.model.encode_text(tokens)
    cut = backbone.encode_text(tokens)
    given = prompts.encode(backbone, tokens[:, :12], prompts.vectors.expand(2, -1, -1))
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given, whole, rtol=1e-9, atol=1e-9)


def test_every_text_of_a_class_has_its_context(tiny_backbone):
    prompts = attach_context(tiny_backbone, n_ctx=2, num_classes=2)
    bank = ClassContextBank(
        [["X X cat.", "X X big cat."], ["X X dog."]],
        tiny_backbone.tokenize,
        tiny_backbone.end_of_text(),
    ).eval()
    single = [
        prompts.encode(tiny_backbone, bank.tokens[i : i + 1, :9], prompts.vectors[k : k + 1])
        for i, k in enumerate((0, 0, 1))
    ]
    encoded = bank.encode(tiny_backbone, torch.arange(3), unit=False)
    torch.testing.assert_close(encoded, torch.cat(single), rtol=1e-4, atol=1e-5)
    before = bank.class_features(tiny_backbone).clone()
    bank.drop_cache()
    prompts.vectors.data[1].normal_()
    moved = (bank.class_features(tiny_backbone) - before).abs().amax(1)
    assert moved[0] == 0
    assert moved[1] > 1e-3
    with adapters_disabled(tiny_backbone):
        off = bank.encode(tiny_backbone, torch.arange(3), unit=False)
        plain = tiny_backbone.encode_text(bank.tokens)
    torch.testing.assert_close(off, plain, rtol=1e-4, atol=1e-5)


def test_disabled_is_the_pre_trained_model_exactly(tiny_backbone):
    tokens = tiny_backbone.tokenize(["a photo of a cat.", "dog"])
    plain = tiny_backbone.encode_text(tokens)
    prompts = attach_context(tiny_backbone, n_ctx=4, init="a photo of a", conditional=True)
    prompts.vectors.data.normal_()
    with adapters_disabled(tiny_backbone):
        assert torch.equal(tiny_backbone.encode_text(tokens), plain)
    assert not torch.allclose(tiny_backbone.encode_text(tokens), plain, atol=1e-2)


def test_fewer_words_than_vectors_leave_zeros_on_the_left(tiny_backbone):
    prompts = attach_context(tiny_backbone, n_ctx=5, init="a photo")
    assert prompts.template == "X X X a photo {}."
    assert not prompts.vectors[0, :3].any()
    words = tiny_backbone.tokenize("a photo")[0, 1:3]
    table = tiny_backbone.model.token_embedding.weight
    assert torch.equal(prompts.vectors[0, 3:], table[words])


def test_deep_copy_is_independent(tiny_backbone):
    prompts = attach_context(tiny_backbone, n_ctx=2, position="middle")
    clone = copy.deepcopy(tiny_backbone)
    tokens = tiny_backbone.tokenize(texts(prompts))
    before = tiny_backbone.encode_text(tokens)
    clone.text_prompts.vectors.data.normal_()
    assert torch.equal(tiny_backbone.encode_text(tokens), before)
    assert not torch.allclose(clone.encode_text(tokens), before, atol=1e-2)


def test_refusals(tiny_backbone):
    for options, message in (
        (
            {"n_ctx": 2, "position": "back"},
            "position must be one of end, middle, front, got 'back'",
        ),
        ({"n_ctx": 0}, r"n_ctx must be from 1 \(one vector\) to 74"),
        ({"n_ctx": 1, "init": "a photo"}, r"from 2 \(the words of 'a photo'\) to 74.*got 1"),
        ({"n_ctx": 3, "init": "a, b", "position": "middle"}, "3 tokens for 2 words"),
    ):
        with pytest.raises(ValueError, match=message):
            attach_context(tiny_backbone, **options)
    prompts = attach_context(tiny_backbone, n_ctx=3)
    with pytest.raises(ValueError, match="already"):
        attach_context(tiny_backbone, n_ctx=3)
    with pytest.raises(ValueError, match="first 3 tokens of 'X X X'; 1 of 2"):
        prompts.check_texts(tiny_backbone.tokenize(["X X X cat.", "X X dog."]))
    with pytest.raises(ValueError, match=r"context of 3 does not fit in 3 tokens.*'X X X \{\}\.'"):
        tiny_backbone.encode_text(tiny_backbone.tokenize("cat"))


def test_refuses_text_towers_of_another_form(tiny_backbone):
    text_tower(tiny_backbone.model).text_pool_type = "last"
    with pytest.raises(ValueError, match=r"text tower.*end token.*SigLIP"):
        attach_context(tiny_backbone, n_ctx=2)
