"""A copy of the prompts for each test image, and both towers as functions of it.

Notation: S views of an image, K classes, L tokens, W width of the vision tower, D embedding width,
as in :mod:`trainers.test_time.episodes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import clip
from dassl.data.transforms import finish
from trainers.base import PromptedCLIP
from trainers.test_time.episodes import most_confident

Values = dict[str, Tensor]


class PromptStart:
    """What all episodes start from: values of the prompts, and the classes' texts under them.

    A pass of the text tower over K prompts is what a step costs most for. All first steps have the
    same texts, so that these are encoded once, and only gradients pass the text tower per image.

    Args:
        model: With prompts attached; it stays as it is.
        prompts: Parameters of the model that an episode adapts, by name.
    """

    def __init__(self, model: PromptedCLIP, prompts: Mapping[str, Tensor]) -> None:
        self.model, self.towers = model, _Towers(model)
        # What is computed again in a backward pass would use the model's own prompts, not these.
        model.bank.kept_tokens = 0
        self.values = _leaves(prompts)
        with torch.enable_grad():
            self.text = self.encode(self.values)  # (K, D)

    def encode(self, values: Values, images: Tensor | None = None) -> Tensor:
        """Class weights (K, D); or, of images (S, 3, H, W), features (S, D); unit norm."""
        renamed = {f"model.{name}": value for name, value in values.items()}
        return functional_call(self.towers, renamed, (images,))

    def gradients(self, of_text: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the values from that of the texts, (K, D)."""
        values = list(self.values.values())
        return torch.autograd.grad(self.text, values, of_text, retain_graph=True, allow_unused=True)


class TunedPrompts:
    """One image's copy of the prompts.

    Args:
        start: Where it starts.
        lr: Of AdamW.
        weight_decay: Of AdamW.
    """

    def __init__(self, start: PromptStart, *, lr: float, weight_decay: float) -> None:
        self.start, self.values = start, _leaves(start.values)
        self.optimizer = torch.optim.AdamW(self.values.values(), lr=lr, weight_decay=weight_decay)
        # Stands for the texts until the first step; its gradient goes on through the shared graph.
        self.text: Tensor | None = start.text.detach().requires_grad_()

    def logits(self, views: Tensor) -> Tensor:
        """Logits (S, K) of views: images (S, 3, H, W), or features (S, D) no prompt reaches."""
        start = self.start
        f = views if views.ndim == 2 else start.encode(self.values, views)  # (S, D)
        h = start.encode(self.values) if self.text is None else self.text  # (K, D)
        return start.model.scale * f @ h.to(f.dtype).T

    def step(self, loss: Tensor) -> None:
        """Take a step of AdamW on a loss of :meth:`logits`, a scalar."""
        values = list(self.values.values())
        wanted = values if self.text is None else [*values, self.text]
        direct = torch.autograd.grad(loss, wanted, allow_unused=True)
        # Behind the values' own gradients comes, at first, that of the texts.
        through_text = (
            self.start.gradients(direct[-1]) if self.text is not None else [None] * len(values)
        )
        for value, *grads in zip(values, direct, through_text, strict=False):
            found = [grad for grad in grads if grad is not None]
            value.grad = sum(found[1:], found[0]) if found else None
        self.text = None
        self.optimizer.step()


class _Towers(nn.Module):
    """Gives :func:`torch.func.functional_call` one function for both towers."""

    def __init__(self, model: PromptedCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor | None) -> Tensor:
        if images is None:
            return self.model.training_weights()
        return self.model.image_features(images)


def _leaves(values: Mapping[str, Tensor]) -> Values:
    return {name: value.detach().clone().requires_grad_() for name, value in values.items()}


@contextmanager
def block_inputs(backbone: clip.Backbone, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect what vision blocks work on inside the ``with``: number -> tokens (B, L, W).

    A block's own deep prompts are in their slots already, as in PromptAlign's released code.

    Args:
        backbone: With a vision transformer.
        blocks: Numbers.
    """
    found: dict[int, Tensor] = {}
    transformer = backbone.vision_transformer

    def keep(number: int, block: nn.Module, args: tuple[Any, ...]) -> None:
        found[number] = args[0]  # (B, L, W)

    handles = [
        # Hooks run in the order of their registration: behind the one that puts prompts there.
        transformer.resblocks[number].register_forward_pre_hook(partial(keep, number))
        for number in blocks
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def confident_views(
    model: PromptedCLIP, views: Tensor, features: Tensor, selected: int, steps: Sequence[Any]
) -> Tensor:
    """View 0 of every image and its most confident views: (N, 1 + S, 3, H, W), floats.

    Args:
        model: Chooses, with the prompts all episodes start from.
        views: Bytes (N, V, 3, H, W).
        features: Of the views, unit norm, (N, V, D).
        selected: S.
        steps: Of the test transform after ``ToTensor``.
    """
    logits = model.scale * features @ model.class_weights().to(features.dtype).T  # (N, V, K)
    chosen = most_confident(logits, selected)
    rows = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], 1)  # (N, 1 + S)
    picked = views[torch.arange(len(views), device=views.device)[:, None], rows]
    return finish(picked.flatten(0, 1), steps).unflatten(0, picked.shape[:2])
