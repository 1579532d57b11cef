"""Cross-modal linear probe: texts are training examples of their classes, beside the images.

"Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models", CVPR 2023,
arXiv:2301.06267.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.config.schema import Option, count, number
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer
from trainers.frozen.cross_modal_steps import example_batches, rate_at, weights_by_step
from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.frozen.recipe import FittedAtOnce
from trainers.frozen.search import correct
from trainers.heads import HeadOutput, cosine_logits

# The grid, as released; the first of equal results counts.
RATES, DECAYS, BATCHES = (1e-3, 1e-4), (0.0, 0.01, 1e-4), (8, 32)
TEST_EVERY = 100  # iterations


class WeightHead(ClassHead):
    """``logits = s f W^T`` for W (K0, D), whose rows may have any length."""

    chosen = ("rate", "decay", "batch", "iterations")

    def __init__(self, classes: int, width: int, numbers: tuple[float, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        for name, value in zip(self.chosen, numbers, strict=True):
            self.add_number(name, value)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """Logits of f (B, D): (B, K)."""
        logits = cosine_logits(image, self.of_run(self.weight.T).T, scale)
        return HeadOutput(logits, logits.new_zeros(()))


def told_right(weight: Tensor, features: Tensor, label: Tensor) -> int:
    """How many of N images with features (N, D), labels (N,) W (K, D) tells right."""
    return correct(unit_norm(features) @ weight.T, label)


@TRAINER_REGISTRY.register()
class CrossModalLP(CLIPTrainer):
    """CE(s x W^T, y) on batches of half image rows, half text rows, from the zero-shot W0.

    Image rows are the unit features of each training image and of its mirror image, seen as test
    images are; text rows those of each template of each class. W0 are means over templates of
    features that are not normalised, scaled to unit norm; W is never normalised again. This is
    the paper's linear head; its adapter and its partial fine-tuning are not here.

    Rate, decay and batch are those of the grid's run with the best validation result, tested every
    100 iterations, and W is of that iteration. ``VAL.POLICY none`` takes RATE, DECAY, BATCH and the
    last iteration, for which nothing is published: ours.

    Config, ``TRAINER.CrossModalLP``: WISE is the paper's variant of it, the mean of W0 and W.
    """

    recipe_type = FittedAtOnce
    frozen_image_encoder = True
    defaults = {
        "ITERATIONS": Option(12_800, count(1), "of each run"),
        "RATE": Option(1e-3, number(above=0), "learning rate, unless it is chosen"),
        "DECAY": Option(0.01, number(0), "weight decay, unless it is chosen"),
        "BATCH": Option(32, count(2), "images and texts together, unless it is chosen"),
        "WISE": Option(False, None, "evaluate the mean of the first and the last W"),
    }

    def build_model(self) -> nn.Module:
        """The frozen backbone and W, the only part that is fitted."""
        backbone, classes = self.load_backbone(), len(self.dm.dataset.classnames)
        options = self.options
        numbers = options.RATE, options.DECAY, options.BATCH, options.ITERATIONS
        head = WeightHead(classes, backbone.embed_dim, numbers)
        return FrozenCLIP(backbone, prompts_of(self), head, unit_text=False)

    @torch.no_grad()
    def fit(self) -> None:
        """W of the best run of the grid."""
        parts, model, options = self.examples(), self.model, self.options
        start, scale = F.normalize(model.class_weights(), dim=-1), model.scale
        images = self.recipe.validation()
        grid = list(itertools.product(RATES, DECAYS, BATCHES))
        if images is None:
            grid = [(options.RATE, options.DECAY, options.BATCH)]
        rows = min(len(label) for _, label in parts)
        # Where a half has no full batch, the release leaves the setting out.
        grid = [setting for setting in grid if setting[2] // 2 < rows] or [(*grid[0][:2], 2)]
        best = -1
        for rate, decay, batch in grid:
            rates = [rate_at(i, rate, options.ITERATIONS) for i in range(options.ITERATIONS)]
            batches = example_batches(parts, batch, self.seed)
            for done, weight in weights_by_step(start, scale, batches, rates, decay):
                if done % TEST_EVERY and done < options.ITERATIONS:
                    continue
                # Without validation images each later one is better.
                found = done if images is None else told_right(weight, *images)
                if found > best:
                    best = found
                    self.keep(weight, (rate, decay, batch, done))
        if options.WISE:
            model.head.weight.copy_((model.head.weight + start) / 2)

    def examples(self) -> list[tuple[Tensor, Tensor]]:
        """Unit features and labels of the images, mirrored ones behind the others, and of texts."""
        features, bank = self.recipe.features, self.model.bank
        images = [features.unaugmented(mirrored) for mirrored in (False, True)]
        x = unit_norm(torch.cat([rows for rows, _ in images]))  # (2N, D)
        text = bank.encode_all(self.model.text_encoder)  # (P, D)
        return [(x, torch.cat([label for _, label in images])), (text, bank.owner)]

    def keep(self, weight: Tensor, numbers: tuple[float, ...]) -> None:
        """Let the head have this W, and say where it is from."""
        head = self.model.head
        head.weight.copy_(weight)
        for name, value in zip(head.chosen, numbers, strict=True):
            getattr(head, name).fill_(value)
