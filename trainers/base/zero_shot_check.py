"""Before a run: do the labels of a dataset fit its class names?

A shifted or relabelled test set whose labels are in another order than its class names still runs
to its end, and the numbers are merely low. Two checks find it out at once: class names against
ImageNet's list, which needs no model, and zero-shot accuracy on some test images.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

import clip
from clip.prompts import template_prompts
from clip.text import unit_norm
from dassl.data.samplers.epochs import SeededIndex, mix_seed
from datasets.imagenet import misnamed, standard_names
from datasets.row import Figure
from datasets.rows import ROWS
from trainers.base.features import loader_like
from trainers.base.given_features import GivenFeatureLoader, gives_texts
from trainers.base.templates import hand_made

if TYPE_CHECKING:
    from trainers.base import CLIPTrainer

IMAGES = 500  # of the test set, at most
# A gap to the published figure beyond this, and beyond three standard deviations of the sampling
# error, cannot be explained by other prompts.
TOLERANCE = 5.0
# Published, by dataset and backbone; over all classes of a dataset.
FIGURES = {
    (row.name, backbone): figure for row in ROWS for backbone, figure in row.zero_shot.items()
}


def sanity_check(trainer: CLIPTrainer) -> dict[str, Any] | None:
    """Log zero-shot accuracy beside the published figure, and note what looks like wrong labels.

    It leaves no trace but lines of the log: the sample of test images is the same for all runs, no
    global random generator moves, and adapters are switched off rather than taken away.

    Args:
        trainer: Just built, so that its backbone still is the pre-trained model.

    Returns:
        The entry ``zero_shot_check`` of ``result.json``; None unless `is_checked`.
    """
    check_names(trainer)
    if not is_checked(trainer):
        return None
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    correct, images = count_correct(trainer, sample_rows(len(dataset.test)))
    if images == 0:
        return None
    accuracy, chance = 100 * correct / images, 100 / dataset.num_classes
    figure = published_figure(trainer)
    beside = f"published {figure.accuracy:g}% with {figure.prompts}; " if figure else ""
    print(
        f"Zero-shot check of {cfg.DATASET.NAME}: {accuracy:.2f}% on {images:,} of "
        f"{len(dataset.test):,} test images with {texts_read(trainer)} ({beside}chance "
        f"{chance:.2f}%)"
    )
    doubt = verdict(accuracy, images, chance, figure)
    if doubt:
        trainer.notes.add(
            f"zero-shot check of {cfg.DATASET.NAME}: {accuracy:.2f}% on {images:,} test images "
            f"{doubt}. Most likely labels and class names are in different order: check the "
            "folders of the data, classnames.txt and DATASET.CLASSNAMES"
        )
    return {
        "accuracy": accuracy,
        "images": images,
        "template": template_of(trainer),
        "chance": chance,
        "published": figure.accuracy if figure else None,
        "doubt": doubt,
    }


def check_names(trainer: CLIPTrainer) -> None:
    """Note that many classes have the name of another class of ImageNet, if so."""
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    labels = getattr(dataset, "imagenet_labels", None)
    if labels is None or cfg.TEST.ZERO_SHOT_CHECK == "none":
        return
    # Against the field's list rather than the user's own, which may be what is out of order.
    standard = list(standard_names().values())
    whole = len(dataset.imagenet_names) == len(standard)
    wrong = misnamed(dataset.classnames, labels, standard if whole else dataset.imagenet_names)
    # One in ten: lists of names differ in a few that read alike, such as crane or maillot.
    if len(wrong) > dataset.num_classes / 10:
        trainer.notes.add(
            f"{len(wrong)} of {dataset.num_classes} classes of {cfg.DATASET.NAME} have the name of "
            f"another class of ImageNet: {wrong[0]}. Most likely the list of names "
            "(classnames.txt, DATASET.CLASSNAMES) is in another order than the labels"
        )


def is_checked(trainer: CLIPTrainer) -> bool:
    """Whether zero-shot accuracy is measured before this run.

    Never for the bundled model, whose suite is drawn with its labels and has no published figure.
    """
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    if cfg.MODEL.BACKBONE.NAME == "shapes" or cfg.INPUT.NO_TRANSFORM or not dataset.test:
        return False
    choice = cfg.TEST.ZERO_SHOT_CHECK
    relabelled = getattr(dataset, "shifted", False) or bool(cfg.DATASET.CLASSNAMES)
    return choice == "all" or (choice == "shifts" and relabelled)


def sample_rows(total: int) -> list[int]:
    """Numbers of the test images that are looked at, the same in every run."""
    return sorted(random.Random(0).sample(range(total), min(total, IMAGES)))


@torch.no_grad()
def count_correct(trainer: CLIPTrainer, rows: Sequence[int]) -> tuple[int, int]:
    """Classify test images, by number, with the pre-trained model and the dataset's own template.

    Returns:
        How many are right, of how many that could be read.
    """
    device = trainer.device
    model = getattr(trainer, "model", None)
    backbone = getattr(model, "backbone", None) or trainer.load_backbone().to(device)
    prompts = template_prompts(trainer.dm.dataset.classnames, template_of(trainer))
    bank = backbone.text_bank(prompts).to(device).eval()
    correct = images = 0
    with clip.adapters_disabled(backbone), trainer.autocast():
        weights = F.normalize(bank.class_features(backbone), dim=-1)  # (K, D)
        loader = _loader(trainer.dm.test_loader, rows, trainer.cfg)
        for batch in tqdm(loader, desc="Zero-shot check", file=sys.stderr, disable=None):
            image = batch["img"].to(device, non_blocking=True)
            # Two dimensions are features already.
            raw = image if image.ndim == 2 else backbone.encode_image(image)
            features = unit_norm(raw)  # (B, D)
            predicted = (features @ weights.T).argmax(-1).cpu()
            correct += int((predicted == batch["label"]).sum())
            images += len(predicted)
    return correct, images


def texts_read(trainer: CLIPTrainer) -> str:
    """What the check classifies with, in words."""
    if gives_texts(trainer.cfg):
        return "the given text features"
    return f"{template_of(trainer)!r} and {trainer.cfg.MODEL.BACKBONE.NAME}"


def template_of(trainer: CLIPTrainer) -> str:
    """The dataset's own template; CoOp's for a dataset class that states none."""
    return getattr(trainer.dm.dataset, "template", "") or hand_made(trainer.cfg.DATASET.NAME)


def _loader(plain: Any, rows: Sequence[int], cfg: Any) -> Iterable[dict[str, Any]]:
    """Load some images as the test loader does."""
    # Random transforms draw from these seeds, so that the check moves no generator of the run.
    indices = [SeededIndex(row, mix_seed("zero-shot check", row)) for row in rows]
    size = cfg.DATALOADER.TEST.BATCH_SIZE
    batches = [indices[i : i + size] for i in range(0, len(rows), size)]
    if isinstance(plain, GivenFeatureLoader):
        return (plain.batch(rows) for rows in batches)
    return loader_like(plain, batches)


def published_figure(trainer: CLIPTrainer) -> Figure | None:
    """The published accuracy of what the check measures, if one is known."""
    cfg = trainer.cfg
    if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
        return None
    return FIGURES.get((cfg.DATASET.NAME, cfg.MODEL.BACKBONE.NAME))


def verdict(accuracy: float, images: int, chance: float, figure: Figure | None) -> str:
    """What speaks against the labels, given percentages; empty if nothing does."""
    if chance < 100 and accuracy <= chance + 3 * _scatter(chance, images):
        return f"is at chance level ({chance:.2f}%)"
    if figure:
        least = figure.accuracy - TOLERANCE - 3 * _scatter(figure.accuracy, images)
        if accuracy < least:
            return f"is far below the published {figure.accuracy:g}%"
    return ""


def _scatter(percent: float, images: int) -> float:
    """Standard deviation of an accuracy on that many images, in percent."""
    return math.sqrt(percent * (100 - percent) / images)
