"""What a trained method's mask does to images: rows, counts and maps to draw.

RAda (arXiv:2507.15480): R[b,k,d] = f[b,d] h[k,d] is the rational matrix, M the mask over it.
Notation: B images, K classes, D embedding width. M and R are (B, K, D); only what is drawn is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from trainers.heads import HeadOutput

# Elements of M computed at a time; a head needs about ten times as many for itself.
CHUNK_ELEMENTS = 2**22
# Whose row of its matrix is drawn of an image. Those of the true class cluster by class whatever
# the mask does, since the class's own text vector is a factor in them.
ROWS_OF = ("predicted", "true")


class HeadBatch(NamedTuple):
    """Some images and the head's output for them."""

    place: Tensor  # of each among the images asked for, (B,)
    label: Tensor  # (B,), on the CPU
    rational: Tensor  # R, (B, K, D)
    output: HeadOutput


class Maps(NamedTuple):
    """One image's matrices."""

    logits: np.ndarray  # (K,)
    mask: np.ndarray  # M, (K, D)
    rational: np.ndarray  # R, (K, D)


class Rows(NamedTuple):
    """One row of each image's matrix, that of one class."""

    label: np.ndarray  # true classes, (N,)
    plain: np.ndarray  # classes k whose rows of R these are, (N,)
    rational: np.ndarray  # R[b, k_b], (N, D)
    marked: np.ndarray | None  # classes of the rows of M * R, (N,); None if there is no mask
    masked: np.ndarray | None  # (M * R)[b, k_b], (N, D); likewise


def require_head(trainer: Any) -> None:
    """Refuse a trainer whose model has no features and head to look into."""
    wanted = ("image_features", "class_weights", "scale", "head")
    absent = [name for name in wanted if not hasattr(getattr(trainer, "model", None), name)]
    if absent:
        raise ValueError(
            f"--model-dir: the model of {trainer.cfg.TRAINER.NAME} has no {', '.join(absent)}: "
            "pictures can be drawn for methods whose model is a trainers.base.PromptedCLIP"
        )


@torch.no_grad()
def head_outputs(trainer: Any, items: Sequence[Datum]) -> Iterator[HeadBatch]:
    """Run a trained model on images, transformed as for the test, a few at a time."""
    model, cfg = trainer.model, trainer.cfg
    trainer.set_model_mode("eval")
    with trainer.autocast():
        weights = model.class_weights()  # (K, D)
    size = max(1, CHUNK_ELEMENTS // weights.numel())
    loader = build_data_loader(
        cfg,
        data_source=list(items),
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=trainer.dm.tfm_test,
        is_train=False,
    )
    for batch in loader:
        image, label = trainer.parse_batch_test(batch)
        with trainer.autocast():
            features = model.image_features(image)  # (B, D)
        for some in torch.arange(len(label)).split(size):
            here = features[some.to(features.device)]
            with trainer.autocast():
                output = model.head(here, weights, model.scale)
            rational = here.float()[:, None] * weights.float()  # (b, K, D)
            yield HeadBatch(batch["index"][some], label.cpu()[some], rational, output)


class ValueCounts:
    """Counts of the values in [0, inf) of any number of tensors, in bounded memory.

    When a value lies beyond the last bin, bins are merged in pairs, which doubles their width.
    ``zeros`` and ``ones`` count values that are exactly 0 and exactly 1.
    """

    BINS = 2**14

    def __init__(self) -> None:
        self.top = 2.0
        self.counts = torch.zeros(self.BINS, dtype=torch.int64)
        self.total = self.zeros = self.ones = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: Tensor) -> None:
        """Count a tensor's values, all of them finite and at least 0."""
        values = values.detach().float().flatten()
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        while self.high > self.top:
            pairs = self.counts.view(-1, 2).sum(1)  # (BINS / 2,)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self.top *= 2
        self.counts += torch.histc(values, self.BINS, min=0, max=self.top).cpu().long()
        self.total += values.numel()
        self.zeros += int((values == 0).sum())
        self.ones += int((values == 1).sum())

    def bars(self, limit: int = 120) -> tuple[np.ndarray, np.ndarray]:
        """At most ``limit`` bins over the range that was seen: edges (n + 1,), counts (n,)."""
        width = self.top / self.BINS
        first = min(int(self.low / width), self.BINS - 1)
        last = min(int(self.high / width), self.BINS - 1) + 1
        each = math.ceil((last - first) / limit)  # bins per bar
        bars = math.ceil((last - first) / each)
        padded = torch.zeros(bars * each, dtype=torch.int64)
        padded[: last - first] = self.counts[first:last]
        edges = (first + each * np.arange(bars + 1)) * width
        return edges, padded.view(bars, each).sum(1).numpy()


def collect_rows(
    trainer: Any, items: Sequence[Datum], of: str = "predicted"
) -> tuple[Rows, ValueCounts | None]:
    """Return one row of each image's R and M * R, and counts of all values of the masks.

    Args:
        trainer: A trained run.
        items: The images.
        of: ``true``, the rows of their true classes, or ``predicted``: of R that of the class with
            the largest sum, which is predicted without the mask; of M * R that of the class which
            the method predicts.

    Returns:
        The counts are None if the method has no mask.
    """
    labels, rational, masked = [], [], []
    plain, marked = [], []
    counts = ValueCounts()
    for part in head_outputs(trainer, items):
        place = torch.arange(len(part.label))
        predicted = part.rational.sum(-1).argmax(-1).cpu()  # (B,)
        plain.append(part.label if of == "true" else predicted)
        labels.append(part.label)
        rational.append(part.rational[place, plain[-1]].cpu())  # (B, D)
        mask = part.output.mask
        if mask is not None:
            counts.add(mask)
            marked.append(part.label if of == "true" else part.output.logits.argmax(-1).cpu())
            own = place, marked[-1]
            masked.append((mask[own] * part.rational[own]).cpu())
    label, of_plain, rows = (torch.cat(some).numpy() for some in (labels, plain, rational))
    if not masked:
        return Rows(label, of_plain, rows, None, None), None
    of_masked = torch.cat(marked).numpy()
    return Rows(label, of_plain, rows, of_masked, torch.cat(masked).numpy()), counts


def collect_maps(trainer: Any, items: Sequence[Datum]) -> dict[int, Maps]:
    """Return the matrices of images by their place in ``items``, for a method with a mask.

    Images that cannot be read are left out if INPUT.ON_BAD_IMAGE says so.
    """
    found = {}
    for part in head_outputs(trainer, items):
        logits, _, mask = part.output
        if mask is None:
            raise ValueError(f"{trainer.cfg.TRAINER.NAME} has no mask to map")
        for row, place in enumerate(part.place.tolist()):
            found[place] = Maps(
                *(t[row].float().cpu().numpy() for t in (logits, mask, part.rational))
            )
    return found


def embed(rows: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton, 2008) of at least 4 rows: (N, D) -> (N, 2)."""
    from sklearn.manifold import TSNE  # its import takes longer than the rest of the work

    if len(rows) < 4:
        raise ValueError(
            f"t-SNE needs at least 4 images, got {len(rows)}: raise --points, or name more "
            "--classes"
        )
    # The perplexity is a number of neighbours: usually 30, and at most a third of the points.
    perplexity = min(30.0, (len(rows) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return model.fit_transform(rows.astype(np.float64))
