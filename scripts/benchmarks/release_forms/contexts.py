"""CoOp, CoCoOp and KgCoOp in the form of their releases; notation as in ``towers``, K classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.benchmarks.release_forms.step import CONTEXT, Prompt, ReleaseStep, tokens_of
from scripts.benchmarks.release_forms.towers import cosine_gap, unit


class CoOp(ReleaseStep):
    """Cross entropy of s f h^T; K texts of 77 tokens, whatever their names need."""

    def prepare(self, trainer: Any) -> None:
        """Embed the classes' texts."""
        (context,) = self.learned[CONTEXT]  # (n, W)
        self.prompt = Prompt(trainer.model.bank.texts, self.clip.text, len(context))

    def text_features(self) -> Tensor:
        """h, (K, D)."""
        (context,) = self.learned[CONTEXT]
        return unit(self.clip.text(self.prompt.around(context), self.prompt.end))

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        logits = self.clip.logits(unit(self.clip.visual(self.image)), self.text_features())
        return F.cross_entropy(logits, self.label)


class KgCoOp(CoOp):
    """CoOp's loss and the distance to the hand-made prompts' features, which are kept."""

    def prepare(self, trainer: Any) -> None:
        """Encode the hand-made prompts too."""
        super().prepare(trainer)
        texts = trainer.model.teacher_bank.texts
        self.teacher = unit(self.clip.text.encode(tokens_of(texts, self.clip.text)))  # (K, D)

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        h = self.text_features()
        logits = self.clip.logits(unit(self.clip.visual(self.image)), h)
        distance = cosine_gap(h, self.teacher)
        return F.cross_entropy(logits, self.label) + self.options.W * distance


class CoCoOp(CoOp):
    """A context for each image; the K texts of one image after the other."""

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        f = unit(self.clip.visual(self.image))  # (B, D)
        net = {n.partition("meta_net.")[2]: p for n, p in self.learned.items() if "meta_net." in n}
        hidden = F.relu(F.linear(f, net["linear1.weight"], net["linear1.bias"]))
        shift = F.linear(hidden, net["linear2.weight"], net["linear2.bias"])  # (B, W)
        contexts = self.learned[CONTEXT] + shift[:, None]  # (B, n, W)
        rows = []
        for feature, context in zip(f, contexts, strict=True):
            h = unit(self.clip.text(self.prompt.around(context), self.prompt.end))  # (K, D)
            rows.append(self.clip.logits(feature, h))
        return F.cross_entropy(torch.stack(rows), self.label)
