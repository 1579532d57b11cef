"""The attention of RAda's mask, without holding the K x K matrices of many images.

Notation: B images, K classes, H heads, Dh head width, D = H Dh. Written out, each of the three
query sets needs a K x K matrix per image and head: 32 MB an image at K = 1000 in fp32, kept for the
backward pass. Here they are made in chunks small enough for the processor's cache and used at once;
the backward pass makes them again, unless all of them are few enough to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor

# Elements of one chunk of K x K matrices: on a CPU they should stay in its cache, on a GPU there
# must be enough of them to fill it.
CHUNK_ELEMENTS = {"cpu": 2**18, "other": 2**25}
# Rows that PyTorch's softmax on a GPU gives one block of threads each: fewer, long ones leave most
# of the GPU idle.
FEW_ROWS, LONG_ROW = 128, 2**16
# Elements of all matrices of a call that may wait for its backward pass, 64 MB in fp32: reading
# them back takes less time than making them again.
KEPT_ELEMENTS = 2**24


def mask_attention(
    key: Tensor,
    value: Tensor,
    *,
    rational: Tensor | None = None,
    image: Tensor | None = None,
    text: Tensor | None = None,
    heads: int,
    joint: bool,
) -> Tensor:
    """Average the attention matrices of all query sets and apply them to the values.

    RAda (arXiv:2507.15480). An image's query is the same for all K rows, so its attention is one
    row, and joint and row-wise softmax coincide.

    Args:
        key: Keys, times what the scores are to be multiplied by, (B, K, D).
        value: Values, (B, K, D).
        rational: Queries of the rational matrix, (B, K, D), or None.
        image: Queries of the images, (B, D), or None.
        text: Queries of the classes, (K, D), or None.
        heads: H.
        joint: One softmax over all K * K entries of a head's scores, times K (released code),
            instead of one per row.

    Returns:
        (B, K, D).

    Raises:
        ValueError: There is no query at all.
    """
    if image is None and text is None and rational is None:
        raise ValueError("The mask needs queries: image, text or rational")
    if text is not None:
        text = text.expand_as(key)  # (B, K, D) without a copy; autograd adds up the images' shares
    if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
        # A graph for use elsewhere (torch.export): it knows neither our operator nor how many
        # images there will be, which the chunks depend on.
        return _written_out(key, value, rational, image, text, heads, joint)
    if torch.compiler.is_compiling():
        from trainers.heads.mask_operator import apply_operator as apply  # compiled heads alone
    else:
        apply = _MaskAttention.apply
    keep = torch.is_grad_enabled()
    attended, *_ = apply(key, value, rational, image, text, heads, joint, keep)
    return attended


def _chunks(key: Tensor, heads: int) -> Iterator[tuple[Any, Any]]:
    """Indices (images, heads) of the chunks, whose K x K matrices are within the budget.

    One of both is a number and the other a slice, so that chunks of rows are views of three
    dimensions, which batched products take without a copy. One matrix at least. A GPU takes all at
    once if it can: there the copies cost less than more, smaller products.
    """
    batch, classes, _ = key.shape
    kind = _kind(key)
    matrices = max(1, CHUNK_ELEMENTS[kind] // classes**2)
    if kind != "cpu" and batch > 1 and batch * heads <= matrices:
        yield slice(None), slice(None)
    elif batch > heads:
        for h in range(heads):
            for b in range(0, batch, matrices):
                yield slice(b, b + matrices), h
    else:
        for b in range(batch):
            for h in range(0, heads, matrices):
                yield b, slice(h, h + matrices)


def _kind(x: Tensor) -> str:
    """Which of :data:`CHUNK_ELEMENTS` and of the forms of softmax are a tensor's device's."""
    return "cpu" if x.device.type == "cpu" else "other"


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product of chunks, (n, ., .) or (B, H, ., .)."""
    return torch.bmm(a, b) if a.ndim == 3 else a @ b


