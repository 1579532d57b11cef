"""open_clip's transformer blocks, opened for what methods add to them, and without idle work.

Same parameters, same state-dict keys, the same function to rounding. What is different: attention
is written out around PyTorch's fused kernel (:class:`AdaptedAttention`), tokens may be packed
(:mod:`clip.layouts`), and the last block computes only the tokens that features are read at.

Notation: B samples, L tokens, W transformer width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from clip.layouts import Layout, Whole


class AdaptedAttention(nn.MultiheadAttention):
    """Self-attention with PyTorch's parameters and keys, and a ``residual`` slot.

    PyTorch's own module transposes tokens to (L, B, W), where a frozen projection becomes L small
    products; and in evaluation it takes another path that rounds differently. This one multiplies
    tokens as they lie, in the same way in both modes.
    """

    residual: nn.Module | None

    @classmethod
    def around(cls, host: nn.MultiheadAttention) -> AdaptedAttention:
        """Wrap ``host``, sharing its parameters."""
        self = cls(
            host.embed_dim, host.num_heads, bias=host.in_proj_bias is not None,
            batch_first=True, device="meta",
        )  # fmt: skip
        self.in_proj_weight, self.in_proj_bias = host.in_proj_weight, host.in_proj_bias
        self.out_proj = host.out_proj
        self.residual = None
        return self

    def project(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, l, W) of the tokens ``query``; keys and values (B, L, W) of ``x``."""
        wq, bq, wkv, bkv = self._in_projection()
        k, v = F.linear(x, wkv, bkv).chunk(2, -1)
        return F.linear(query, wq, bq), k, v

    def merge(self, query: Tensor, attended: Tensor) -> Tensor:
        """The output projection of what was ``attended`` to, and the residual: (B, l, W)."""
        out = self.out_proj(attended)
        if self.residual is not None and self.residual.enabled:
            wq, bq, *_ = self._in_projection()
            out = out + self.residual(query, wq, bq, self.out_proj.weight)
        return out

    def attend(self, query: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """What the tokens ``query`` get from the tokens ``x``, in the form of ``query``.

        Args:
            query: All of ``x`` or the pooled tokens, (B, l, W).
            x: (B, L, W).
            layout: How they lie.
        """
        return self.merge(query, layout.attend(*self.project(query, x), self.num_heads))

    def _in_projection(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Weight and bias of the queries, then of keys and values; views.

        The in-projection stacks queries, keys and values, W rows each. Queries by themselves: keys
        and values can be freed once a layout has put them in order.
        """
        width, bias = self.embed_dim, self.in_proj_bias
        wq, wkv = self.in_proj_weight.split([width, 2 * width])
        bq, bkv = (None, None) if bias is None else bias.split([width, 2 * width])
        return wq, bq, wkv, bkv

    def forward(  # type: ignore[override]
        self, query: Tensor, *args: Tensor, attn_mask: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, None]:
        """Self-attention of ``query`` (B, L, W), the only kind there is; no weights."""
        return self.attend(query, query, Whole(attn_mask)), None


class SiLUQuickGELU(nn.Module):
    """OpenAI's ``x sigmoid(1.702 x)`` by PyTorch's fused SiLU, which keeps one tensor, not two."""

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        return F.silu(x * 1.702).mul_(1 / 1.702)


def _project(block: OpenBlock, wanted: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`AdaptedAttention.project`."""
    return block.attn.project(wanted, y)


def _finish(block: OpenBlock, x: Tensor, wanted: Tensor, attended: Tensor) -> Tensor:
    """A block behind its attention: of tokens x, x normalised, attended tokens, (B, l, W) each."""
    x = x + block.ls_1(block.attn.merge(wanted, attended))
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    added = None if block.beside is None else block.beside(wanted)
    return x if added is None else x + added


class OpenBlock(ResidualAttentionBlock):
    """A block of open_clip's that takes layouts and has a slot ``beside`` the whole of it.

    Attributes:
        last: Nothing reads the block's output but at the pooled tokens. Without a layout these are
            the class tokens; with a plain mask all tokens are computed, as open_clip does.
        beside: What is added to the block's output, a function of its normalised input.
    """

    last: bool
    beside: Callable[[Tensor], Tensor | None] | None
    # Functions of a block, not methods: a copy of a compiled block has to run with its own weights.
    project: Callable[..., tuple[Tensor, Tensor, Tensor]] = staticmethod(_project)
    finish: Callable[..., Tensor] = staticmethod(_finish)

    @classmethod
    def around(cls, host: ResidualAttentionBlock, *, last: bool) -> OpenBlock:
        """Wrap ``host``, sharing its parameters."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        for name, module in host.named_children():
            setattr(self, name, module)
        self.attn = AdaptedAttention.around(host.attn)
        if type(self.mlp.gelu) is QuickGELU:
            self.mlp.gelu = SiLUQuickGELU()
        self.last, self.beside = last, None
        return self.train(host.training)

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Any = None,
    ) -> Tensor:
        """Tokens (B, L, W) -> (B, L, W), or the pooled ones; ``attn_mask`` may be a layout."""
        layout = attn_mask if isinstance(attn_mask, Layout) else Whole(attn_mask)
        x = q_x
        y = wanted = self.ln_1(x)
        if self.last and (attn_mask is None or layout is attn_mask):
            x, wanted = layout.pooled(x), layout.pooled(y)
        heads = self.attn.num_heads
        return self.finish(self, x, wanted, layout.attend(*self.project(self, wanted, y), heads))

    def compile_parts(self, compiler: Callable[[Any], Any]) -> None:
        """Compile what goes token by token; attention, which depends on the layout, stays as it is.

        So other texts, of other lengths, are no more than another number of tokens.
        """
        self.project, self.finish = compiler(_project), compiler(_finish)


def open_blocks(transformer: Any, *, pools: bool) -> None:
    """Replace the blocks of a tower by :class:`OpenBlock` with the same weights.

    Args:
        transformer: A tower's stack of ``resblocks``, or None.
        pools: The tower reads its features at one token of each sequence, behind all blocks.
    """
    blocks = getattr(transformer, "resblocks", None)
    if blocks is None or any(type(block) is not ResidualAttentionBlock for block in blocks):
        return
    last = len(blocks) - 1
    for index, block in enumerate(blocks):
        blocks[index] = OpenBlock.around(block, last=pools and index == last)
    transformer.batch_first = True


def is_open(transformer: Any) -> bool:
    """Whether :func:`open_blocks` has replaced the blocks, so that they take layouts."""
    return all(isinstance(block, OpenBlock) for block in transformer.resblocks)
