"""RAda's mask adapted to many images at once: each has a copy of the weights of its own.

Notation: N images, each with S views; K classes, D embedding width, H heads, Dh = D / H. What
belongs to one image lies side by side with the others' in tensors with N in front, so that one
batched product serves all.
Nothing is shared between images: a batch of N gives what N batches of one would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainers.heads import RationalHead, cosine_logits
from trainers.heads.mask_attention import mask_attention

Weights = dict[str, Tensor]
Loss = Callable[[Tensor], Tensor]


def stacked_weights(head: RationalHead, count: int) -> list[Weights]:
    """Weights of each layer, ``count`` times: matrices (N, in, out), biases (N, 1, out).

    Rational queries, keys and values of the first layer are one matrix, ``rows``; later layers
    ask with the mask, so that their ``query`` is apart. Together as large as ``count`` heads.
    """
    layers = []
    for number, layer in enumerate(_layers(head)):
        parts = {"key": layer.key, "value": layer.value}
        if "rational" in layer.query and number == 0:
            parts = {"query": layer.query["rational"], **parts}
        groups = {"rows": list(parts.values()), "out": [layer.out]}
        if number > 0:
            groups["query"] = [layer.query["rational"]]
        groups |= {n: [layer.query[n]] for n in ("image", "text") if n in layer.query}
        weights: Weights = {}
        for name, linears in groups.items():
            weight = torch.cat([linear.weight.detach() for linear in linears]).T
            bias = torch.cat([linear.bias.detach() for linear in linears])
            weights[f"{name}.weight"] = _copies(weight, count)
            weights[f"{name}.bias"] = _copies(bias[None], count)
        layers.append(weights)
    return layers


def is_untouched(head: RationalHead) -> bool:
    """Whether the mask is all ones because no output projection has been trained yet."""
    outs = [p for layer in _layers(head) for p in layer.out.parameters()]
    return not any(bool(p.any()) for p in outs)


def stacked_logits(
    head: RationalHead, layers: list[Weights], image: Tensor, text: Tensor, scale: Tensor
) -> Tensor:
    """Logits of every image's views under its own weights, as ``head`` computes them.

    Args:
        head: Says how the weights are used; its own are not.
        layers: From :func:`stacked_weights`.
        image: f, unit norm, (N, S, D).
        text: h, unit norm, (K, D).
        scale: s.

    Returns:
        (N, S, K).
    """
    rational = image[:, :, None] * text  # (N, S, K, D)
    offset: Any = 0
    for number, (layer, weights) in enumerate(zip(_layers(head), layers, strict=True)):
        mask = 1 + offset if number else None
        attended = stacked_attention(layer, weights, image, text, rational, scale, mask)
        offset = offset + _linear(attended, weights, "out").view_as(rational)
    correction = (offset.clamp(min=-1) * rational).sum(-1)
    return cosine_logits(image, text, scale) + scale * correction


def stacked_attention(
    layer: Any,
    weights: Weights,
    image: Tensor,
    text: Tensor,
    rational: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """What a layer's output projection gets, (N, S * K, D); see ``RationalAttention``.

    Args:
        layer: Says how the weights are used.
        weights: Of the layer.
        image: f, (N, S, D).
        text: h, (K, D).
        rational: R, (N, S, K, D).
        scale: s.
        mask: The mask so far, (N, S, K, D); None in the first layer.
    """
    count, views, classes, width = rational.shape
    heads, root = layer.num_heads, scale.sqrt()
    rows = _linear((rational * scale).flatten(1, 2), weights, "rows")
    rows = rows.view(count * views, classes, -1, heads, width // heads)
    if mask is not None:
        query = _linear(mask.flatten(1, 2), weights, "query").view_as(rows[:, :, :1])
        rows = torch.cat([query, rows], 2)
    if rows.shape[2] == 3:
        # Keys and values as they are: one pass over all is faster than taking queries apart.
        rows = rows * rows.new_tensor([layer.factor, 1, 1])[:, None, None]
    queries: list[Tensor | None] = [None, None]
    if mask is None and "image" in layer.query:
        asked = _linear(image * root, weights, "image") * layer.factor
        queries[0] = asked.view(count * views, heads, -1)
    if mask is None and "text" in layer.query:
        asked = (
            _linear((text * root).expand(len(weights["text.weight"]), -1, -1), weights, "text")
            * layer.factor
        )
        asked = asked.view(count, 1, classes, heads, -1).expand(-1, views, -1, -1, -1)
        queries[1] = asked.reshape(count * views, classes, heads, -1)
    return mask_attention(rows, *queries, joint=layer.joint).view(count, views * classes, width)


def adapt(
    head: RationalHead,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    loss: Loss,
    *,
    steps: int,
    lr: float,
    weight_decay: float,
) -> list[Weights]:
    """Minimise every image's loss by steps of AdamW on a copy of the mask of its own.

    AdamW works number by number, so ``torch.optim.AdamW`` on stacked weights is AdamW on each
    image's.

    While the output projections are zero, as they are before any training, no gradient reaches
    anything else: the first step then needs the attention once, with the weights that all images
    still share, and no backward pass through it. The other weights only decay.

    Args:
        head: Start of all images; it stays as it is.
        image: f of the views to learn from, (N, S, D).
        text: h, (K, D).
        scale: s.
        loss: Logits (N, S, K) -> (N,).
        steps: Of AdamW, at least 1.
        lr: Of AdamW.
        weight_decay: Of AdamW.

    Returns:
        The adapted weights, for :func:`stacked_logits`.
    """
    image, text, scale = (x.detach() for x in (image, text, scale))
    untouched = is_untouched(head)
    layers = stacked_weights(head, 1 if untouched else len(image))
    fused = image.device.type in ("cpu", "cuda")
    optimizer: torch.optim.AdamW | None = None
    if untouched:
        optimizer = _first_step(head, layers, image, text, scale, loss, lr, weight_decay, fused)
        steps -= 1
        if steps == 0:
            return layers
    leaves = [w.requires_grad_() for weights in layers for w in weights.values()]
    if optimizer is None:
        optimizer = torch.optim.AdamW(leaves, lr=lr, weight_decay=weight_decay, fused=fused)
    for _ in range(steps):
        total = loss(stacked_logits(head, layers, image, text, scale)).sum()
        for leaf, grad in zip(leaves, torch.autograd.grad(total, leaves), strict=True):
            leaf.grad = grad.contiguous()  # the fused kernel reads it as if it were
        optimizer.step()
    return [{n: w.detach() for n, w in weights.items()} for weights in layers]


def _first_step(
    head: RationalHead,
    layers: list[Weights],
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    loss: Loss,
    lr: float,
    weight_decay: float,
    fused: bool,
) -> torch.optim.AdamW:
    """Take the first step from zero output projections; ``layers``, of one copy, become N.

    Returns:
        The optimiser, as if all weights had taken the step.
    """
    count, views, width = image.shape
    flat = image.flatten(0, 1)[None]  # one copy of the weights for all views of all images
    rational = image[:, :, None] * text
    logits = cosine_logits(image, text, scale).requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(loss(logits).sum(), logits)
    grad_out = (grad[..., None] * (scale * rational)).flatten(1, 2)  # (N, S * K, D)
    ones = torch.ones_like(rational).flatten(0, 1)[None]
    outs = []
    for number, (layer, weights) in enumerate(zip(_layers(head), layers, strict=True)):
        attended = stacked_attention(
            layer, weights, flat, text, rational.flatten(0, 1)[None], scale,
            ones if number else None,
        ).view(count, -1, width)  # fmt: skip
        for name, value in weights.items():
            if name.startswith("out."):
                weights[name] = _copies(value[0], count)
                outs.append(weights[name])
        weights["out.weight"].grad = attended.mT @ grad_out
        weights["out.bias"].grad = grad_out.sum(1, keepdim=True)
    optimizer = torch.optim.AdamW(outs, lr=lr, weight_decay=weight_decay, fused=fused)
    optimizer.step()
    for weights in layers:
        for name, value in weights.items():
            if not name.startswith("out."):
                weights[name] = _copies(value[0] * (1 - lr * weight_decay), count)
    others = [w for weights in layers for n, w in weights.items() if not n.startswith("out.")]
    optimizer.add_param_group({"params": others})
    for weight in others:
        optimizer.state[weight] = {
            "step": optimizer.state[outs[0]]["step"].clone(),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    return optimizer


def _layers(head: RationalHead) -> list[Any]:
    return list(head.layers)


def _copies(value: Tensor, count: int) -> Tensor:
    """(rows, columns) -> (count, rows, columns), contiguous."""
    return value.expand(count, -1, -1).clone(memory_format=torch.contiguous_format)


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Every image's own linear layer: (N, rows, in) -> (N, rows, out)."""
    return torch.baddbmm(weights[f"{name}.bias"], x, weights[f"{name}.weight"])
