"""MaPLe, PromptSRC and CoPrompt in the form of their releases; notation as in ``towers``.

Deep prompts are put before a block by concatenation, for all texts or images of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clip.prompts import class_descriptions
from scripts.benchmarks.release_forms.step import CONTEXT, Prompt, ReleaseStep, tokens_of
from scripts.benchmarks.release_forms.towers import cosine_gap, unit

VISION = "backbone.vision_prompts"


class DeepPrompts(ReleaseStep):
    """Learned prompts in both towers; a subclass says what those of the vision tower are."""

    def prepare(self, trainer: Any) -> None:
        """Embed the classes' texts."""
        texts = trainer.model.bank.texts
        self.prompt = Prompt(texts, self.clip.text, self.learned[CONTEXT].shape[1])

    def vision_sets(self) -> list[Tensor]:
        """Prompts of the vision tower, (n, W) each."""
        raise NotImplementedError

    def text_features(self) -> Tensor:
        """Features h', not normalised, (K, D)."""
        sets = list(self.learned[CONTEXT])  # (n, W) each
        return self.clip.text(self.prompt.around(sets[0]), self.prompt.end, sets)

    def image_features(self, image: Tensor) -> Tensor:
        """Features f', not normalised: (B, 3, S, S) -> (B, D)."""
        return self.clip.visual(image, self.vision_sets())

    def frozen_features(self, image: Tensor) -> Tensor:
        """Features f0 without prompts, unit norm, computed anew in each step: (B, D)."""
        # A whole second pass: augmentation gives other pictures each time, so nothing can be kept.
        with torch.no_grad():
            return unit(self.clip.visual(image))  # (B, D)


class MaPLe(DeepPrompts):
    """Vision prompts are linear maps of the text prompts; plain cross entropy."""

    def vision_sets(self) -> list[Tensor]:
        """See :meth:`DeepPrompts.vision_sets`."""
        maps = [
            (self.learned[f"{VISION}.maps.{j}.weight"], self.learned[f"{VISION}.maps.{j}.bias"])
            for j in range(len(self.learned[CONTEXT]))
        ]
        return [F.linear(p, *g) for p, g in zip(self.learned[CONTEXT], maps, strict=True)]

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        f, h = unit(self.image_features(self.image)), unit(self.text_features())
        return F.cross_entropy(self.clip.logits(f, h), self.label)


class PromptSRC(DeepPrompts):
    """Free prompts in both towers and three regularisers; the frozen image pass is made anew.

    The teacher's text features, the mean of many templates, are kept; they are our trainer's.
    """

    def prepare(self, trainer: Any) -> None:
        """Take over the teacher's text features, (K, D)."""
        super().prepare(trainer)
        self.teacher = trainer.teacher_text

    def vision_sets(self) -> list[Tensor]:
        """See :meth:`DeepPrompts.vision_sets`."""
        return list(self.learned[f"{VISION}.vectors"])

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        f0 = self.frozen_features(self.image)
        f, h = unit(self.image_features(self.image)), unit(self.text_features())
        logits, frozen = self.clip.logits(f, h), self.clip.logits(f0, self.teacher)  # (B, K)
        log_p, log_p0 = F.log_softmax(logits, 1), F.log_softmax(frozen, 1)
        # Over B K, as released, and not over B.
        divergence = F.kl_div(log_p, log_p0, reduction="sum", log_target=True) / logits.numel()
        text = F.l1_loss(h, self.teacher) * self.options.TEXT_LOSS_WEIGHT
        image = F.l1_loss(f, f0) * self.options.IMAGE_LOSS_WEIGHT
        return F.cross_entropy(logits, self.label) + divergence + text + image


class CoPrompt(MaPLe):
    """MaPLe's prompts and an adapter behind each tower; the frozen pass sees the second view.

    Frozen features of the sentences are kept here, which can only favour the release.
    """

    def prepare(self, trainer: Any) -> None:
        """Encode the classes' sentences, of which each has one here."""
        super().prepare(trainer)
        self.image, self.other_view = self.image
        path = trainer.cfg.DATASET.PROMPT_PATH
        found = class_descriptions(trainer.dm.dataset.classnames, path)
        sentences = [of_class[0] for of_class in found]
        self.teacher = unit(self.clip.text.encode(tokens_of(sentences, self.clip.text)))  # (K, D)

    def adapted(self, features: Tensor, tower: str, ratio: float) -> Tensor:
        """``ratio A(v) + (1 - ratio) v``, unit norm, for features v (N, D)."""
        down, up = (self.learned[f"{tower}_adapter.{part}.weight"] for part in ("down", "up"))
        # The release has a ReLU behind the second matrix too.
        inner = F.relu(F.linear(F.relu(F.linear(features, down)), up))  # (N, D)
        return unit(ratio * inner + (1 - ratio) * features)

    def loss(self) -> Tensor:
        """See :meth:`ReleaseStep.loss`."""
        options = self.options
        f = self.adapted(self.image_features(self.image), "image", options.IMAGE_RATIO)
        h = self.adapted(self.text_features(), "text", options.TEXT_RATIO)
        f0 = self.frozen_features(self.other_view)
        held = cosine_gap(h, self.teacher) + cosine_gap(f, f0)
        return F.cross_entropy(self.clip.logits(f, h), self.label) + options.LOSS_WEIGHT * held
