"""Cross-modal linear probe: texts are training examples of their classes, beside the images.

"Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with Multimodal Models", CVPR 2023,
arXiv:2301.06267.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.config.schema import Option, count, number
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer
from trainers.frozen.cross_modal_steps import Setting, draw_batches, grouped, weights_by_step
from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.frozen.recipe import FittedAtOnce
from trainers.frozen.search import correct
from trainers.frozen.threads import each_in_a_thread
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


class Best(NamedTuple):
    """A setting's W (K, D) that tells most validation images right, and after which iteration."""

    setting: Setting
    right: int
    iterations: int
    weight: Tensor


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
        options, model, images = self.options, self.model, self.recipe.validation()
        start = F.normalize(model.class_weights(), dim=-1)
        parts = self.examples()
        grid = [Setting(*numbers) for numbers in itertools.product(RATES, DECAYS, BATCHES)]
        if images is None:
            grid = [Setting(options.RATE, options.DECAY, options.BATCH)]
        rows = min(len(label) for _, label in parts)
        # Where a half has no full batch, the release leaves the setting out.
        kept = [setting for setting in grid if setting.batch // 2 < rows]
        grid = kept or [grid[0]._replace(batch=2)]
        groups = [partial(self.best_weights, start, parts, g, images) for g in grouped(grid, start)]
        if start.device.type == "cpu":
            found = sum(each_in_a_thread(groups), [])
        else:
            found = sum((group(Event()) for group in groups), [])
        # Of equal ones the first of the grid.
        found.sort(key=lambda one: grid.index(one.setting))
        self.keep(max(found, key=lambda one: one.right))
        if options.WISE:
            model.head.weight.copy_((model.head.weight + start) / 2)

    def best_weights(
        self,
        start: Tensor,
        parts: Sequence[tuple[Tensor, Tensor]],
        settings: list[Setting],
        images: tuple[Tensor, Tensor] | None,
        stop: Event,
    ) -> list[Best]:
        """The best W of each setting, all of one batch size, from the same start (K, D)."""
        total = self.options.ITERATIONS
        examples = torch.cat([x for x, _ in parts]), torch.cat([label for _, label in parts])
        sizes = [len(label) for _, label in parts]
        batches = draw_batches(sizes, settings[0].batch, total, self.seed)
        shown = None if images is None else (unit_norm(images[0]), images[1])
        best = [Best(setting, -1, 0, start) for setting in settings]
        for done, weights in weights_by_step(start, self.model.scale, examples, batches, settings):
            if stop.is_set():
                break
            if done % TEST_EVERY and done < total:
                continue
            for place, (setting, weight) in enumerate(zip(settings, weights, strict=True)):
                # Without validation images each later one is better.
                right = done if shown is None else correct(shown[0] @ weight.T, shown[1])
                if right > best[place].right:
                    best[place] = Best(setting, right, done, weight.clone())
        return best

    def examples(self) -> list[tuple[Tensor, Tensor]]:
        """Unit features and labels of the images, mirrored ones behind the others, and of texts."""
        features, bank = self.recipe.features, self.model.bank
        images = [features.unaugmented(mirrored) for mirrored in (False, True)]
        x = unit_norm(torch.cat([rows for rows, _ in images]))  # (2N, D)
        text = bank.encode_all(self.model.text_encoder)  # (P, D)
        return [(x, torch.cat([label for _, label in images])), (text, bank.owner)]

    def keep(self, best: Best) -> None:
        """Let the head have this W, and say where it is from."""
        head = self.model.head
        head.weight.copy_(best.weight)
        for name, value in zip(head.chosen, (*best.setting, best.iterations), strict=True):
            getattr(head, name).fill_(value)
