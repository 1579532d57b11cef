"""HPT's hierarchical prompts of the text tower: learned, class-wise, and ties between tokens.

"Learning Hierarchical Prompt with Structured Linguistic Knowledge for Vision-Language Models",
AAAI 2024, arXiv:2312.06323.

Notation: N texts, K classes, S descriptions per class, L tokens, W transformer width, H heads, J
blocks, g general prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clip.adapters import Adapter, adapters_disabled, refuse_second
from clip.adapters.hpt_structures import Structure, related_positions
from clip.adapters.prompts import INIT_STD
from clip.backbones import Backbone
from clip.layouts import Ends, Padded
from clip.text import TextBank, take_rows, text_tower
from clip.transformer import is_open

PLACEHOLDER = "X"  # stands in texts where prompts go


class Ties(NamedTuple):
    """How often two tokens of a text belong to related phrases, (N, L, L) each, symmetric."""

    entities: Tensor
    attributes: Tensor


class Served(NamedTuple):
    """What is known of the texts being encoded; blocks get it in place of their layout.

    They get it as an argument, not from the module, because gradient checkpointing computes blocks
    again with the same arguments in the backward pass, when the module serves other texts.
    """

    high: Tensor
    ties: Ties | None
    layout: Padded


class HierarchicalPrompts(Adapter):
    """Prompts at positions 1 .. g + S of all texts, and a learned weight of their tokens' ties.

    At the input they are ``input``. At blocks l = 1 .. J-1 the first g are ``general`` (global
    level) and the S others ``z + G(z)`` (high level), z the unit-norm states of the class's S
    descriptions behind the frozen block l-1 at their end token, G one linear map for all blocks.
    In every block, ``e_l E + a_l A`` is added to the attention's scaled scores before the causal
    mask, alike for all heads (low level).

    Outside of :meth:`serving`, texts are encoded as by the pre-trained model: nothing here knows
    which class a text is about.
    """

    _served: tuple[Tensor, Ties | None] | None = None

    def __init__(self, width: int, blocks: int, *, general: int, descriptions: int) -> None:
        super().__init__()
        if general < 1 or descriptions < 1:
            raise ValueError(
                "HPT needs at least 1 general prompt and 1 description per class, got "
                f"{general} and {descriptions}"
            )
        self.n_ctx = general + descriptions
        self.descriptions = descriptions
        self.input = nn.Parameter(torch.empty(self.n_ctx, width).normal_(std=INIT_STD))
        self.general = nn.Parameter(torch.empty(blocks - 1, general, width).normal_(std=INIT_STD))
        self.projector = nn.Linear(width, width)
        self.entity_scale = nn.Parameter(torch.zeros(blocks))
        self.attribute_scale = nn.Parameter(torch.zeros(blocks))

    @contextmanager
    def serving(self, states: Tensor, ties: Ties | None) -> Iterator[None]:
        """Encode texts inside, given z of each text's class, (N, J-1, S, W), and its token ties."""
        if self.enabled:
            self._served = states + self.projector(states), ties
        try:
            yield
        finally:
            self._served = None

    def hook(self, tower: Any) -> None:
        """Put the prompts among the tokens of a text tower, and the ties into its attention."""
        transformer = tower.transformer
        tower.token_embedding.register_forward_hook(self._embed)
        transformer.register_forward_pre_hook(self._before_blocks, with_kwargs=True)
        for index, block in enumerate(transformer.resblocks):
            before = partial(self._before_block, index)
            block.register_forward_pre_hook(before, with_kwargs=True)

    def _embed(self, table: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        if not self.enabled or self._served is None:
            return None
        return self._placed(embedded, self.input.expand(len(embedded), -1, -1))

    def _before_blocks(
        self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.enabled or self._served is None:
            return None
        return args, {**kwargs, "attn_mask": Served(*self._served, kwargs["attn_mask"])}

    def _before_block(
        self, index: int, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # open_clip names the mask, but hands all arguments over by position to be kept for a
        # second computation: tokens, keys, values, mask.
        served = kwargs["attn_mask"] if "attn_mask" in kwargs else args[3]
        if not isinstance(served, Served):
            return None
        high, ties, layout = served
        x = args[0]  # (N, L, W)
        if index > 0:  # block 0 has the prompts of the input, see _embed
            general = self.general[index - 1].expand(len(x), -1, -1)  # (N, g, W)
            x = self._placed(x, torch.cat([general, high[:, index - 1]], 1))
        if ties is not None:
            scores = self.entity_scale[index] * ties.entities  # (N, L, L)
            scores = scores + self.attribute_scale[index] * ties.attributes
            layout = Padded(layout.end, layout.mask + scores.to(x))
        return (x,), {"attn_mask": layout}

    def _placed(self, x: Tensor, prompts: Tensor) -> Tensor:
        """``x`` (N, L, W) with ``prompts`` (N, g + S, W) at positions 1 .. g + S."""
        return torch.cat([x[:, :1], prompts.to(x), x[:, 1 + self.n_ctx :]], 1)


def attach_hierarchical_prompts(
    backbone: Backbone, *, general: int = 2, descriptions: int = 5
) -> HierarchicalPrompts:
    """Give the text tower hierarchical prompts, as ``hierarchical_prompts`` of the backbone.

    Raises:
        ValueError: The text tower is not of CLIP's form, prompts are attached already, or a number
            is less than 1.
    """
    transformer = backbone.text_transformer
    if transformer is None or not is_open(transformer) or backbone.end_of_text() is None:
        raise ValueError(
            "The text tower of this backbone is not of CLIP's form (causal, its end token pooled), "
            "so hierarchical prompts cannot be attached to it. OpenAI's models work, and most of "
            "OpenCLIP's."
        )
    refuse_second(backbone, "hierarchical_prompts", "hierarchical prompts")
    prompts = HierarchicalPrompts(
        transformer.width, len(transformer.resblocks), general=general, descriptions=descriptions
    ).to(backbone.logit_scale.device)
    prompts.hook(text_tower(backbone.model))
    backbone.hierarchical_prompts = prompts
    return prompts


@torch.no_grad()
def end_states(backbone: Backbone, bank: TextBank) -> Tensor:
    """Unit-norm states of P texts at their end token behind frozen blocks 0 .. J-2, (P, J-1, W)."""
    with adapters_disabled(backbone):
        return bank.encode_all(_EndStates(backbone))


class _EndStates:
    """A text encoder whose features are the states at the end token behind all blocks but one."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def encode_text(self, tokens: Tensor, ends: Ends) -> Tensor:
        """Texts (n, L) -> (n, J-1, W)."""
        transformer, find_end = self.backbone.text_transformer, self.backbone.end_of_text()
        assert find_end is not None  # see attach_hierarchical_prompts
        end = find_end(tokens)  # (n,)
        states: list[Tensor] = []

        def collect(block: nn.Module, args: tuple[Any, ...], x: Tensor) -> None:
            states.append(x[torch.arange(len(x), device=end.device), end])  # (n, W)

        hooks = [block.register_forward_hook(collect) for block in transformer.resblocks[:-1]]
        try:
            self.backbone.encode_text(tokens, ends._replace(shared=0))  # by text, not packed
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(states, 1)


class StructuredBank(TextBank):
    """HPT's texts, one per class and structure, encoded with their class's prompts.

    ``texts`` stand behind the placeholders, ``structures`` tie their tokens, and ``states`` are
    each class's z, (K, J-1, S, W).
    """

    states: Tensor

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[Sequence[str]],
        structures: Sequence[Sequence[Structure]] | None,
        states: Tensor,
    ) -> None:
        hierarchy: Any = backbone.hierarchical_prompts
        places = " ".join([PLACEHOLDER] * hierarchy.n_ctx)
        prompts = [[f"{places} {text}" for text in of_class] for of_class in texts]
        super().__init__(prompts, backbone.tokenize, backbone.end_of_text())
        self.register_buffer("states", states, persistent=False)
        self._ties: list[tuple[Tensor, Tensor]] = []
        if structures is not None:
            flat = [structure for of_class in structures for structure in of_class]
            self._ties = _tied_positions(backbone, self.tokens, self.lengths, flat)

    def ends(self, index: Tensor) -> Ends | None:
        """See :meth:`clip.text.TextBank.ends`; every text has prompts and ties of its own."""
        ends = super().ends(index)
        return ends if ends is None else ends._replace(shared=0)

    def _encode_part(self, encoder: Any, index: Tensor) -> Tensor:
        states = self.states[take_rows(self.owner, index)]  # (n, J-1, S, W)
        with encoder.hierarchical_prompts.serving(states, self.ties(index)):
            return super()._encode_part(encoder, index)

    def ties(self, index: Tensor) -> Ties | None:
        """Ties of the texts numbered ``index`` (n,): (n, L, L) each, L the longest one's length."""
        if not self._ties:
            return None
        numbers = index.tolist()
        length = max(self.lengths[i] for i in numbers)
        # Made anew for each batch: kept for all texts they would be the largest thing here.
        counts = torch.zeros(2, len(numbers), length, length)
        for row, number in enumerate(numbers):
            for kind, positions in enumerate(self._ties[number]):
                one = torch.ones(positions.shape[1])
                counts[kind, row].index_put_(tuple(positions), one, accumulate=True)
        return Ties(*counts.to(self.states.device, non_blocking=True))


def _tied_positions(
    backbone: Backbone, tokens: Tensor, lengths: list[int], structures: Sequence[Structure]
) -> list[tuple[Tensor, Tensor]]:
    """The positions of each text that entity and attribute pairs tie, (2, number of) each."""
    kinds = [(s.entity_pairs, s.attribute_pairs) for s in structures]
    phrases = sorted({word for pairs in kinds for kind in pairs for pair in kind for word in pair})
    words: dict[str, list[int]] = {}
    find_end = backbone.end_of_text()
    if phrases and find_end is not None:
        numbers = backbone.tokenize(phrases)
        ends = find_end(numbers).tolist()
        words = {p: numbers[i, 1 : ends[i]].tolist() for i, p in enumerate(phrases)}

    def positions(text: list[int], pairs: Sequence[tuple[str, str]]) -> Tensor:
        found = related_positions(text, [(words[a], words[b]) for a, b in pairs])
        return torch.tensor(found, dtype=torch.long).reshape(-1, 2).T

    texts = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
    return [(positions(t, e), positions(t, a)) for t, (e, a) in zip(texts, kinds, strict=True)]
