#!/usr/bin/env python3
"""Token statistics of a trained MaPLe over a dataset's training images, for PromptAlign.

    python scripts/promptalign_statistics.py --model-dir output/.../MaPLe/cross_dataset/seed1
    python scripts/promptalign_statistics.py --model-dir DIR --root data --output statistics.pt \
        --dataset-config-file configs/datasets/imagenet.yaml -- DATASET.NUM_SHOTS 16

By default over all training images of the run's dataset, into the run's directory, where
PromptAlign looks for them, or makes them on first use. To use another file, set
TRAINER.PromptAlign.STATISTICS. The folder of a released checkpoint does not say how it was made:
give --dataset-config-file, and --config-file if it is not
configs/trainers/MaPLe/cross_dataset.yaml.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from yacs.config import CfgNode

import datasets.table  # noqa: F401 - registers the datasets
from dassl.config.paths import path_flag
from dassl.engine import build_trainer, read_result
from dassl.errors import plain_main
from scripts.training.config import PLACE_KEYS, build_config
from scripts.training.parser import argument_parser
from trainers.test_time.token_statistics import (
    FILE_NAME,
    TokenStatistics,
    token_statistics,
    training_batches,
)

RECIPE = REPOSITORY / "configs/trainers/MaPLe/cross_dataset.yaml"


def model_config(args: argparse.Namespace, scratch: str) -> CfgNode:
    """The config of the run, for all training images, with what flags and options change.

    ``scratch`` takes what building a dataset writes.
    """
    if not Path(args.model_dir).is_dir():
        raise FileNotFoundError(f"--model-dir: no directory {args.model_dir}")
    result = read_result(args.model_dir)
    if result is None and not args.dataset_config_file:
        raise ValueError(
            f"--model-dir: {args.model_dir} has no complete result.json, which says what it was "
            "trained on: give --dataset-config-file"
        )
    recipe = args.config_file or ("" if result else str(RECIPE))
    flags = {
        "--config-file": recipe,
        "--dataset-config-file": args.dataset_config_file,
        "--root": args.root,
        "--backbone": args.backbone,
        "--device": args.device,
        "--trainer": "MaPLe",
        "--output-dir": scratch,
    }
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    # All images in fp32, as in PromptAlign; trailing options can restrict them to a few shots.
    options = ["TRAINER.MaPLe.PREC", "fp32", "DATASET.NUM_SHOTS", "-1", "TEST.ZERO_SHOT_CHECK"]
    options += ["none", *(word for word in args.opts if word != "--")]
    recorded = result["config"] if result else {}
    below = {key: value for key, value in recorded.items() if key not in PLACE_KEYS}
    return build_config(argument_parser().parse_args([*words, *options]), below)


def make_statistics(args: argparse.Namespace) -> tuple[TokenStatistics, Path]:
    """Make and write the statistics; return them and their path."""
    path = Path(args.output or Path(args.model_dir, FILE_NAME))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(model_config(args, scratch))
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.set_model_mode("eval")
        batches = training_batches(trainer.cfg, trainer.dm.dataset, trainer.device)
        found = token_statistics(trainer.model, batches, trainer.cfg.DATASET.NAME)
    found.save(path)
    return found, path


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-dir", type=path_flag, required=True, help="folder of a finished run of MaPLe")
    add("--load-epoch", type=int, help="epoch of the weights; the last by default")
    add("--config-file", type=path_flag, help="YAML of MaPLe; by default what the run recorded")
    add("--dataset-config-file", type=path_flag, help="YAML of a dataset; by default the run's")
    add("--root", type=path_flag, help="folder of all datasets; by default where the run found it")
    add("--backbone", help="by default the run's")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add(
        "--output",
        type=path_flag,
        help=f"file to write; by default {FILE_NAME} in the run's folder",
    )
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, applied last")
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or end with a message."""
    args = build_parser().parse_args(argv)
    found, path = make_statistics(args)
    shape = " x ".join(str(size) for size in found.mean.shape)
    print(f'{shape} means and variances of {found.images:,} images written to "{path}"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
