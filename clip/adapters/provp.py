"""ProVP's progressive vision prompts; notation as in :mod:`clip.adapters.prompts`."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from clip.adapters.prompts import VisionPrompts, install_vision_prompts, prompt_depth
from clip.backbones import Backbone

# As in the release, whatever the tower's patches are: 0.0665 for ViT-B/16 instead of 0.0625.
INIT_PATCH = 14


class ProgressivePrompts(VisionPrompts):
    """Vision prompts that carry over a share of the previous block's output in their slots.

    ProVP (arXiv:2304.08386): set 0 enters behind ``ln_pre``; at block l the slots become
    ``(1 - alpha) P_l + alpha * slots``. They stand at the end, not behind the class token as in the
    release, which makes no difference without positions and mask. Sets start uniform in
    +-sqrt(6 / (3 * 14^2 + W)). An ``alpha`` of 0 replaces the slots, as deep prompts do.
    """

    def __init__(self, n_ctx: int, depth: int, like: Tensor, alpha: float) -> None:
        super().__init__(n_ctx, depth, like)
        if not 0 <= alpha < 1:
            raise ValueError(
                f"alpha is the share of the previous prompts and must be in [0, 1), got {alpha}"
            )
        self.alpha = alpha
        bound = math.sqrt(6 / (3 * INIT_PATCH**2 + like.shape[-1]))
        nn.init.uniform_(self.vectors, -bound, bound)

    def hook_input(self, visual: Any) -> None:
        """Let set 0 join the tokens behind the first norm."""
        visual.ln_pre.register_forward_hook(self._append_behind)

    def _append_behind(
        self, ln_pre: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        appended = self._append(ln_pre, (output,))
        return None if appended is None else appended[0]

    def _expanded(self, x: Tensor, index: int) -> Tensor:
        prompts = super()._expanded(x, index)
        if index == 0:
            return prompts
        slots = x[:, -self.n_ctx :]  # what block l-1 made of them
        return (1 - self.alpha) * prompts + self.alpha * slots


def attach_progressive_prompts(
    backbone: Backbone, *, n_ctx: int, depth: int, alpha: float = 0.01
) -> ProgressivePrompts:
    """Learn ``n_ctx`` tokens behind the patches of all images, as ``vision_prompts``.

    Args:
        backbone: As for :func:`clip.attach_vision_prompts`.
        n_ctx: n.
        depth: J, at least 1; more than the tower has blocks means all of them.
        alpha: See :class:`ProgressivePrompts`.

    Raises:
        ValueError: As :func:`clip.attach_vision_prompts` and :class:`ProgressivePrompts`, or
            ``depth`` is less than 1.
    """
    if depth < 1:
        raise ValueError(f"Progressive prompts need a depth of 1 or more blocks, got {depth}")
    depth = prompt_depth(backbone, "vision", depth)
    like = backbone.model.visual.class_embedding
    prompts = ProgressivePrompts(n_ctx, depth, like, alpha)
    install_vision_prompts(backbone, prompts)
    return prompts
