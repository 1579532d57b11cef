"""The attention of RAda's mask, without ever holding more than a few K x K matrices.

Notation: B images, K classes, H heads, Dh head width. Written out, each of the three query sets
needs a K x K matrix per image and head: 32 MB an image at K = 1000 in fp32, kept for the backward
pass. Here they are made in chunks small enough for the processor's cache, used and thrown away;
the backward pass makes them again from the saved normalisers, as fused attention does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of one chunk of K x K matrices: on a CPU they should stay in its cache, on a GPU there
# must be enough of them to fill it.
CHUNK_ELEMENTS = {"cpu": 2**18, "other": 2**25}


def mask_attention(
    rows: Tensor, image: Tensor | None = None, text: Tensor | None = None, *, joint: bool
) -> Tensor:
    """Average the attention matrices of all query sets and apply them to the values.

    RAda (arXiv:2507.15480). Two identities keep it small. An image's query is the same for all K
    rows, so its attention is one row, and joint and row-wise softmax coincide. The joint softmax
    over all K * K entries is row-wise softmax, weighted per row: with ``l_i`` the logsumexp of row
    ``i``, ``K exp(S_ij - logsumexp(l)) = softmax(S_i)_j * K softmax(l)_i``.

    Args:
        rows: Projections of the rational matrix, (B, K, 2 or 3, H, Dh): its queries (if there are
            three), keys, values. Queries of all sets are scaled already.
        image: Queries of the images, (B, H, Dh).
        text: Queries of the classes, (K, H, Dh); (B, K, H, Dh) if they differ from image to image.
        joint: One softmax over all K * K entries of a head's scores, times K (released code),
            instead of one per row.

    Returns:
        (B, K, H, Dh).

    Raises:
        ValueError: There is no query at all.
    """
    if image is None and text is None and rows.shape[2] < 3:
        raise ValueError("The mask needs queries: image, text or rational")
    attended, _ = _MaskAttention.apply(rows, image, text, joint)
    return attended


def _chunks(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and heads whose K x K matrices make a chunk; one matrix at least."""
    batch, classes, _, heads, _ = rows.shape
    budget = CHUNK_ELEMENTS["cpu" if rows.device.type == "cpu" else "other"]
    matrices = max(1, budget // classes**2)
    images, part = max(1, matrices // heads), min(heads, matrices)
    for b in range(0, batch, images):
        for h in range(0, heads, part):
            yield slice(b, b + images), slice(h, h + part)


def _queries(rows: Tensor, text: Tensor | None, b: slice, h: slice) -> list[Tensor]:
    """Query sets with one query per class: each (b or 1, h, K, Dh)."""
    found = []
    if text is not None:
        found.append((text[None, :, h] if text.ndim == 3 else text[b, :, h]).transpose(1, 2))
    if rows.shape[2] == 3:
        found.append(rows[b, :, 0, h].transpose(1, 2))
    return found


class _MaskAttention(torch.autograd.Function):
    """Chunked forward, and backward by recomputation. Keys and values are ``rows``' last two."""

    @staticmethod
    def forward(
        rows: Tensor, image: Tensor | None, text: Tensor | None, joint: bool
    ) -> tuple[Tensor, Tensor]:
        batch, classes, kinds, heads, _ = rows.shape
        sets = (text is not None) + (kinds == 3)
        share = 1 / (sets + (image is not None))
        out = torch.empty_like(rows[:, :, -1])
        # log of what each row of exp(scores) is divided by to give its share of the average
        log_sums = rows.new_empty(sets, batch, heads, 1 if joint else classes, 1)
        for b, h in _chunks(rows):
            key, value = (rows[b, :, i, h].transpose(1, 2) for i in (-2, -1))
            average: Tensor | None = None
            for i, query in enumerate(_queries(rows, text, b, h)):
                scores = query @ key.transpose(-1, -2)  # (b, h, K, K)
                # Less each row's maximum, so that exp cannot overflow.
                top = scores.amax(-1, keepdim=True)  # (b, h, K, 1)
                log_sum = top + scores.sub_(top).exp_().sum(-1, keepdim=True).log()
                if joint:  # one normaliser for all rows, and K times the softmax
                    log_sum = log_sum.logsumexp(-2, keepdim=True) - math.log(classes)
                log_sums[i, b, h] = log_sum
                scores.mul_((top - log_sum).exp_())
                average = scores if average is None else average.add_(scores)
            mixed: Any = 0 if average is None else average @ value  # (b, h, K, Dh)
            if image is not None:
                row = (image[b, h, None] @ key.transpose(-1, -2)).softmax(-1)  # (b, h, 1, K)
                mixed = mixed + row @ value
            out[b, :, h] = (mixed * share).transpose(1, 2)
        return out, log_sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        rows, image, text, ctx.joint = inputs
        sets = [image is not None, text is not None, rows.shape[2] == 3]
        ctx.share = 1 / sum(sets)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(rows, image, text, output[1])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        rows: Tensor,
        image: Tensor | None,
        text: Tensor | None,
        joint: bool,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """N calls at once, for ``torch.func.vmap``: their images are those of one larger batch."""
        count = info.batch_size

        def side_by_side(x: Tensor, dim: int | None) -> Tensor:
            return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)

        rows = side_by_side(rows, in_dims[0])  # (N, B, K, 2 or 3, H, Dh)
        batch = rows.shape[1]
        if image is not None:
            image = side_by_side(image, in_dims[1]).flatten(0, 1)  # (N * B, H, Dh)
        if text is not None and in_dims[2] is not None:  # else all calls ask with the same classes
            text = text.movedim(in_dims[2], 0)  # (N, K, H, Dh)
            text = text[:, None].expand(-1, batch, -1, -1, -1).flatten(0, 1)  # (N * B, K, H, Dh)
        out, log_sums = _MaskAttention.apply(rows.flatten(0, 1), image, text, joint)
        return (out.unflatten(0, (count, batch)), log_sums.unflatten(1, (count, batch))), (0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, image, text, log_sums = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        grad_image = None if image is None else torch.empty_like(image)
        grad_text = None if text is None else torch.zeros_like(text)
        for b, h in _chunks(rows):
            key, value = (rows[b, :, i, h].transpose(1, 2) for i in (-2, -1))
            grad_out = grad[b, :, h].transpose(1, 2) * ctx.share  # (b, h, K, Dh)
            grad_matrix = grad_out @ value.transpose(-1, -2)  # (b, h, K, K)
            queries = _queries(rows, text, b, h)
            # Made again from the saved normalisers: one subtraction instead of a softmax.
            matrices = [
                (query @ key.transpose(-1, -2)).sub_(log_sums[i, b, h]).exp_()
                for i, query in enumerate(queries)
            ]
            grad_key: Any = 0
            grad_value: Any = sum(matrices).transpose(-1, -2) @ grad_out if matrices else 0
            for i, (query, matrix) in enumerate(zip(queries, matrices, strict=True)):
                grad_scores = _softmax_backward(matrix, grad_matrix, ctx.joint)
                grad_query = grad_scores @ key
                grad_key = grad_key + grad_scores.transpose(-1, -2) @ query
                # _queries lists the classes' set first, if there is one, then the rows' own.
                if grad_text is not None and i == 0 and grad_text.ndim == 3:
                    grad_text[:, h] += grad_query.sum(0).transpose(0, 1)  # all images asked it
                elif grad_text is not None and i == 0:
                    grad_text[b, :, h] = grad_query.transpose(1, 2)
                else:
                    grad_rows[b, :, 0, h] = grad_query.transpose(1, 2)
            if image is not None and grad_image is not None:
                query = image[b, h, None]  # (b, h, 1, Dh)
                row = (query @ key.transpose(-1, -2)).softmax(-1)  # (b, h, 1, K)
                grad_sum = grad_out.sum(-2, keepdim=True)  # all K rows of the output got this one
                grad_value = grad_value + row.transpose(-1, -2) * grad_sum
                grad_scores = _softmax_backward(row, grad_sum @ value.transpose(-1, -2), False)
                grad_image[b, h] = (grad_scores @ key).squeeze(-2)
                grad_key = grad_key + grad_scores.transpose(-1, -2) * query
            grad_rows[b, :, -2, h] = grad_key.transpose(1, 2)
            grad_rows[b, :, -1, h] = grad_value.transpose(1, 2)
        return grad_rows, grad_image, grad_text, None


def _softmax_backward(matrix: Tensor, grad: Tensor, joint: bool) -> Tensor:
    """Gradient of the scores; overwrites ``matrix``, whose entries sum to 1 a row or K in all."""
    if joint:
        flat, other = matrix.flatten(-2)[..., None, :], grad.flatten(-2)[..., None]
        mean = flat @ other / matrix.shape[-1]  # a dot product needs no temporary matrix
    else:
        mean = (matrix * grad).sum(-1, keepdim=True)
    return matrix.mul_(grad - mean)
