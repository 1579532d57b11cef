"""What the tests of full fine-tuning share."""

from __future__ import annotations

import torch

from tests.trainers.plain import FEW_TEMPLATES

SMALL = (
    *("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "20"),
    *("OPTIM.WARMUP_STEP", "1"),
    *FEW_TEMPLATES,
)
HALF = ("DATASET.SUBSAMPLE_CLASSES", "base")
ENCODER, W = "backbone.model.visual.", "classifier"


def batch(classes: int = 20, images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(images, 3, 48, 48), torch.randint(classes, (images,))
