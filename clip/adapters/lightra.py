"""LightRA's residual attention and how it is attached to a CLIP tower.

Notation: B samples, L tokens, H heads, Dh head width, W = H * Dh, N learned keys per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clip.adapters import Adapter, checked_depth
from clip.transformer import AdaptedAttention


class ResidualAttention(Adapter):
    """Attention from the frozen queries to N learned keys and values per head.

    LightRA (doi:10.1109/TMM.2026.3676654): ``out_proj(SDPA(q, k, v, mask) + SDPA(q, Pk, Pv))``.
    The second term has no mask, in the causal text tower too. ``Pk ~ U(-1, 1)`` and ``Pv = 0``, so
    the module adds exactly 0 until it is trained.

    Since ``out_proj`` is linear, the second term can be projected by itself; and since the queries
    are only ever multiplied by the learned keys, and the result by the learned values, both frozen
    W x W projections fold into matrices with H * N columns. The frozen attention stays untouched
    (PyTorch's own, fused), and what is added costs 2 W H N instead of 2 W^2 operations a token.

    Args:
        num_heads: H of the host attention.
        head_dim: Dh of the host attention.
        n_ctx: N.
    """

    def __init__(self, num_heads: int, head_dim: int, n_ctx: int) -> None:
        super().__init__()
        if n_ctx < 1:
            raise ValueError(
                f"n_ctx is the number of learned keys and must be at least 1, got {n_ctx}"
            )
        shape = (num_heads, n_ctx, head_dim)
        self.key = nn.Parameter(torch.empty(shape).uniform_(-1, 1))
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(
        self, x: Tensor, query_weight: Tensor, query_bias: Tensor | None, out_weight: Tensor
    ) -> Tensor:
        """The projected residual; exactly zero at initialisation.

        Args:
            x: Input of the host attention, (B, L, W).
            query_weight: Query rows of the host's in-projection, (W, W).
            query_bias: Its bias, (W,), or None.
            out_weight: Weight of the host's ``out_proj``, (W, W). Its bias belongs to the host.

        Returns:
            What to add to the host's output, (B, L, W).
        """
        num_heads, n_ctx, head_dim = self.key.shape
        keys = self.key * head_dim**-0.5
        wq = query_weight.view(num_heads, head_dim, -1)  # (H, Dh, W)
        to_scores = (keys @ _in_type_of(keys, wq)).flatten(0, 1)  # (H * N, W)
        bias = None
        if query_bias is not None:
            bq = query_bias.view(num_heads, head_dim, 1)  # (H, Dh, 1)
            bias = (keys @ _in_type_of(keys, bq)).flatten().to(x.dtype)  # (H * N,)
        scores = nn.functional.linear(x, to_scores.to(x.dtype), bias)  # (B, L, H * N)
        # One softmax per head, over its N keys; amp computes it in single precision.
        weights = scores.unflatten(-1, (num_heads, n_ctx)).softmax(-1).flatten(-2)
        wo = out_weight.view(-1, num_heads, head_dim).permute(1, 2, 0)  # (H, Dh, W)
        to_output = (self.value @ _in_type_of(self.value, wo)).flatten(0, 1)  # (H * N, W)
        return weights.to(x.dtype) @ to_output.to(x.dtype)  # (B, L, W)


def _in_type_of(learned: Tensor, weight: Tensor) -> Tensor:
    """A frozen weight in the type of what it is multiplied by; autocast sees to it by itself."""
    autocast = torch.is_autocast_enabled(weight.device.type)
    return weight if autocast else weight.to(learned.dtype)


def attach_residual_attention(
    backbone: Any,
    *,
    n_ctx_vision: int = 4,
    n_ctx_text: int = 4,
    vision_depth: int = 12,
    text_depth: int = 12,
) -> list[str]:
    """Give the first ``depth`` layers of both towers a residual attention.

    The wrapped layers keep their parameters and state-dict keys.

    Args:
        backbone: A :class:`clip.Backbone` with transformer towers.
        n_ctx_vision: Learned keys per head in the vision tower, N.
        n_ctx_text: The same in the text tower.
        vision_depth: Adapted layers of the vision tower; more than it has means all, 0 none.
        text_depth: The same for the text tower.

    Returns:
        Qualified names of the residual modules, vision first.

    Raises:
        ValueError: A depth is negative, a tower has no such layers (ResNets, timm models), or
            they have been adapted before.
    """
    hosts: list[tuple[AdaptedAttention, int]] = []
    for tower, n_ctx, depth in (
        ("vision", n_ctx_vision, vision_depth),
        ("text", n_ctx_text, text_depth),
    ):
        depth = checked_depth(backbone, tower, depth, "residual attention", "adapted layers")
        transformer = getattr(backbone, f"{tower}_transformer")
        hosts += [(block.attn, n_ctx) for block in transformer.resblocks[:depth]] if depth else []
    # All are checked before the first is changed, so that an error leaves the backbone as it was.
    for attention, _ in hosts:
        if not isinstance(attention, AdaptedAttention):
            raise ValueError(
                f"Blocks with {type(attention).__name__} cannot carry residual attention"
            )
        if attention.residual is not None:
            raise ValueError("This backbone has residual attention already")
    for attention, n_ctx in hosts:
        residual = ResidualAttention(attention.num_heads, attention.head_dim, n_ctx)
        attention.residual = residual.to(attention.in_proj_weight.device)
    return [
        name for name, module in backbone.named_modules() if isinstance(module, ResidualAttention)
    ]
