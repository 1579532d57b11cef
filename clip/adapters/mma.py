"""MMA's multi-modal adapters: bottlenecks beside the blocks of both towers, with a shared middle.

Notation: B samples, L tokens, W transformer width, r bottleneck width, a scale.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.adapters import Adapter, checked_depth, refuse_second
from clip.backbones import Backbone


class MultiModalAdapter(Adapter):
    """One bottleneck for a pair of blocks, one of each tower.

    MMA (Yang et al., CVPR 2024): ``x_{i+1} = Block_i(x_i) + a * A(ln_1(x_i))`` with
    ``A(x) = up(relu(shared(relu(down(x)))))``; ``down`` and ``up`` belong to a tower, ``shared`` to
    both, all have biases. The adapter is parallel to the whole block and reads its input through
    the block's own, frozen ``ln_1``.

    As in the authors' code (not in the paper), the gradient of the adapter's parameters leaves out
    the factor a unless ``rescale_gradient`` is false: with a = 0.001 they would hardly move at the
    learning rates of prompts. The gradient passed down to x_i is the true one in either case.

    Weights are drawn from N(0, 2 / fan_out) (Kaiming), biases start at 0.

    Args:
        text_width: W of the text tower.
        vision_width: W of the vision tower.
        bottleneck: r.
        scale: a.
        zero_init: Start with ``up`` at 0, so that the host computes what it did; not MMA's way.
        rescale_gradient: See above.
    """

    def __init__(
        self,
        text_width: int,
        vision_width: int,
        *,
        bottleneck: int = 32,
        scale: float = 0.001,
        zero_init: bool = False,
        rescale_gradient: bool = True,
    ) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ValueError(
                f"bottleneck is the adapters' inner width and must be at least 1, got {bottleneck}"
            )
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(
                f"scale multiplies what the adapters add and must be positive and finite, "
                f"got {scale}; layers 0 means no adapters"
            )
        self.scale, self.rescale_gradient = scale, rescale_gradient
        self.down_text = nn.Linear(text_width, bottleneck)
        self.down_vision = nn.Linear(vision_width, bottleneck)
        self.shared = nn.Linear(bottleneck, bottleneck)
        self.up_text = nn.Linear(bottleneck, text_width)
        self.up_vision = nn.Linear(bottleneck, vision_width)
        linears: list[Any] = list(self.children())
        for linear in linears:  # PyTorch's own start is uniform and scaled by fan_in
            nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(linear.bias)
        if zero_init:
            nn.init.zeros_(self.up_text.weight)
            nn.init.zeros_(self.up_vision.weight)

    def forward(self, x: Tensor, down: nn.Linear, up: nn.Linear) -> Tensor:
        """What to add to a block's output, a * A(x), for its normalised input x (..., W).

        ``down`` and ``up`` are those of the block's tower.
        """
        # Leaving a out of the gradient at the output and putting it back at the input multiplies
        # the parameters' gradients by 1 / a, without tiny numbers that half precision would lose.
        if self.rescale_gradient:
            x = ScaleSeparately.apply(x, 1.0, self.scale)
        y = _linear(down, x).relu()
        y = _linear(up, _linear(self.shared, y).relu())
        return ScaleSeparately.apply(y, self.scale, 1.0 if self.rescale_gradient else self.scale)

    def _beside(self, tower: str, x: Tensor) -> Tensor | None:
        """What a block of a tower, text or vision, adds to its output; ``x`` is normalised."""
        if not self.enabled:
            return None
        return self(x, getattr(self, f"down_{tower}"), getattr(self, f"up_{tower}"))


class ScaleSeparately(torch.autograd.Function):
    """Multiplies values by one number and gradients by another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value_factor: float, gradient_factor: float) -> Tensor:
        """``value_factor * x``."""
        ctx.gradient_factor = gradient_factor
        return x * value_factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """``gradient_factor * gradient``."""
        return gradient * ctx.gradient_factor, None, None


def attach_multimodal_adapters(
    backbone: Backbone, *, layers: int, **options: Any
) -> list[MultiModalAdapter]:
    """Give the last ``layers`` blocks of both towers multi-modal adapters.

    Blocks are paired from the end, so that towers of different depths pair their last ones.

    Args:
        backbone: With transformers in both towers; it gets the attribute
            ``multimodal_adapters``, a module list in the order of the blocks.
        layers: Adapted pairs; more than the shallower tower has means all of them, 0 none.
        options: Of :class:`MultiModalAdapter`.

    Raises:
        ValueError: ``layers`` is negative, an option is out of range, a tower has no such blocks
            (ResNets, timm models), or they have been adapted before.
    """
    if layers < 0:
        raise ValueError(f"layers must be 0 or more adapted pairs of blocks, got {layers}")
    if layers == 0:
        return []
    for tower in ("vision", "text"):
        layers = checked_depth(backbone, tower, layers, "multi-modal adapters", "adapted layers")
    refuse_second(backbone, "multimodal_adapters", "multi-modal adapters")
    text, vision = backbone.text_transformer, backbone.vision_transformer
    adapters: list[MultiModalAdapter] = []
    for text_block, vision_block in zip(
        text.resblocks[-layers:], vision.resblocks[-layers:], strict=True
    ):
        adapter = MultiModalAdapter(text.width, vision.width, **options)
        adapter.to(backbone.logit_scale.device)
        text_block.beside = partial(adapter._beside, "text")
        vision_block.beside = partial(adapter._beside, "vision")
        adapters.append(adapter)
    backbone.multimodal_adapters = nn.ModuleList(adapters)
    return adapters


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """The learned single-precision map, in the type of the stream it is applied to."""
    return F.linear(x, linear.weight.to(x), linear.bias.to(x))
