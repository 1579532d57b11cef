"""``scripts/features.py export``: write the features that frozen-encoder methods work on as files.

They are those of a run with ``--feature-cache``, for any dataset, backbone and method, and
``DATASET.NAME: Features`` reads them: the run on them gives the same numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import datasets.table  # registers the datasets
import trainers  # registers the methods
from clip import TextBank
from dassl.data.features.arrays import CLASSNAMES, Arrays, write_arrays
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from dassl.utils.files import atomic_write
from scripts.training.config import build_config
from scripts.training.parser import argument_parser

__all__ = ["export"]

_REGISTERED = (datasets.table, trainers)


def export(args: argparse.Namespace) -> str:
    """Write train, val, test, text and ``dataset.yaml`` into a folder; return what to do with them.

    Args:
        args: ``config_file, dataset_config_file, root, backbone, seed, device, output, suffix`` and
            ``opts``, KEY VALUE options.

    Raises:
        ValueError: The config is wrong, or the method changes image features or learns texts.
    """
    words = ["--feature-cache", "--output-dir", str(args.output), "--seed", str(args.seed)]
    for flag in ("config_file", "dataset_config_file", "root", "backbone", "device"):
        value = getattr(args, flag)
        words += ["--" + flag.replace("_", "-"), str(value)] if value is not None else []
    cfg = build_config(argument_parser().parse_args([*words, *args.opts]))
    # As train.py does, so that draw and augmentation are those of a run with this seed.
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if trainer.needs_text_tower:
        raise ValueError(
            f"--config-file: {cfg.TRAINER.NAME} learns its texts, so that they are no features to "
            "write; choose a method with frozen texts, such as ZeroshotCLIP or RAda"
        )
    section: dict[str, str] = {}
    loaders = {"train": trainer.train_loader_x, "val": trainer.val_loader}
    for name, loader in {**loaders, "test": trainer.test_loader}.items():
        if loader is not None:
            section[name.upper()] = f"{name}{args.suffix}"
            write_arrays(args.output / section[name.upper()], part_arrays(trainer, loader))
    section["TEXT"] = f"text{args.suffix}"
    write_arrays(args.output / section["TEXT"], text_arrays(trainer))
    return _write_config(args.output, Path(cfg.DATASET.ROOT), section)


def part_arrays(trainer: Any, loader: Any) -> Arrays:
    """Features (N, D), or (N, V, D) of several views, with labels, class names and paths.

    Images that cannot be read are left out.
    """
    views = [loader.features(view) for view in range(loader.views)]
    missing = set().union(*(rows for _, rows in views))
    items = loader.dataset.data_source
    kept = [row for row in range(len(items)) if row not in missing]
    found = [features[kept].numpy() for features, _ in views]
    dataset = trainer.dm.dataset
    return {
        "features": np.stack(found, axis=1) if len(found) > 1 else found[0],
        "labels": np.array([items[row].label for row in kept], dtype=np.int64),
        CLASSNAMES: list(dataset.classnames),
        "paths": [dataset.relative_path(items[row]) for row in kept],
    }


@torch.no_grad()
def text_arrays(trainer: Any) -> Arrays:
    """Text features, class names, and the logarithm of the scale.

    Features are (K, P, D), (K, D) if a class has one text, or (n, D) with ``text_labels`` if
    classes have different numbers of them; not normalised, as the text encoder gives them.
    """
    trainer.set_model_mode("eval")
    model = trainer.model
    bank = getattr(model, "bank", None)
    with trainer.autocast():
        if isinstance(bank, TextBank):
            texts, counts = bank.encode_all(model.text_encoder, unit=False), bank.counts  # (n, D)
        else:
            texts = model.class_weights()  # (K, D), of a classifier that starts as text features
            counts = torch.ones(len(texts), dtype=torch.long)
    features = texts.float().cpu().numpy()
    arrays: Arrays = {}
    if len(set(counts.tolist())) > 1:
        arrays["text_labels"] = torch.arange(len(counts)).repeat_interleave(counts).numpy()
    elif counts[0] > 1:
        features = features.reshape(len(counts), int(counts[0]), -1)  # (K, P, D)
    return {
        "text_features": features,
        CLASSNAMES: list(trainer.dm.dataset.classnames),
        **arrays,
        "logit_scale": np.float32(model.backbone.logit_scale.item()),
    }


def _write_config(output: Path, root: Path, section: dict[str, str]) -> str:
    """Write a dataset's config beside the files, with the folder below the root if it is there."""
    folder = output.absolute()
    inside = folder.is_relative_to(root.absolute())
    place = folder.relative_to(root.absolute()) if inside else folder
    content = {"DATASET": {"NAME": "Features", "DIR": place.as_posix(), "FEATURES": section}}
    file = output / "dataset.yaml"
    with atomic_write(file) as stream:
        stream.write("# Features, by scripts/features.py export. Copy it to configs/datasets/.\n")
        yaml.safe_dump(content, stream, sort_keys=False)
    written = ", ".join(section.values())
    return f"{output}: {written}, and {file} for --dataset-config-file"
