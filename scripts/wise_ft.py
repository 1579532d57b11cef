#!/usr/bin/env python3
"""Accuracy over the weights between two models: the pre-trained and a fine-tuned one, or two runs.

    python scripts/wise_ft.py --model-dir output/fft/train/shapes/shots_all/FT/fft/seed1
    python scripts/wise_ft.py --model-dir .../FT/fft/seed1 --start .../FT/fft/seed2
    python scripts/wise_ft.py --model-dir .../RAdaFT/fft/seed1 --targets shapes_v2 --alphas 0 0.5 1

WiSE-FT (Wortsman et al., CVPR 2022, arXiv:2109.01903): weights (1 - alpha) start + alpha end,
tested on the run's own dataset and on others. Works with any trained run, whatever trained in it.
Writes wise_ft.csv and wise_ft.png.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config import merge_file
from dassl.config.paths import file_flag, path_flag
from dassl.engine import build_trainer, drop_caches, trainable_state
from dassl.errors import plain_main
from dassl.names import check_availability
from dassl.results import RESULT_NAME
from dassl.utils import set_random_seed
from dassl.utils.files import atomic_write
from datasets.rows import ROW_OF
from scripts.drawing.trained_run import config_of, read_run
from scripts.jobs.protocols import PROTOCOLS, REPO, split_words
from scripts.jobs.settings import config_stems
from scripts.training.config import default_config
from trainers.finetuning.recipe import FineTuning
from trainers.finetuning.wise_ft import interpolate

ALPHAS = [number / 10 for number in range(11)]
OOD = "OOD mean"
# By alpha: accuracy by dataset.
Curve = dict[float, dict[str, float]]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-dir", type=file_flag, required=True, help="directory of the run at alpha 1")
    add(
        "--start",
        type=file_flag,
        metavar="DIR",
        help="run at alpha 0; default: the pre-trained model",
    )
    add("--targets", nargs="+", default=[], metavar="NAME", help="default: the dataset's shifts")
    add("--alphas", nargs="+", type=float, default=ALPHAS, metavar="A", help="default: 0 0.1 .. 1")
    add("--output", type=file_flag, metavar="DIR", help="default: wise_ft in the run's directory")
    add(
        "--root",
        type=path_flag,
        default="",
        help="folder of all datasets; default: where the run found it",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser


def choose_targets(source: str, named: Sequence[str]) -> list[str]:
    """Return the datasets to test on besides ``source``, the run's own, by their config names."""
    existing = config_stems(REPO / "configs/datasets")
    if named:
        return [
            check_availability(name, existing, "--targets", " (configs/datasets)") for name in named
        ]
    config = ROW_OF[source].config if source in ROW_OF else ""
    found = PROTOCOLS["fft"].targets_of(config)
    if not found:
        raise ValueError(f"--targets: name datasets to test on; {source} has no shifts known here.")
    return [name for name in found if name in existing]


@contextmanager
def open_trainer(args: argparse.Namespace, target: str) -> Iterator[Any]:
    """Build the run's trainer without its weights, on a target ("" for the run's own dataset)."""
    result = read_run(args.model_dir)
    cfg = config_of(result, args.model_dir / RESULT_NAME)
    root = args.root or cfg.DATASET.ROOT
    if target:
        cfg.DATASET = default_config().DATASET  # nothing of the run's own dataset
        merge_file(cfg, REPO / f"configs/datasets/{target}.yaml")
        cfg.MODEL.BACKBONE.NAME = result["backbone"]
    cfg.DATASET.ROOT, cfg.SEED, cfg.DEVICE = root, result["seed"], args.device
    cfg.VERBOSE = cfg.FEATURE_CACHE.ENABLED = False
    with tempfile.TemporaryDirectory() as scratch:
        cfg.OUTPUT_DIR = (
            scratch  # trainer.test() writes a result.json, which must not replace the run's
        )
        cfg.freeze()
        set_random_seed(cfg.SEED)
        yield build_trainer(cfg)


def copied(trainer: Any) -> dict[str, Tensor]:
    """A copy of a trainer's trainable weights."""
    return {name: value.detach().clone() for name, value in trainable_state(trainer.model).items()}


