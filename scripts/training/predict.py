"""``train.py --predict``: classify images with a trained run, or with the pre-trained model.

The trainer is built as for any run, on a dataset that consists of class names and the images to
classify; the data it was trained on is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.config import user_path
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.engine import build_trainer, read_result
from dassl.engine.checkpoint import checkpoint_path
from dassl.utils import load_checkpoint, set_random_seed
from datasets.classnames import unreadable_names
from datasets.listing import LeftOut
from datasets.rows import ROW_OF
from scripts.training.config import PLACE_KEYS, build_config
from scripts.training.predict_features import take_input
from scripts.training.predict_files import (
    SUFFIXES,
    Prediction,
    find_images,
    print_table,
    read_names,
    write_prediction,
)
from trainers.base.templates import own_template

ZERO_SHOT = "ZeroshotCLIP"
TOP_K = 5


def run_predict(args: argparse.Namespace) -> int:
    """Classify what ``--predict`` names; return 1 if an image could not be read, else 0."""
    _check_values(args)
    cfg = prediction_config(args)
    names = class_names(args, cfg)  # before find_images: it may draw the bundled suite
    rows = take_input(cfg, args.predict, names)
    left_out = LeftOut()
    paths = find_images(args.predict, left_out) if rows is None else []
    notes = [f"--predict leaves out {left_out}"] if left_out else []
    odd = unreadable_names(names)
    notes += [f"{odd}; give names with --classnames"] if odd else []
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    top_k = TOP_K if args.top_k is None else args.top_k
    found = predict(cfg, names, paths, top_k, args.model_dir, args.load_epoch, rows)
    found.notes += notes
    print_table(found)
    if args.predict_output:
        write_prediction(found, Path(args.predict_output))
    for path, reason in found.unreadable.items():
        print(f"error: not predicted, {path}: {reason}", file=sys.stderr)
    return int(bool(found.unreadable))


def _check_values(args: argparse.Namespace) -> None:
    """Refuse bad values of --top-k and --predict-output before anything is loaded."""
    if args.top_k is not None and args.top_k < 1:
        raise ValueError(f"--top-k must be at least 1, got {args.top_k}")
    suffix = Path(args.predict_output).suffix.lower() if args.predict_output else ".csv"
    if suffix not in SUFFIXES:
        raise ValueError(
            f"--predict-output: {args.predict_output!r} must end in {' or '.join(SUFFIXES)}, which "
            f"says how it is written; got {suffix!r}"
        )


def prediction_config(args: argparse.Namespace) -> CfgNode:
    """The config of the run in ``--model-dir``, below all flags; without it zero-shot CLIP."""
    below: dict[str, Any] = {}
    if args.model_dir:
        if not Path(args.model_dir).is_dir():
            raise FileNotFoundError(f"--model-dir: no directory {args.model_dir}")
        config = (read_result(args.model_dir) or saved_meta(args)).get("config")
        if config:
            below = {k: v for k, v in config.items() if k not in PLACE_KEYS}
            drop_shipped_template(below)
        elif not (args.trainer or args.config_file):
            raise ValueError(
                f"--model-dir: {args.model_dir} has neither a complete result.json nor weights "
                "that say how the model was made; wait for the run to end, or give --config-file "
                "and --trainer"
            )
    elif not (args.trainer or args.config_file):
        below = {"TRAINER": {"NAME": ZERO_SHOT}}
    if not (args.dataset_config_file or "DATASET" in below):
        below["DATASET"] = {"NAME": "Folder"}  # class names come from --classnames
    cfg = build_config(args, below)
    cfg.defrost()
    cfg.VERBOSE = False
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    cfg.TEST.ZERO_SHOT_CHECK = "none"
    cfg.TEST.FINAL_MODEL = "last_step"  # nothing is trained, and there are no images to choose on
    cfg.FEATURE_CACHE.ENABLED = False
    cfg.DATALOADER.TEST.SAMPLER = "SequentialSampler"  # rows in the order of the images
    if args.seed is None:
        cfg.SEED = max(cfg.SEED, 0)  # so that random views are the same each time
    cfg.freeze()
    return cfg


def drop_shipped_template(config: dict[str, Any]) -> None:
    """Take a record's template away, in place, where it is no choice of the user's.

    Runs of earlier versions recorded the text of the dataset's row, which methods with words of
    their own did not read.
    """
    dataset = config.get("DATASET", {})
    row = ROW_OF.get(dataset.get("NAME"))
    if row is not None and dataset.get("PROMPT_TEMPLATE") == row.template:
        config["DATASET"] = {**dataset, "PROMPT_TEMPLATE": ""}


def saved_meta(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the weights in ``--model-dir`` record of their run; empty if there are none."""
    folders = sorted(path.name for path in Path(args.model_dir).iterdir() if path.is_dir())
    for folder in (*folders, ""):  # the weights of an export are in no folder of their own
        try:
            content = load_checkpoint(checkpoint_path(args.model_dir, folder, args.load_epoch))
        except FileNotFoundError:
            continue
        meta = content.get("meta") if isinstance(content, dict) else None
        if isinstance(meta, dict) and "method" in meta:
            return meta
    return {}


