"""MaPLe's coupling between the prompts of both towers; notation as in `clip.adapters.prompts`."""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor, nn

from clip.adapters.prompts import (
    AppendedPrompts,
    TextPrompts,
    attach_text_prompts,
    install_vision_prompts,
    prompt_depth,
)
from clip.backbones import Backbone


class CoupledPrompts(AppendedPrompts):
    """Vision prompts that are linear maps of the text prompts, with no vectors of their own.

    MaPLe (arXiv:2210.03117): ``V_j = g_j(P_j)``, a map with bias for each set, so that the text
    prompts learn from both towers. As in the authors' code the maps of the deeper sets start equal.
    ``text`` is P, ``width`` W of the vision tower.
    """

    def __init__(self, text: TextPrompts, width: int) -> None:
        super().__init__(text.n_ctx, text.depth)
        # In a tuple: as a submodule it would put the text tower's vectors in the state dict twice.
        self._text = (text,)
        like = text.vectors  # (J, n, W of the text tower)
        first, deeper = (nn.Linear(like.shape[-1], width, dtype=like.dtype) for _ in range(2))
        maps = [first, *(copy.deepcopy(deeper) for _ in range(text.depth - 1))]
        self.maps = nn.ModuleList(maps).to(like.device)

    def vectors_of(self, index: int) -> Tensor:
        """Set ``index`` of the vision tower: (n, W)."""
        return self.maps[index](self._text[0].vectors_of(index))


def attach_coupled_prompts(
    backbone: Backbone, *, n_ctx: int, depth: int, init: str = "a photo of a"
) -> tuple[TextPrompts, CoupledPrompts]:
    """Learn text prompts, and vision prompts that follow from them.

    Args:
        backbone: It gets the attributes ``text_prompts`` and ``vision_prompts``.
        n_ctx: Learned tokens in each tower, n.
        depth: Sets, J, at least 1; more than the shallower tower has blocks means all of them.
        init: See :func:`clip.attach_text_prompts`.

    Raises:
        ValueError: ``depth`` is less than 1, or as :func:`clip.attach_text_prompts` and
            :func:`clip.attach_vision_prompts`.
    """
    if depth < 1:
        raise ValueError(f"Coupled prompts need a depth of 1 (the input) or more, got {depth}")
    for tower in ("vision", "text"):
        depth = prompt_depth(backbone, tower, depth)
    # None only at depth 0
    text = cast(TextPrompts, attach_text_prompts(backbone, n_ctx=n_ctx, depth=depth, init=init))
    coupled = CoupledPrompts(text, backbone.vision_transformer.width)
    install_vision_prompts(backbone, coupled)
    return text, coupled