def both_ends(
    trainer: Any, end: Path, start: Path | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights at alpha 0 (run ``start`` or pre-trained) and at alpha 1 (run ``end``)."""
    first = copied(trainer)
    trainer.any_config = True  # the two runs may differ in how they were trained
    trainer.load_model(str(start or end))
    if start is not None:
        first, classes = copied(trainer), list(trainer.rows_by_class().classes)
        trainer.load_model(str(end))
        if list(trainer.rows_by_class().classes) != classes:
            raise ValueError(
                f"--start: {start} was trained on other classes than {end}, or on the same in "
                "another order, and there is nothing between rows of different classes"
            )
    elif "classifier" in first and isinstance(getattr(trainer, "recipe", None), FineTuning):
        # Made only after loading: before it, a target's classifier may lack classes of the run.
        first["classifier"] = trainer.recipe.ensemble_weights(trainer.model.backbone)
    return first, copied(trainer)


def accuracies(args: argparse.Namespace, target: str) -> dict[float, float]:
    """Accuracy on a target by alpha."""
    found = {}
    with redirect_stdout(io.StringIO()), open_trainer(args, target) as trainer:
        if not trainable_state(trainer.model):
            raise ValueError(f"--model-dir: {args.model_dir} trained nothing")
        start, end = both_ends(trainer, args.model_dir, args.start)
        for alpha in args.alphas:
            # Only what trains was interpolated; features cached for other weights are stale.
            trainer.model.load_state_dict(interpolate(start, end, alpha), strict=False)
            drop_caches(trainer.model)
            found[alpha] = trainer.test()
    return found


def measure(args: argparse.Namespace) -> tuple[str, Curve]:
    """Test on the run's own dataset and on all targets; return the former's name, and the curve."""
    source = str(read_run(args.model_dir)["dataset"])
    targets = choose_targets(source, split_words(args.targets))
    curve: Curve = {alpha: {} for alpha in args.alphas}
    for target in ["", *targets]:
        for alpha, accuracy in accuracies(args, target).items():
            curve[alpha][target or source] = accuracy
        print(f"tested on {target or source}", file=sys.stderr)
    for row in curve.values():
        row[OOD] = sum(row[target] for target in targets) / len(targets)
    return source, curve


def save_csv(path: Path, curve: Curve) -> None:
    """One line per alpha, one column per dataset, at full precision."""
    names = list(next(iter(curve.values())))
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["alpha", *names])
        writer.writerows([alpha, *(row[name] for name in names)] for alpha, row in curve.items())


def save_picture(path: Path, curve: Curve, source: str, title: str) -> None:
    """Accuracy over alpha, and the mean over shifts against the run's own dataset."""
    from matplotlib.figure import Figure  # takes longer than everything before

    from scripts.drawing.pictures import save

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    alphas = list(curve)
    for name in next(iter(curve.values())):
        style = {"linewidth": 2.5} if name in (source, OOD) else {"linestyle": "--"}
        left.plot(alphas, [row[name] for row in curve.values()], marker=".", label=name, **style)
    left.set(xlabel="alpha", ylabel="accuracy (%)")
    left.legend(fontsize="small")
    own, shifted = ([row[name] for row in curve.values()] for name in (source, OOD))
    right.plot(own, shifted, marker="o", markersize=4)
    for alpha, x, y in zip(alphas, own, shifted, strict=True):
        offset = (4, -9)
        right.annotate(f"{alpha:g}", (x, y), xytext=offset, textcoords="offset points", fontsize=7)
    right.set(xlabel=f"{source} (%)", ylabel=f"{OOD} (%)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    save(figure, path)


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 with a message."""
    args = build_parser().parse_args(argv)
    args.alphas = sorted(set(args.alphas))
    output = args.output or args.model_dir / "wise_ft"
    source, curve = measure(args)
    save_csv(output / "wise_ft.csv", curve)
    start = args.start or "the pre-trained model"
    title = f"{args.model_dir.parents[1].name}: weights from {start} (0) to the run (1)"
    save_picture(output / "wise_ft.png", curve, source, title)
    print((output / "wise_ft.csv").read_text(), end="")
    print(f'Drawn: "{output / "wise_ft.png"}"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
