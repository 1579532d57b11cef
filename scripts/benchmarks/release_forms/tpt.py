"""TPT in the form of its release; notation: V views of an image, S of them selected, K classes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dassl.data.transforms import finish
from scripts.benchmarks.release_forms.step import CONTEXT, Prompt
from scripts.benchmarks.release_forms.towers import ReleasedCLIP, unit


class TPT:
    """An episode: encode all views, tune the context on the confident ones, classify view 0.

    Args:
        trainer: Ours.
        batch: ``img`` are the views of one image, bytes (1, V, 3, S, S).
    """

    def __init__(self, trainer: Any, batch: dict[str, Any]) -> None:
        self.clip, self.options = ReleasedCLIP(trainer.model.backbone), trainer.options
        (self.start,) = trainer.model.get_parameter(CONTEXT).detach()  # (n, W)
        self.prompt = Prompt(trainer.model.bank.texts, self.clip.text, len(self.start))
        self.views = finish(batch["img"][0], trainer.recipe.normalize)  # (V, 3, S, S)

    def text_features(self, context: Tensor) -> Tensor:
        """h, (K, D)."""
        return unit(self.clip.text(self.prompt.around(context), self.prompt.end))

    def __call__(self) -> Tensor:
        """Logits of view 0 after the episode, (1, K)."""
        options = self.options
        context = self.start.clone().requires_grad_()
        optimizer = torch.optim.AdamW([context], options.LR, weight_decay=options.WEIGHT_DECAY)
        with torch.no_grad():
            f = unit(self.clip.visual(self.views))  # (V, D)
        logits = self.clip.logits(f, self.text_features(context))  # (V, K)
        count = int(options.VIEWS * options.SELECT)
        log_p = F.log_softmax(logits, 1)
        confident = (-(log_p.exp() * log_p).sum(1)).argsort()[:count]
        mean = log_p[confident].logsumexp(0) - math.log(count)  # (K,)
        loss = -(mean.exp() * mean).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            clean = unit(self.clip.visual(self.views[:1]))
            return self.clip.logits(clean, self.text_features(context))
