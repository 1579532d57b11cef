"""The cache of Tip-Adapter (arXiv:2207.09519): the few shots as keys and values.

Notation: N training images, B images, K classes, K0 of training, D embedding width, V views.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.config.schema import Option, count, number
from dassl.utils import load_checkpoint
from trainers.frozen.model import ClassHead, FrozenCLIP, prompts_of
from trainers.frozen.search import correct
from trainers.heads import HeadOutput, cosine_logits

DEFAULTS: dict[str, Any] = {
    "VIEWS": Option(10, count(1, 1000), "augmentations whose features a key is the mean of"),
    "ALPHA": Option(1.17, number(0), "weight of the cache, unless it is chosen"),
    "BETA": Option(1.0, number(above=0), "sharpness of its similarities, unless it is chosen"),
    "ALPHA_MOST": Option(3.0, number(above=0.1), "end of the search of ALPHA, from 0.1"),
    "BETA_MOST": Option(7.0, number(above=0.1), "end of the search of BETA, from 0.1"),
    "ALPHA_STEPS": Option(20, count(1, 10_000), "values of ALPHA that are tried"),
    "BETA_STEPS": Option(200, count(1, 10_000), "values of BETA that are tried"),
}


class CacheHead(ClassHead):
    """``logits = s f t^T + alpha sum_n exp(-beta (1 - f k_n)) onehot(y_n)`` for N keys k, labels y.

    N images of training, not all unit norm once they were trained.
    """

    chosen = ("alpha", "beta")
    label: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, label: Tensor, classes: int, width: int, options: Any) -> None:
        super().__init__()
        self.trained = classes
        self.keys = nn.Parameter(torch.zeros(len(label), width))
        self.register_buffer("label", label)
        self.add_number("alpha", options.ALPHA)
        self.add_number("beta", options.BETA)

    def take_classes(self, rows: list[int | None], trained: int) -> None:
        """Also remember how many classes the labels count."""
        super().take_classes(rows, trained)
        self.trained = trained

    def similarity(self, image: Tensor) -> Tensor:
        """Similarities k f^T of unit features f (B, D): (N, B)."""
        return self.keys @ image.T

    def votes(self, similarity: Tensor, beta: Tensor | float) -> Tensor:
        """What the cache adds: similarities (N, B) -> (B, K0)."""
        near = (beta * (similarity - 1)).exp()
        # Rows of a key each: adding them up by label is much faster than columns.
        sums = near.new_zeros(self.trained, near.shape[1]).index_add(0, self.label, near)
        return sums.T

    def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> HeadOutput:
        """Logits of f (B, D) with text t (K, D): (B, K)."""
        votes = self.of_run(self.votes(self.similarity(image), self.beta))
        logits = cosine_logits(image, text, scale) + self.alpha * votes
        return HeadOutput(logits, logits.new_zeros(()))


def build_cache(trainer: Any) -> nn.Module:
    """The frozen backbone, and a cache with keys of zero."""
    backbone, dataset = trainer.load_backbone(), trainer.dm.dataset
    label = torch.tensor([item.label for item in dataset.train_x or ()], dtype=torch.long)
    head = CacheHead(label, len(dataset.classnames), backbone.embed_dim, trainer.options)
    return FrozenCLIP(backbone, prompts_of(trainer), head)


@torch.no_grad()
def fill_cache(trainer: Any) -> None:
    """Keys: unit norm of the mean over views of each image's features, which have their lengths."""
    views, label = trainer.recipe.features.views(trainer.options.VIEWS)  # (V, N, D), (N,)
    head = trainer.model.head
    head.keys.data, head.label = unit_norm(views.mean(0)), label


@torch.no_grad()
def search_cache(trainer: Any, features: Tensor, label: Tensor) -> None:
    """Alpha and beta on a grid from 0.1, ends left out; of equal pairs the first, by beta."""
    head, model, options = trainer.model.head, trainer.model, trainer.options
    alphas, betas = (
        [0.1 + i * (most - 0.1) / steps for i in range(steps)]
        for most, steps in (
            (options.ALPHA_MOST, options.ALPHA_STEPS),
            (options.BETA_MOST, options.BETA_STEPS),
        )
    )
    f = F.normalize(features, dim=-1)
    zero_shot = cosine_logits(f, model.class_weights(), model.scale)  # (N, K)
    similarity, best = head.similarity(f), -1
    for beta in betas:
        votes = head.votes(similarity, beta)
        for alpha in alphas:
            found = correct(zero_shot + alpha * votes, label)
            if found > best:
                best = found
                head.alpha.fill_(alpha)
                head.beta.fill_(beta)


def released_cache(trainer: Any, directory: str | os.PathLike[str], trained: bool) -> Any:
    """Keys and labels from the release's files in a directory; None if they are not there.

    ``keys_<S>shots.pt`` (D, N) and ``values_<S>shots.pt`` (N, K), of DATASET.NUM_SHOTS; the trained
    keys are ``best_F_<S>shots.pt`` (N, D).
    """
    shots = trainer.cfg.DATASET.NUM_SHOTS
    keys = Path(directory, f"{'best_F' if trained else 'keys'}_{shots}shots.pt")
    values = Path(directory, f"values_{shots}shots.pt")
    if not (keys.is_file() and values.is_file()):
        return None
    found = load_checkpoint(keys).float()
    label = load_checkpoint(values).argmax(1)
    return keys, {"keys": found if trained else found.T.contiguous(), "label": label}
