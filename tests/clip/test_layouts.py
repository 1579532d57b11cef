"""Packed texts, parts that are encoded twice, and the last block give what plain passes give."""

import random

import pytest
import torch

import clip
from clip.backbones import OPENAI_INPUT, Backbone
from clip.layouts import WASTE, Ends, Packed
from clip.transformer import OpenBlock
from tests.conftest import tiny_model

WORDS = "cat dog bird red blue tall small with a long tail on the green field at night".split()


def texts(count=23, start="a photo of a", longest=20):
    draw = random.Random(0)
    return [
        [f"{start} {' '.join(draw.choices(WORDS, k=draw.randint(1, longest)))}."]
        for _ in range(count)
    ]


def attach_lightra(backbone):
    clip.attach_residual_attention(backbone, n_ctx_text=3)
    for module in backbone.modules():
        if isinstance(module, clip.ResidualAttention):
            module.value.data.normal_()


def attach_both(backbone):
    attach_lightra(backbone)
    clip.attach_text_prompts(backbone, n_ctx=2, depth=3)
    clip.attach_multimodal_adapters(backbone, layers=2, scale=0.5)


ATTACH = {
    "LightRA": attach_lightra,
    "deep prompts": lambda b: clip.attach_text_prompts(b, n_ctx=4, depth=3),
    "first words": lambda b: clip.attach_text_prompts(b, n_ctx=2, depth=2),
    "one set": lambda b: clip.attach_text_prompts(b, n_ctx=4, depth=1),
    "MMA": lambda b: clip.attach_multimodal_adapters(b, layers=3, scale=0.5),
    "all of these": attach_both,
}


def adapted_backbone(attach):
    torch.manual_seed(1)
    backbone = Backbone(tiny_model(layers=3).double(), "tiny", OPENAI_INPUT).eval()
    attach(backbone)
    backbone.double()
    clip.freeze_except(backbone)
    return backbone


def with_gradients(backbone, encode):
    features = encode()
    weight = torch.randn(
        features.shape, dtype=torch.double, generator=torch.Generator().manual_seed(2)
    )
    trained = [p for n, p in backbone.named_parameters() if p.requires_grad and "vision" not in n]
    return [features, *torch.autograd.grad((features * weight).sum(), trained, allow_unused=True)]


def assert_same(ours, plain):
    assert any(gradient is not None for gradient in plain[1:])
    for a, b in zip(ours, plain, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("attach", ATTACH.values(), ids=ATTACH)
@pytest.mark.parametrize("kept", [0, 40])
@pytest.mark.parametrize("blocks_again", [False, True])
def test_bank_equals_whole_texts_one_by_one(attach, kept, blocks_again):
    backbone = adapted_backbone(attach)
    bank = backbone.text_bank(texts())
    bank.kept_tokens = kept
    index = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))
    whole = with_gradients(backbone, lambda: backbone.model.encode_text(bank.tokens[index]))
    backbone.model.set_grad_checkpointing(blocks_again)
    assert_same(with_gradients(backbone, lambda: bank.encode(backbone, index, unit=False)), whole)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("conditional", [False, True])
def test_contexts_equal_whole_texts(position, conditional):
    backbone = adapted_backbone(
        lambda b: clip.attach_context(b, n_ctx=4, position=position, conditional=conditional)
    )
    prompts = backbone.text_prompts
    prompts.vectors.data.normal_()
    # "X" in a name: the words that the context stands for, in other places than the context.
    names = ["cat", "X dog", "X X", "small bird with a tail", "X"]
    tokens = prompts.tokenize(backbone, names)
    bank = clip.TextBank([[name] for name in names], lambda _: tokens, backbone.end_of_text())
    image = torch.randn(3, backbone.embed_dim, dtype=torch.double)

    def plain():
        contexts = prompts.contexts(image) if conditional else prompts.vectors
        one_by_one = [
            prompts.encode(backbone, tokens[k : k + 1], context[None])
            for context in contexts
            for k in range(len(names))
        ]
        return torch.cat(one_by_one).unflatten(0, (len(contexts), len(names)))

    def ours():
        if conditional:
            return prompts.encode_pairs(backbone, bank, image)
        return bank.encode(backbone, torch.arange(len(bank)), unit=False)[None]

    for kept in (0, 12):
        bank.kept_tokens = kept
        assert_same(with_gradients(backbone, ours), with_gradients(backbone, plain))


def test_a_context_of_each_class_is_not_shared():
    names = ["cat", "dog", "small bird"]
    backbone = adapted_backbone(lambda b: clip.attach_context(b, n_ctx=4, num_classes=3))
    prompts = backbone.text_prompts
    tokens = prompts.tokenize(backbone, names)
    bank = clip.ClassContextBank(
        [[name] for name in names], lambda _: tokens, backbone.end_of_text()
    )
    plain = lambda: prompts.encode(backbone, tokens, prompts.vectors)  # noqa: E731
    ours = lambda: bank.encode(backbone, torch.arange(3), unit=False)  # noqa: E731
    assert_same(with_gradients(backbone, ours), with_gradients(backbone, plain))


