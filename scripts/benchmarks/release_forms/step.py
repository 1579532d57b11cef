"""What all releases' training steps share: Dassl's loop around a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import clip
from dassl.engine.device import autocast_context
from dassl.optim import build_optimizer
from scripts.benchmarks.release_forms.towers import Block, ReleasedCLIP, TextTower

CONTEXT = "backbone.text_prompts.vectors"  # where prompted methods keep what texts learn


class ReleaseStep:
    """A training step; a subclass prepares what a run computes once, and defines the loss.

    Args:
        trainer: Ours, whose frozen weights are shared and whose learned ones are copied.
        batch: What the trainer's loader gives, on the device.

    Attributes:
        learned: Copies of what trains, by their names in the trainer's model.
        options: The trainer's section of the config.
        image: Pictures (B, 3, S, S), or what else the batch has in their place.
        label: (B,).
    """

    block: type[Block] = Block

    def __init__(self, trainer: Any, batch: dict[str, Any]) -> None:
        self.clip = ReleasedCLIP(trainer.model.backbone, self.block)
        self.options = trainer.options
        self.image, self.label = batch["img"], batch["label"]
        named = trainer.model.named_parameters()
        self.learned = {n: p.detach().clone().requires_grad_() for n, p in named if p.requires_grad}
        self.compute_in("fp32")
        self.prepare(trainer)
        self.optimizer = build_optimizer(self.learned.values(), trainer.cfg.OPTIM)

    def compute_in(self, precision: str) -> None:
        """Take steps in fp32, amp or bf16 from now on; weights stay in single precision."""
        self.precision, device = precision, self.label.device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "amp")

    def prepare(self, trainer: Any) -> None:
        """Compute what a run computes once."""

    def loss(self) -> Tensor:
        """The loss of a step, a scalar, with gradients to all that is learned."""
        raise NotImplementedError

    def __call__(self) -> Tensor:
        """Take a step and return its loss."""
        with autocast_context(self.precision, self.label.device):
            loss = self.loss()
        self.optimizer.zero_grad()
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"the loss of the release's form is {loss.item()}")
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def tokens_of(texts: list[str], tower: TextTower) -> Tensor:
    """Token numbers of texts, cut at the 77 positions, on the tower's device: (N, 77)."""
    length = len(tower.positional_embedding)
    return clip.tokenize(texts, length, truncate=True).to(tower.mask.device)


class Prompt:
    """Texts with n learned vectors behind the start token, as CoOp's prompt learner keeps them.

    The embeddings before and behind the learned ones are stored apart, for K texts.
    """

    def __init__(self, texts: list[str], tower: TextTower, count: int) -> None:
        tokens = tokens_of(texts, tower)  # (K, 77)
        embedded = tower.token_embedding(tokens)  # (K, 77, W)
        self.prefix, self.suffix = embedded[:, :1], embedded[:, 1 + count :]
        self.end = tokens.argmax(-1)  # (K,)

    def around(self, context: Tensor) -> Tensor:
        """The whole sequences (K, 77, W), of vectors (n, W) for all texts or (K, n, W)."""
        if context.ndim == 2:
            context = context.expand(len(self.prefix), -1, -1)  # (K, n, W)
        return torch.cat([self.prefix, context, self.suffix], 1)
