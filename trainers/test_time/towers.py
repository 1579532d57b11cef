"""Episodes on prompts in both towers: the vision tower runs anew, not only the text tower.

Notation: N images, S selected views, K classes, L tokens, W width of the vision tower, D embedding
width, as in :mod:`trainers.test_time.episodes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import clip
from clip import adapter_parameters
from trainers.base import PromptedCLIP
from trainers.test_time.episodes import finish, most_confident

Values = dict[str, Tensor]
# (inputs of some vision blocks, each (S, L, W)) -> a scalar.
Penalty = Callable[[Sequence[Tensor]], Tensor]


class PromptedTowers(nn.Module):
    """Both towers as functions of the prompts, for :func:`torch.func.functional_call`.

    Args:
        model: With prompts attached.
    """

    def __init__(self, model: PromptedCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor | None = None) -> Tensor:
        """Class weights (K, D); or, of pictures (S, 3, H, W), features (S, D); unit norm."""
        if pictures is None:
            return self.model.training_weights()
        return self.model.image_features(pictures)

    def start(self) -> Values:
        """The prompts' parameters by name, without gradient."""
        return {f"model.{n}": p.detach() for n, p in adapter_parameters(self.model).items()}


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
        found[number] = args[0] if transformer.batch_first else args[0].transpose(0, 1)

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
def chosen_pictures(
    model: PromptedCLIP, views: Tensor, features: Tensor, selected: int, steps: Sequence[Any]
) -> Tensor:
    """View 0 of every image and its most confident views: (N, 1 + S, 3, H, W), floats.

    Args:
        model: Chooses, with the prompts all episodes start from.
        views: Bytes (N, V, 3, H, W).
        features: Of the views, unit norm, (N, V, D).
        selected: S.
        steps: Of the test transform behind ``ToTensor``.
    """
    logits = model.scale * features @ model.class_weights().to(features.dtype).T
    chosen = most_confident(logits, selected)
    rows = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], 1)
    picked = views[torch.arange(len(views), device=views.device)[:, None], rows]
    return finish(picked.flatten(0, 1), steps).unflatten(0, picked.shape[:2])


def adapted_tower_logits(
    model: PromptedCLIP,
    pictures: Tensor,
    entropy: Callable[[Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    penalty: Penalty | None = None,
    blocks: Sequence[int] = (),
) -> Tensor:
    """Logits of view 0 of every image after its episode, (N, K).

    All episodes start from the model's prompts, so that the first step's texts are encoded once;
    the loss is ``entropy + penalty`` of the other pictures.

    Args:
        model: With prompts in both towers; it stays as it is.
        pictures: What :func:`chosen_pictures` returns.
        entropy: (1, S, K) -> (1,).
        steps: Of AdamW.
        lr: Of AdamW.
        weight_decay: Of AdamW.
        penalty: Of the inputs of ``blocks`` of the selected views; None for none.
        blocks: Numbers of vision blocks.
    """
    towers = PromptedTowers(model)

    def objective(values: Values, chosen: Tensor, text: Tensor) -> Tensor:
        with block_inputs(model.backbone, blocks) as tokens:
            f = functional_call(towers, values, (chosen,))
        loss = entropy((model.scale * f @ text.to(f.dtype).T)[None])[0]
        return loss if penalty is None else loss + penalty([tokens[b] for b in blocks])

    start = towers.start()
    shared = _leaves(start)
    with torch.enable_grad():
        text = functional_call(towers, shared, ())
    found = []
    for views in pictures:
        values = _leaves(start)
        optimizer = torch.optim.AdamW(values.values(), lr=lr, weight_decay=weight_decay)
        for step in range(steps):
            with torch.enable_grad():
                first = step == 0
                h = text.detach().requires_grad_() if first else functional_call(towers, values, ())
                loss = objective(values, views[1:], h)
                wanted = [*values.values(), *([h] if first else [])]
                grads = list(torch.autograd.grad(loss, wanted))
                if first:
                    grads = _add_text(grads[:-1], text, shared, grads[-1])
            for value, grad in zip(values.values(), grads, strict=True):
                value.grad = grad
            optimizer.step()
        with torch.no_grad():
            f = functional_call(towers, values, (views[:1],))
            h = functional_call(towers, values, ())
            found.append(model.scale * f @ h.to(f.dtype).T)
    return torch.cat(found)


def _leaves(start: Values) -> Values:
    return {name: value.clone().requires_grad_() for name, value in start.items()}


def _add_text(grads: list[Tensor], text: Tensor, shared: Values, of_text: Tensor) -> list[Tensor]:
    """Add what the loss owes to the texts, whose graph serves all images."""
    more = torch.autograd.grad(
        text, list(shared.values()), of_text, retain_graph=True, allow_unused=True
    )
    return [g if m is None else g + m for g, m in zip(grads, more, strict=True)]