def _split(rows: Tensor, heads: int) -> Tensor:
    """(B, K, D) -> (B, H, K, Dh), a view."""
    batch, length, width = rows.shape
    return rows.view(batch, length, heads, width // heads).transpose(1, 2)


def _softmax(scores: Tensor, joint: bool, out: Tensor | None = None) -> Tensor:
    """Softmax of scores (..., K, K), into ``out``: over all of a matrix, or over each row."""
    if not joint:
        return torch.softmax(scores, -1, out=out)
    size = scores.shape[-1] ** 2
    if _kind(scores) != "cpu" and size >= LONG_ROW and scores.numel() // size < FEW_ROWS:
        rows = scores.logsumexp(-1, keepdim=True)  # (..., K, 1)
        return torch.exp(scores - rows.logsumexp(-2, keepdim=True), out=out)
    flat = None if out is None else out.flatten(-2)  # (..., K * K), a view
    return torch.softmax(scores.flatten(-2), -1, out=flat).view_as(scores)


def _softmax_backward(matrix: Tensor, grad: Tensor, joint: bool) -> Tensor:
    """Gradient of the scores, of the softmax (..., K, K) and of its gradient."""
    if joint and _kind(matrix) == "cpu":  # a dot product needs no temporary matrix
        mean = torch.bmm(matrix.flatten(1)[:, None], grad.flatten(1)[..., None])  # (n, 1, 1)
    else:  # one product of two long rows would be left to a small part of a GPU
        over = (-2, -1) if joint else (-1,)
        mean = (matrix * grad).sum(over, keepdim=True)  # (..., 1, 1) or (..., K, 1)
    return (grad - mean).mul_(matrix)


def _set_backward(
    query: Tensor, key: Tensor, matrix: Tensor, grad: Tensor, joint: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of a set's queries (..., K or 1, Dh) and of the keys (..., K, Dh).

    ``grad`` is that of the set's softmax ``matrix``, (..., K or 1, K).
    """
    scores = _softmax_backward(matrix, grad, joint)
    return _product(scores, key), _product(scores.mT, query)


def _sum(parts: list[Tensor]) -> Tensor:
    """Sum without the copy that Python's own makes, which starts from 0."""
    return reduce(torch.add, parts)


def _weights(sets: int, image: bool, classes: int, joint: bool) -> tuple[float, float]:
    """Factors of an image's row and of a K x K softmax in the average over all query sets."""
    share = 1 / (sets + image)
    return share, share * classes if joint else share


def forward_pass(
    key: Tensor,
    value: Tensor,
    rational: Tensor | None,
    image: Tensor | None,
    text: Tensor | None,
    heads: int,
    joint: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """What :func:`mask_attention` returns, (B, K, D), and the K x K matrices that were kept.

    The latter are (query sets, B, H, K, K), or (query sets, 0, H, K, K) if they are not to be kept
    or too many.
    """
    batch, classes, _ = key.shape
    queries = [_split(query, heads) for query in (text, rational) if query is not None]
    share, weight = _weights(len(queries), image is not None, classes, joint)
    kept = key.new_empty(kept_shape(key, len(queries), heads, keep))
    size = kept.shape[1]
    out = key.new_empty(key.shape)
    keys, values, outs = (_split(x, heads) for x in (key, value, out))
    images = None if image is None else _split(image[:, None], heads)  # (B, H, 1, Dh)
    for b, h in _chunks(key, heads):
        k, v = keys[b, h], values[b, h]  # (n, K, Dh)
        parts, matrices = [], []
        for i, query in enumerate(queries):
            scores = _product(query[b, h], k.mT)  # (n, K, K)
            matrices.append(_softmax(scores, joint, kept[i, b, h] if size else None))
        if matrices:
            parts.append(_product(_sum(matrices), v).mul_(weight))  # (n, K, Dh)
        if images is not None:
            row = _product(images[b, h], k.mT).softmax(-1)  # (n, 1, K)
            parts.append(_product(row, v).mul_(share))  # (n, 1, Dh)
        outs[b, h] = _sum(parts)
    return out, kept


def _written_out(
    key: Tensor,
    value: Tensor,
    rational: Tensor | None,
    image: Tensor | None,
    text: Tensor | None,
    heads: int,
    joint: bool,
) -> Tensor:
    """What :func:`mask_attention` returns, (B, K, D), in plain operations on whole tensors."""
    queries = [_split(query, heads) for query in (text, rational) if query is not None]
    share, weight = _weights(len(queries), image is not None, key.shape[1], joint)
    keys, values = _split(key, heads), _split(value, heads)  # (B, H, K, Dh)
    parts = []
    if queries:
        matrices = [_softmax(query @ keys.mT, joint) for query in queries]  # (B, H, K, K)
        parts.append(_sum(matrices) @ values * weight)  # (B, H, K, Dh)
    if image is not None:
        row = (_split(image[:, None], heads) @ keys.mT).softmax(-1)  # (B, H, 1, K)
        parts.append((row @ values * share).expand_as(values))
    return _sum(parts).transpose(1, 2).flatten(2)


def kept_shape(key: Tensor, sets: int, heads: int, keep: bool) -> tuple[int, ...]:
    """Shape of the second outcome of :func:`forward_pass`, for so many K x K query sets."""
    batch, classes, _ = key.shape
    few = sets * batch * heads * classes**2 <= KEPT_ELEMENTS
    return sets, batch if keep and few else 0, heads, classes, classes


def backward_pass(
    grad: Tensor,
    key: Tensor,
    value: Tensor,
    rational: Tensor | None,
    image: Tensor | None,
    text: Tensor | None,
    kept: Tensor,
    heads: int,
    joint: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of key, value, rational, image and text, from that of the first outcome.

    Matrices that the forward pass has not ``kept`` are made again.
    """
    given = [query for query in (text, rational) if query is not None]
    share, weight = _weights(len(given), image is not None, key.shape[1], joint)
    found = [key.new_empty(key.shape) for _ in (key, value, *given)]  # (B, K, D) each
    grad_image = None if image is None else torch.empty_like(image)
    keys, values, grads, *queries = (_split(x, heads) for x in (key, value, grad, *given))
    grad_keys, grad_values, *grad_queries = (_split(x, heads) for x in found)
    for b, h in _chunks(key, heads):
        k, v, g = keys[b, h], values[b, h], grads[b, h]  # (n, K, Dh)
        of_key, of_value = [], []  # shares of the query sets in both gradients
        if queries:
            matrices = [
                kept[i, b, h] if kept.shape[1] else _softmax(_product(q[b, h], k.mT), joint)
                for i, q in enumerate(queries)
            ]  # (n, K, K) each
            weighted = g * weight
            of_value.append(_product(_sum(matrices).mT, weighted))
            grad_matrix = _product(weighted, v.mT)  # (n, K, K)
            for query, grad_query, matrix in zip(queries, grad_queries, matrices, strict=True):
                results = _set_backward(query[b, h], k, matrix, grad_matrix, joint)
                grad_query[b, h] = results[0]
                of_key.append(results[1])
        if image is not None and grad_image is not None:
            query = _split(image[:, None], heads)[b, h]  # (n, 1, Dh)
            row = _product(query, k.mT).softmax(-1)  # (n, 1, K)
            total = g.sum(-2, keepdim=True).mul_(share)  # all K rows of the output got this one
            of_value.append(_product(row.mT, total))
            results = _set_backward(query, k, row, _product(total, v.mT), False)
            _split(grad_image[:, None], heads)[b, h] = results[0]
            of_key.append(results[1])
        grad_keys[b, h], grad_values[b, h] = _sum(of_key), _sum(of_value)
    grad_rational = None if rational is None else found[-1]
    grad_text = None if text is None else found[2]
    return found[0], found[1], grad_rational, grad_image, grad_text


class _MaskAttention(torch.autograd.Function):
    """Chunked forward, and backward by recomputation of what was not kept."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return forward_pass(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.heads, ctx.joint, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # of the kept matrices it would be as many zeros
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """N calls at once, for ``torch.func.vmap``: their images are those of one larger batch."""
        count = info.batch_size

        def one_batch(x: Tensor | None, dim: int | None) -> Tensor | None:
            """(B, ...) of each call -> (N * B, ...)."""
            if x is None:
                return None
            return (x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

        tensors = [one_batch(x, dim) for x, dim in zip(inputs[:5], in_dims[:5], strict=True)]
        out, kept = _MaskAttention.apply(*tensors, *inputs[5:])
        apart = [x.unflatten(i, (count, x.shape[i] // count)) for i, x in enumerate((out, kept))]
        return (apart[0], apart[1]), (0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        form = {"heads": ctx.heads, "joint": ctx.joint}
        return (*backward_pass(grad, *ctx.saved_tensors, **form), None, None, None)
