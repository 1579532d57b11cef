"""The mask's attention as one operator of PyTorch's, for heads that are compiled.

Traced like the code around it, its loops over chunks would become hundreds of operations, and other
ones for every batch size. As an operator it is one node, whose inside stays as it is.

Notation: B images, K classes, H heads, as in :mod:`trainers.heads.mask_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainers.heads.mask_attention import backward_pass, forward_pass, kept_shape

_INPUTS = "Tensor key, Tensor value, Tensor? rational, Tensor? image, Tensor? text"


@torch.library.custom_op(
    "rada::mask_attention",
    mutates_args=(),
    schema=f"({_INPUTS}, int heads, bool joint, bool keep) -> (Tensor, Tensor)",
)
def apply_operator(*inputs: Any) -> tuple[Tensor, Tensor]:
    """See :func:`trainers.heads.mask_attention.forward_pass`."""
    return forward_pass(*inputs)


@torch.library.custom_op(
    "rada::mask_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor kept, int heads, bool joint) -> Tensor[]",
)
def _backward_operator(*inputs: Any) -> list[Tensor]:
    """Gradients of those tensors that were given, in the order of the inputs."""
    return [grad for grad in backward_pass(*inputs) if grad is not None]


@apply_operator.register_fake
def _(
    key: Tensor, value: Tensor, rational: Any, image: Any, text: Any, heads: int, _: Any, keep: bool
) -> tuple[Tensor, Tensor]:
    sets = (rational is not None) + (text is not None)
    kept = key.new_empty(kept_shape(key, sets, heads, keep))  # (query sets, B or 0, H, K, K)
    return key.new_empty(key.shape), kept


@_backward_operator.register_fake
def _(grad: Tensor, *inputs: Any) -> list[Tensor]:
    key, _, rational, image, text = inputs[:5]
    like = key, key, rational, image, text
    return [x.new_empty(x.shape) for x in like if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.heads, ctx.joint, _ = inputs
    ctx.set_materialize_grads(False)  # of the kept matrices it would be as many zeros
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    found = iter(_backward_operator(grad, *ctx.saved_tensors, ctx.heads, ctx.joint))
    given = ctx.saved_tensors[:5]
    return (*(None if x is None else next(found) for x in given), None, None, None)


apply_operator.register_autograd(_backward, setup_context=_setup_context)
