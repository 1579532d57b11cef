"""Frozen weights in half precision while a model trains or is tested under autocast.

Autocast rounds the factors of products to half precision wherever they are used. Of weights that
train it remembers the rounded ones during a step; frozen ones it rounds again at every use, some
250 times in a step of LightRA with ViT-B/16. Rounded once, they give the same results bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from clip.adapters.base import adapters
from clip.backbones import Backbone
from clip.transformer import AdaptedAttention

# Matrices that belong to no layer: what features are multiplied by at a tower's end.
_PROJECTIONS = ("proj", "text_projection")


class RoundedWeights:
    """Puts rounded weights into a backbone and takes them out again.

    They are in it only while an epoch or a test runs: a few uses of a weight outside of autocast,
    such as the hash of a frozen encoder, must see the pre-trained ones. Both kinds are in memory
    meanwhile.

    Args:
        backbone: The model whose frozen weights are meant.
        dtype: What autocast rounds to.
        image_side: Whether the vision tower is used with autocast.
        text_side: Whether the text tower is. In tests it is not: it runs once, and some methods
            make their classifier's text features then, in single precision.
    """

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype,
        *,
        image_side: bool = True,
        text_side: bool = True,
    ) -> None:
        self.backbone, self.dtype = backbone, dtype
        self.image_side, self.text_side = image_side, text_side
        self._full: list[tuple[nn.Module, str, nn.Parameter]] = []

    def put(self) -> None:
        """Replace the frozen weights that autocast rounds, unless they are replaced already."""
        if self._full:
            return
        for module, name in frozen_factors(self.backbone, self.image_side, self.text_side):
            full: Any = module._parameters[name]
            rounded = nn.Parameter(full.detach().to(self.dtype), requires_grad=False)
            # Past nn.Module's own bookkeeping: the weights are the same, and so is their order.
            module._parameters[name] = rounded
            self._full.append((module, name, full))

    def take_out(self) -> None:
        """Put the weights back that were there before `put`."""
        for module, name, full in self._full:
            module._parameters[name] = full
        self._full = []


def frozen_factors(
    backbone: Backbone, image_side: bool = True, text_side: bool = True
) -> Iterator[tuple[nn.Module, str]]:
    """Owner and name of each frozen weight of the towers that autocast would round at its use.

    These are the factors and biases of linear layers, convolutions and attention, and projections;
    not those of norms and embeddings, which autocast leaves in single precision.
    """
    model = backbone.model
    other: list[nn.Module] = [adapter for _, adapter in adapters(model)]
    # PyTorch's own attention may choose another path, of other rounding, by the weights' type.
    other += [m for m in model.modules() if _is_foreign_attention(m)]
    if not image_side:
        other.append(model.visual)
    skipped = {id(module) for top in other for module in top.modules()}
    # By this one open_clip tells in which type texts have to enter the tower.
    typed = _first_matrix(backbone.text_transformer)
    for module in (model if text_side else model.visual).modules():
        for name in () if id(module) in skipped else _factors(module):
            weight = module._parameters.get(name)
            frozen = weight is not None and not weight.requires_grad and weight is not typed
            if frozen and weight.dtype == torch.float32:
                yield module, name


def _factors(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return ("weight", "bias")
    if isinstance(module, nn.MultiheadAttention):
        return ("in_proj_weight", "in_proj_bias")
    return _PROJECTIONS


def _is_foreign_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and not isinstance(module, AdaptedAttention)


def _first_matrix(transformer: Any) -> nn.Parameter | None:
    return None if transformer is None else transformer.resblocks[0].mlp.c_fc.weight
