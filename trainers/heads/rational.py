"""Heads, from image and text features to logits: CLIP's cosine and RAda's rational mask.

Notation: B images, K classes, D embedding width, H heads, Dh = D / H. A head touches no encoder, so
that it combines with every way of adapting one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.names import check_availability
from trainers.heads.mask_attention import mask_attention

QUERIES = ("image", "text", "rational")
SOFTMAX = ("joint", "row")


class HeadOutput(NamedTuple):
    """What a head computes."""

    logits: Tensor  # (B, K)
    penalty: Tensor  # what the regulariser adds to the loss before its weight, a scalar
    mask: Tensor | None = None  # M, (B, K, D), if the head has one


def cosine_logits(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's logits, s f h^T: (B, D), (K, D) -> (B, K)."""
    return scale * image @ text.to(image.dtype).T


class CosineHead(nn.Module):
    """CLIP's own head; nothing to train."""

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """See :func:`cosine_logits`."""
        return HeadOutput(cosine_logits(image, text, scale), image.new_zeros(()))


# The mask's distance from all ones, of ``delta`` = M - 1, (B, K, D). RAda, Table 7. ``l2`` is the
# mean that most released trainers take; ``l2_sum``, an image's squared norm, is K D times as much.
REGULARIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda delta: delta.square().mean(),
    "l2_sum": lambda delta: delta.square().sum((1, 2)).mean(),
    "l1": lambda delta: delta.abs().mean(),
    "linf": lambda delta: delta.abs().flatten(1).amax(1).mean(),
}


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose weight and bias start at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _masked(head: MaskHead, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
    """What :meth:`MaskHead.forward` returns, of features in one precision."""
    fixed = scale.detach()
    # s goes into f, which is smaller than R and than the weights that read R.
    rational = (image * fixed)[:, None] * text  # s R, (B, K, D)
    offset = head.offset(image, text, rational, fixed)
    delta = F.threshold(offset, -1, -1)  # M - 1; clamp takes longer to differentiate
    correction = (delta * rational).sum(-1)  # (B, K)
    # The mask's share is added to CLIP's own logits, which a mask of ones leaves exact.
    # The quotient is 1, and brings the gradient of s.
    logits = cosine_logits(image, text, scale) + scale / fixed * correction
    return HeadOutput(logits, head.regularizer(delta), 1 + delta)


class MaskHead(nn.Module):
    """Logits from a mask over the rational matrix; a subclass makes the mask.

    RAda (arXiv:2507.15480): with R[b,k,d] = f[b,d] h[k,d], ``logits = s sum_d M R``, M = relu(1 +
    ``offset``). An offset of 0 gives CLIP's logits to the last bit: what is added to them is
    ``s sum_d (M - 1) R``, and M - 1 = max(offset, -1). It is computed in single precision at
    least; bfloat16 cannot tell a mask of 1 from 1.003.

    Args:
        regularizer: l2, l2_sum, l1 or linf, see ``REGULARIZERS``.
    """

    # A function of a head, not a method: a copy of a compiled head has to run with its own weights.
    masked: Callable[..., HeadOutput] = staticmethod(_masked)

    def __init__(self, regularizer: str = "l2") -> None:
        super().__init__()
        self.regularizer = REGULARIZERS[check_availability(regularizer, REGULARIZERS, "REG")]

    def offset(self, image: Tensor, text: Tensor, rational: Tensor, scale: Tensor) -> Tensor:
        """How far the mask is from 1 before the relu, (B, K, D).

        ``image`` f (B, D) and ``text`` h (K, D) have unit norm, ``rational`` is s R, (B, K, D), and
        ``scale`` s has no gradient.
        """
        raise NotImplementedError

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """Logits, penalty and mask.

        Args:
            image: f, unit norm, (B, D).
            text: h, unit norm, (K, D).
            scale: s, a scalar. The attention sees it detached.
        """
        with torch.autocast(image.device.type, enabled=False):
            dtype = torch.promote_types(image.dtype, torch.float32)
            return self.masked(self, image.to(dtype), text.to(dtype), scale.to(dtype))

    def compile_parts(self, compiler: Callable[[Any], Any]) -> None:
        """Compile all but the attention over the classes, which chunks its products itself."""
        if any(p.requires_grad for p in self.parameters()):  # else it is copied and vectorised
            self.masked = compiler(_masked)


class RationalHead(MaskHead):
    """RAda's mask: multi-query attention over the rational matrix (arXiv:2507.15480, section 3).

    Queries Wq1(sqrt(s) f) repeated over classes, Wq2(sqrt(s) h) repeated over images and Wq3(s R);
    keys and values Wk(s R), Wv(s R). The attention matrices are averaged, applied to the values and
    projected; that projection starts at zero, so that the mask is all ones. One layer with all
    three queries has 6 (D^2 + D) parameters. The relu, the temperature, sqrt(s) and the number of
    heads are the released code's; the paper does not give them.

    Further layers (appendix H) take the mask so far, before its relu, for their query and add to
    it; they have 4 (D^2 + D) parameters each.

    Args:
        embed_dim: D.
        num_heads: H.
        temperature: What scores are divided by, besides sqrt(Dh).
        queries: Query sets of the first layer, any of ``QUERIES``.
        softmax: ``joint``, one softmax over all K * K scores of a head, times K (released code);
            ``row``, ordinary attention, as the paper reads.
        layers: Number of attention layers.
        regularizer: See :class:`MaskHead`.

    Raises:
        ValueError: D is not divisible by H, or another argument cannot be used.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        temperature: float = 1.0,
        queries: Sequence[str] = QUERIES,
        softmax: str = "joint",
        layers: int = 1,
        regularizer: str = "l2",
    ) -> None:
        super().__init__(regularizer)
        if num_heads < 1 or embed_dim % num_heads:
            fitting = [n for n in range(1, 33) if embed_dim % n == 0]
            raise ValueError(
                f"HEADS: the embedding width D = {embed_dim} is not divisible by {num_heads} "
                f"heads; {', '.join(map(str, fitting))} would be"
            )
        if temperature <= 0:
            raise ValueError(f"TEMP must be positive, got {temperature}")
        if layers < 1:
            raise ValueError(f"MASK_LAYERS must be at least 1, got {layers}")
        if not queries or len(set(queries)) < len(queries):
            raise ValueError(f"QUERIES must name at least one query once, got {tuple(queries)}")
        for name in queries:
            check_availability(name, QUERIES, "QUERIES")
        self.embed_dim = embed_dim
        joint = check_availability(softmax, SOFTMAX, "SOFTMAX") == "joint"
        first = RationalAttention(embed_dim, num_heads, temperature, queries, joint)
        self.layers = nn.ModuleList(
            [first]
            + [
                RationalAttention(embed_dim, num_heads, temperature, ("rational",), joint)
                for _ in range(layers - 1)
            ]
        )

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuse ``head.*`` of a checkpoint with another mask, by the config keys that would fit.

        Raises:
            ValueError: They have another number of layers, or another width.
        """
        saved = {m[1] for name in state if (m := re.match(r"head\.layers\.(\d+)\.", name))}
        if not saved:
            return  # another kind of head: the engine lists the keys
        if len(saved) != len(self.layers):
            raise ValueError(
                f"The checkpoint's mask has {len(saved)} attention layers, the model's has "
                f"{len(self.layers)}; set MASK_LAYERS in the trainer's section to {len(saved)}"
            )
        key = state.get("head.layers.0.key.weight")
        if key is not None and key.shape[-1] != self.embed_dim:
            raise ValueError(
                f"The checkpoint's mask is for features of width D = {key.shape[-1]}, the "
                f"backbone's have {self.embed_dim}; set --backbone to the model it was trained on"
            )

    def offset(self, image: Tensor, text: Tensor, rational: Tensor, scale: Tensor) -> Tensor:
        """See :meth:`MaskHead.offset`."""
        first, *others = self.layers
        offset = first(rational, scale, image=image, text=text)
        for layer in others:
            offset = offset + layer(rational, scale, mask=1 + offset)
        return offset


class RationalAttention(nn.Module):
    """One attention layer over the rational matrix; its output starts at zero.

    In layers after the first, the query ``rational`` reads the mask so far instead of R. For the
    other arguments see :class:`RationalHead`; ``joint`` is its softmax.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        temperature: float,
        queries: Sequence[str],
        joint: bool,
    ) -> None:
        super().__init__()
        self.num_heads, self.joint = num_heads, joint
        self.factor = 1 / (math.sqrt(embed_dim // num_heads) * temperature)
        self.query = nn.ModuleDict(
            {name: nn.Linear(embed_dim, embed_dim) for name in QUERIES if name in queries}
        )
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.out = zero_linear(embed_dim, embed_dim)

    def forward(
        self,
        rational: Tensor,
        scale: Tensor,
        *,
        image: Tensor | None = None,
        text: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What this layer adds to the mask, (B, K, D), of s R (B, K, D), s, f (B, D) and h (K, D).

        ``mask`` is the mask so far, (B, K, D); None in the first layer.
        """
        root = scale.sqrt()
        attended = mask_attention(
            self.key(rational) * self.factor,  # once, instead of in the queries or the scores
            self.value(rational),
            rational=self._query("rational", rational if mask is None else mask),
            image=self._query("image", None if image is None else image * root),
            text=self._query("text", None if text is None else text * root),
            heads=self.num_heads,
            joint=self.joint,
        )  # (B, K, D)
        return self.out(attended)  # (B, K, D)

    def _query(self, name: str, features: Tensor | None) -> Tensor | None:
        if name not in self.query or features is None:
            return None
        return self.query[name](features)
