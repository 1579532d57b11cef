"""The rational head against its formula, written out with every K x K matrix."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import trainers.heads.mask_attention as kernel
from trainers.heads import (
    QUERIES,
    CosineHead,
    RationalHead,
    cosine_logits,
)
from trainers.heads.mask_ablations import FeatureAttentionHead, MLPMaskHead

SCALE = torch.tensor(50.0, dtype=torch.float64)


def features(batch: int, classes: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * classes + width)
    f, h = (
        F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64), dim=-1)
        for n in (batch, classes)
    )
    return f.requires_grad_(), h.requires_grad_()


def trained(head: torch.nn.Module, size: float = 0.05) -> torch.nn.Module:
    """All weights random, none zero."""
    generator = torch.Generator().manual_seed(1)
    head = head.double()
    for parameter in head.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data + size * noise
    return head


def plain(head: RationalHead, f: Tensor, h: Tensor, s: Tensor, *, temp, joint, num_heads, reg):
    """METHODS as printed: repeated queries, whole softmaxes, M = relu(1 + out)."""
    batch, classes, width = len(f), len(h), f.shape[1]
    R = torch.einsum("bd,kd->bkd", f, h)
    total = torch.ones_like(R)
    for number, layer in enumerate(head.layers):
        inputs = {
            "image": (s.sqrt() * f)[:, None].expand(batch, classes, width),
            "text": (s.sqrt() * h)[None].expand(batch, classes, width),
            "rational": s * R if number == 0 else total,
        }

        def split(x):
            return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)

        k, v = split(layer.key(s * R)), split(layer.value(s * R))
        matrices = []
        for name, projection in layer.query.items():
            scores = split(projection(inputs[name])) @ k.transpose(-1, -2)
            scores = scores / (math.sqrt(width // num_heads) * temp)
            if joint:
                flat = scores.flatten(-2).softmax(-1)
                matrices.append(flat.unflatten(-1, (classes, classes)) * classes)
            else:
                matrices.append(scores.softmax(-1))
        attended = sum(matrices) / len(matrices) @ v
        total = total + layer.out(attended.transpose(1, 2).flatten(-2))
    M = F.relu(total)
    penalty = {
        "l2": (M - 1).square().mean(),
        "l2_sum": torch.stack([(m - 1).norm() ** 2 for m in M]).mean(),
        "l1": (M - 1).abs().mean(),
        "linf": torch.stack([(m - 1).abs().max() for m in M]).mean(),
    }[reg]
    return s * (M * R).sum(-1), penalty, M


SHAPES = [(1, 2, 16), (3, 7, 16), (2, 33, 24), (5, 12, 32), (11, 5, 16)]  # B below and above H


@pytest.mark.parametrize("chunk", [1, 300, 10**6], ids="chunk{}".format)
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}x{0[2]}".format)
@pytest.mark.parametrize("softmax", ["joint", "row"])
@pytest.mark.parametrize("temp", [1.0, 0.1, 7.0])
def test_logits_penalty_and_gradients_equal_the_plain_formula(
    shape, softmax, temp, chunk, monkeypatch
):
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", chunk)
    check(shape, softmax=softmax, temp=temp)


@pytest.mark.parametrize("long_row", [1, 10**9], ids=["by-rows", "at-once"])
@pytest.mark.parametrize("chunk", [1, 300, 10**6], ids="chunk{}".format)
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}x{0[2]}".format)
@pytest.mark.parametrize("softmax", ["joint", "row"])
def test_the_forms_for_a_gpu_equal_the_plain_formula(softmax, shape, chunk, long_row, monkeypatch):
    monkeypatch.setattr(kernel, "_kind", lambda _: "other")
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "other", chunk)
    monkeypatch.setattr(kernel, "LONG_ROW", long_row)
    check(shape, softmax=softmax)


def test_a_gpu_takes_a_batch_of_small_matrices_at_once(monkeypatch):
    rows = torch.ones(4, 3, 8)
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", 10**6)
    assert len(list(kernel._chunks(rows, 2))) == 2  # of a head each
    monkeypatch.setattr(kernel, "_kind", lambda _: "other")
    assert list(kernel._chunks(rows, 2)) == [(slice(None), slice(None))]
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "other", 4 * 9)
    assert len(list(kernel._chunks(rows, 2))) == 2


@pytest.mark.parametrize("exporting", [False, True], ids=["run", "exported"])
@pytest.mark.parametrize(
    "queries",
    [("rational",), ("image", "rational"), ("text", "rational"), ("image",), ("text",),
     ("image", "text"), ("rational", "text", "image")],
    ids="+".join,
)  # fmt: skip
@pytest.mark.parametrize("softmax", ["joint", "row"])
def test_query_sets_equal_the_plain_formula(queries, softmax, exporting, monkeypatch, count_calls):
    """In chunks, and in the form that torch.export gets."""
    written_out = count_calls(kernel, "_written_out")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: exporting)
    check((3, 5, 16), softmax=softmax, queries=queries)
    assert bool(written_out) == exporting


@pytest.mark.parametrize("kept", [0, 10**6], ids=["again", "kept"])
@pytest.mark.parametrize("num_heads", [1, 2, 8])
@pytest.mark.parametrize("batch", [2, 9])
@pytest.mark.parametrize("softmax", ["joint", "row"])
def test_matrices_kept_or_made_again_equal_the_plain_formula(
    softmax, batch, num_heads, kept, monkeypatch
):
    monkeypatch.setattr(kernel, "KEPT_ELEMENTS", kept)
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", 100)
    check((batch, 6, 16), softmax=softmax, num_heads=num_heads)


def test_matrices_are_kept_for_a_backward_pass_only(monkeypatch):
    rows = torch.ones(2, 3, 4, requires_grad=True)
    results = []
    apply = kernel._MaskAttention.apply

    def record(*arguments):
        results.append(apply(*arguments))
        return results[-1]

    monkeypatch.setattr(kernel._MaskAttention, "apply", record)
    kernel.mask_attention(rows, rows, rational=rows, heads=2, joint=True)
    with torch.no_grad():
        kernel.mask_attention(rows, rows, rational=rows, heads=2, joint=True)
    assert [kept.numel() for _, kept in results] == [2 * 2 * 3 * 3, 0]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("reg", ["l2", "l2_sum", "l1", "linf"])
def test_layers_and_regularizers_equal_the_plain_formula(layers, reg):
    check((2, 6, 16), layers=layers, reg=reg)


def check(shape, *, softmax="joint", temp=1.0, queries=QUERIES, layers=1, reg="l2", num_heads=8):
    torch.manual_seed(0)  # of the head's own start
    batch, classes, width = shape
    f, h = features(*shape)
    head = trained(RationalHead(width, num_heads, temp, queries, softmax, layers, reg), 0.3)
    label = torch.arange(batch) % classes
    parameters = [*head.parameters(), f, h]

    def loss(logits, penalty):
        return F.cross_entropy(logits, label) + 1.5 * penalty

    out = head(f, h, SCALE)
    form = {"temp": temp, "joint": softmax == "joint", "num_heads": num_heads, "reg": reg}
    expected = plain(head, f, h, SCALE, **form)
    assert expected[2].eq(0).any() or classes < 5, "the relu must have something to do"
    torch.testing.assert_close(out.logits, expected[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.penalty, expected[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.mask, expected[2], rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(loss(*out[:2]), parameters, allow_unused=True)
    targets = torch.autograd.grad(loss(*expected[:2]), parameters, allow_unused=True)
    for ours, theirs in zip(grads, targets, strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        # Some gradients are of the order of 1000, and entries near zero are sums of such.
        rounding = max(1e-8, 1e-10 * float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=rounding)


def test_single_precision_is_close_to_the_formula():
    f, h = (x.detach().float() for x in features(4, 30, 64))
    head = trained(RationalHead(64)).float()
    s = SCALE.float()
    expected = plain(head, f, h, s, temp=1.0, joint=True, num_heads=8, reg="l2")
    torch.testing.assert_close(head(f, h, s).logits, expected[0], rtol=1e-5, atol=1e-4)


def test_joint_softmax_is_row_attention_weighted_by_the_rows_logsumexp():
    scores = torch.randn(4, 9, 9, dtype=torch.float64) * 5
    joint = 9 * scores.flatten(1).softmax(-1).view_as(scores)
    weights = 9 * scores.logsumexp(-1).softmax(-1)
    torch.testing.assert_close(joint, scores.softmax(-1) * weights[..., None])


def test_an_images_query_gives_one_row_whatever_the_softmax():
    f, h = features(3, 6, 16)
    heads = [RationalHead(16, queries=("image",), softmax=kind) for kind in ("joint", "row")]
    heads[1].load_state_dict(heads[0].state_dict())
    masks = [trained(head)(f, h, SCALE).mask for head in heads]
    torch.testing.assert_close(*masks)
    assert torch.allclose(masks[0], masks[0][:, :1].expand_as(masks[0]))


@pytest.mark.parametrize(
    "head",
    [RationalHead(16), RationalHead(16, layers=3), RationalHead(16, softmax="row"),
     MLPMaskHead(16), *(FeatureAttentionHead(16, on=on) for on in ("text", "image", "both"))],
    ids=["rational", "layers", "row", "mlp", "text", "image", "both"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_head_starts_as_clip_to_the_last_bit(head, dtype):
    f, h = (x.detach().to(dtype).float() for x in features(5, 9, 16))
    s = torch.tensor(100.0)
    expected = s * f @ h.T
    assert torch.equal(CosineHead()(f, h, s).logits, expected)
    out = head(f, h, s)
    assert torch.equal(out.logits, expected)
    assert out.penalty == 0
    assert out.mask is None or torch.equal(out.mask, torch.ones(5, 9, 16))


def test_parameter_counts():
    def count(head):
        return sum(p.numel() for p in head.parameters())

    assert count(RationalHead(512)) == 6 * (512**2 + 512) == 1_575_936
    assert count(RationalHead(16, layers=3)) == (6 + 2 * 4) * (16**2 + 16)
    assert count(RationalHead(16, queries=("rational",))) == 4 * (16**2 + 16)
    assert count(MLPMaskHead(16)) == 2 * (16**2 + 16)


def test_scale_gets_no_gradient_through_the_attention():
    f, h = features(2, 4, 16)
    head = trained(RationalHead(16))
    s = SCALE.clone().requires_grad_()
    out = head(f, h, s)
    (grad,) = torch.autograd.grad(out.logits.sum(), s)
    # as if the mask were a constant: the logits are linear in s then
    torch.testing.assert_close(grad, (out.logits / s).sum())


def test_autocast_leaves_the_mask_in_single_precision():
    f, h = (x.detach().float() for x in features(2, 4, 16))
    head = trained(RationalHead(16)).float()
    expected = head(f, h, SCALE.float()).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(f, h, SCALE.float()).logits, expected)


def test_the_mask_ablation_by_a_perceptron():
    f, h = features(3, 4, 16)
    head = trained(MLPMaskHead(16), 0.3)
    R = f[:, None] * h
    M = F.relu(1 + head.out(F.relu(head.inner(SCALE * R))))
    out = head(f, h, SCALE)
    torch.testing.assert_close(out.logits, SCALE * (M * R).sum(-1))
    torch.testing.assert_close(out.penalty, (M - 1).square().mean())


def test_feature_attention_adds_attention_to_the_features():
    f, h = features(3, 4, 16)
    head = trained(FeatureAttentionHead(16, num_heads=2), 0.3)
    root = SCALE.sqrt()

    def attend(module, x):
        q, k, v = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(0, 1) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
        return module.out_proj((weights @ v).transpose(0, 1).flatten(-2))

    text = h + attend(head.attention["text"], root * h)
    image = torch.cat([f[i : i + 1] + attend(head.attention["image"], root * f[i : i + 1])
                       for i in range(3)])  # fmt: skip
    out = head(f, h, SCALE)
    torch.testing.assert_close(out.logits, cosine_logits(image, text, SCALE))
    assert out.mask is None


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch():
    f, h = features(5, 6, 16)
    for head in (RationalHead(16), RationalHead(16, layers=2), FeatureAttentionHead(16)):
        head = trained(head)
        together = head(f, h, SCALE).logits
        alone = torch.cat([head(f[i : i + 1], h, SCALE).logits for i in range(5)])
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "HEADS.*D = 16 is not divisible by 5 heads; 1, 2, 4, 8, 16 would"),
        ({"num_heads": 0}, "HEADS"),
        ({"temperature": 0.0}, "TEMP must be positive, got 0"),
        ({"layers": 0}, "MASK_LAYERS must be at least 1, got 0"),
        ({"queries": ()}, "QUERIES must name at least one"),
        ({"queries": ("text", "text")}, "QUERIES"),
        ({"queries": ("texts",)}, "QUERIES: 'texts' is not available. Did you mean 'text'"),
        (
            {"softmax": "rows"},
            "SOFTMAX: 'rows' is not available. Did you mean 'row'.* Available: joint, row",
        ),
        ({"regularizer": "l3"}, "REG: 'l3' is not available.* Available: l2, l2_sum, l1, linf"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RationalHead(16, **arguments)


def test_bad_arguments_of_the_ablations():
    with pytest.raises(ValueError, match="D = 16 is not divisible by 3"):
        FeatureAttentionHead(16, num_heads=3)
    with pytest.raises(ValueError, match="HEAD: 'vision' is not available"):
        FeatureAttentionHead(16, on="vision")
    rows = torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match="needs queries"):
        kernel.mask_attention(rows, rows, heads=1, joint=True)


def test_no_matrix_of_a_batch_is_ever_held(monkeypatch):
    """The largest tensor of a step is far below the B x H x K x K of the plain formula."""
    monkeypatch.setitem(kernel.CHUNK_ELEMENTS, "cpu", 2**14)
    monkeypatch.setattr(kernel, "KEPT_ELEMENTS", 2**14)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes() // 8)
            return result

    batch, classes, width = 4, 100, 16
    f, h = (x.detach() for x in features(batch, classes, width))
    head = trained(RationalHead(width))
    with Watch():
        out = head(f, h, SCALE)
        out.logits.square().mean().backward()
    assert largest <= 3 * batch * classes * width < batch * 8 * classes**2 / 16