def class_names(args: argparse.Namespace, cfg: CfgNode) -> list[str]:
    """Names from ``--classnames``, else of the run in ``--model-dir``, else of the dataset."""
    if args.classnames:
        return read_names(Path(user_path(args.classnames)))
    result = read_result(args.model_dir) if args.model_dir else None
    if result and result.get("per_class"):
        rows = sorted(result["per_class"], key=lambda row: row["label"])
        if len(rows) == result.get("num_classes"):
            return [row["name"] for row in rows]
    saved = saved_meta(args).get("classnames") if args.model_dir else None
    if saved:
        return list(saved)
    if not args.dataset_config_file and result is None:
        raise ValueError(
            f"--{'export' if args.export else 'predict'} needs class names: give --classnames FILE "
            "(one a line), --model-dir of a run, or --dataset-config-file of a dataset that is on "
            "this machine"
        )
    return list(build_dataset(cfg).classnames)


class Pictures(DatasetBase):
    """A dataset of class names and of test images whose classes are unknown."""

    # What methods ask of datasets besides, see datasets.base.CLIPDataset.
    shifted = False
    imagenet_names = ()
    imagenet_labels = None

    def __init__(self, classnames: list[str], paths: Sequence[str], template: str) -> None:
        super().__init__(test=[Datum(path, 0, 0, classnames[0]) for path in paths])
        self.template = template
        # Set by hand, as DatasetBase would derive them from the made-up labels.
        self._classnames, self._num_classes = classnames, len(classnames)
        self._lab2cname = dict(enumerate(classnames))


@contextmanager
def standing_for(name: str, dataset: DatasetBase) -> Iterator[None]:
    """Inside the block, build this dataset where a config names another one.

    The config keeps its name, because methods choose texts and files by it.
    """
    kind = DATASET_REGISTRY.get(name)
    DATASET_REGISTRY.register(name, lambda cfg: dataset, force=True)
    try:
        yield
    finally:
        DATASET_REGISTRY.register(name, kind, force=True)


def trainer_of(cfg: CfgNode, dataset: DatasetBase, model_dir: str, epoch: int | None) -> Any:
    """Build the trainer of a run on a dataset in place of its own, ready to evaluate.

    ``model_dir`` is the run to take trained weights from, "" for none; ``epoch`` the last by None.
    """
    set_random_seed(cfg.SEED)
    with standing_for(cfg.DATASET.NAME, dataset):
        trainer = build_trainer(cfg)
    if model_dir:
        trainer.load_model(model_dir, epoch=epoch)
    trainer.set_model_mode("eval")
    return trainer


@torch.no_grad()
def predict(
    cfg: CfgNode,
    classnames: list[str],
    paths: Sequence[str],
    top_k: int,
    model_dir: str = "",
    epoch: int | None = None,
    rows: DatasetBase | None = None,
) -> Prediction:
    """Classify images, or rows of features.

    Args:
        cfg: Of a run.
        classnames: In label order.
        paths: Image files.
        top_k: Classes per image; all, if there are fewer.
        model_dir: Run to take trained weights from; "" for none.
        epoch: Of the weights; the last by default.
        rows: A dataset of features to classify instead of ``paths``.

    Returns:
        The best classes of each image that can be read, with the softmax of the logits.
    """
    template = cfg.DATASET.PROMPT_TEMPLATE or own_template(cfg.DATASET.NAME)
    dataset = rows or Pictures(classnames, paths, template)
    trainer = trainer_of(cfg, dataset, model_dir, epoch)
    about = {"trainer": cfg.TRAINER.NAME, "backbone": cfg.MODEL.BACKBONE.NAME, "run": model_dir}
    found = Prediction(classnames, about=about)
    for batch in tqdm(trainer.test_loader, file=sys.stderr, disable=None):
        image, _ = trainer.parse_batch_test(batch)
        with trainer.autocast():
            logits = trainer.model_inference(image)  # (B, K)
        best = logits.float().softmax(-1).topk(min(top_k, len(classnames)))  # (B, top_k)
        for path, values, labels in zip(
            batch["impath"], best.values.tolist(), best.indices.tolist(), strict=True
        ):
            names = [classnames[label] for label in labels]
            found.rows.append((path, list(zip(names, values, strict=True))))
    found.notes = list(trainer.notes)
    found.unreadable = trainer.dm.bad_images() | dict(trainer.test_loader.bad_images)
    return found