def test_deep_prompts_that_are_not_shared_are_not_packed():
    backbone = adapted_backbone(lambda b: clip.attach_text_prompts(b, n_ctx=2, depth=3, init=""))
    bank = backbone.text_bank([["cat small dog"], ["bird small dog at night"]])
    assert bank.shared == 1
    with torch.no_grad():
        torch.testing.assert_close(
            bank.encode(backbone, torch.arange(2), unit=False),
            backbone.model.encode_text(bank.tokens),
            rtol=1e-9,
            atol=1e-9,
        )


def test_what_is_shared_is_encoded_once_and_hardly_any_padding(tiny_backbone, count_calls):
    bank = tiny_backbone.text_bank(texts(200))
    assert bank.shared == 5  # start, a, photo, of, a
    calls = count_calls(tiny_backbone.model.transformer.resblocks[0].mlp, "forward")
    bank.encode(tiny_backbone, torch.arange(len(bank)))
    own = sum(bank.lengths) - len(bank) * bank.shared
    groups = Packed(bank.ends(torch.arange(len(bank))), torch.device("cpu")).groups
    assert own + bank.shared <= calls[0][0].shape[1] <= own + bank.shared + WASTE * len(groups)
    assert len(groups) < 20 < 200


@pytest.mark.parametrize("ends", [(3,), (1, 1), (4, 4, 4), (1, 9, 2, 76, 3)])
@pytest.mark.parametrize("shared", [1, 4, 77])
def test_packing_keeps_order_and_ends(ends, shared):
    layout = Packed(Ends(ends, shared), torch.device("cpu"))
    position = torch.arange(max(ends) + 1.0).expand(len(ends), -1)
    text = torch.arange(float(len(ends)))[:, None].expand_as(position)
    x = torch.stack([text, position], -1)  # (N, L, 2): which text, which place
    found = layout.unpack(layout.pooled(layout.pack(x)))
    assert found.tolist() == [[float(i), float(end)] for i, end in enumerate(ends)]


def test_the_last_block_computes_only_what_is_pooled(tiny_backbone, count_calls):
    bank = tiny_backbone.text_bank(texts(5))
    for transformer, encode, rows in (
        (tiny_backbone.model.visual.transformer, tiny_backbone.encode_image, (2, 1, 128)),
        (
            tiny_backbone.model.transformer,
            lambda _: bank.encode(tiny_backbone, torch.arange(5)),
            (1, 5, 128),
        ),
    ):
        calls = count_calls(transformer.resblocks[-1].mlp, "forward")
        encode(torch.randn(2, 3, 32, 32))
        assert [tuple(x.shape) for (x,) in calls] == [rows]


def test_towers_that_read_all_tokens_keep_them():
    model = tiny_model()
    model.visual.pool_type = "avg"
    model.text_pool_type = "last"
    backbone = Backbone(model, "tiny", OPENAI_INPUT)
    for transformer in (backbone.vision_transformer, backbone.text_transformer):
        assert all(isinstance(block, OpenBlock) for block in transformer.resblocks)
        assert not any(block.last for block in transformer.resblocks)


def test_parts_are_encoded_again_only_where_they_must(tiny_backbone, count_calls):
    clip.attach_residual_attention(tiny_backbone)
    clip.freeze_except(tiny_backbone)
    bank = tiny_backbone.text_bank(texts(40))
    calls = count_calls(bank, "_encode_part")
    for kept, passes in ((sum(bank.lengths), 1), (sum(bank.lengths) // 2, None), (0, 1)):
        bank.kept_tokens = kept
        bank.encode(tiny_backbone, torch.arange(40)).sum().backward()
        if passes is not None:
            assert len(calls) == passes
        else:
            # Parts of an eighth each: the last three once, the others twice.
            again = len(calls) - len({tuple(index.tolist()) for _, index in calls})
            assert len(calls) - again - 3 == again > 3
        calls.clear()
    with torch.no_grad():
        bank.kept_tokens = 1
        bank.encode(tiny_backbone, torch.arange(40))
    assert len(calls) == 1


def test_memory_does_not_grow_with_the_number_of_texts(tiny_backbone):
    clip.attach_residual_attention(tiny_backbone)
    clip.freeze_except(tiny_backbone)
    frozen = {p.untyped_storage().data_ptr() for p in tiny_backbone.parameters()}
    kept_bytes = []
    for count in (40, 160):
        bank = tiny_backbone.text_bank(texts(count))
        bank.kept_tokens = 400
        kept: dict[int, int] = {}

        def pack(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in frozen:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = bank.encode(tiny_backbone, torch.arange(count))
        kept_bytes.append(sum(kept.values()) - features.nbytes)
        del features
    # Four times as many texts; parts are not of exactly equal size.
    assert 0.5 * kept_bytes[0] < kept_bytes[1] < 1.5 * kept_bytes[0]
