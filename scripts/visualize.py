#!/usr/bin/env python3
"""Draw what a trained method does to CLIP's rational matrix: t-SNE, mask values, heat maps.

    python scripts/visualize.py --model-dir output/.../seed1
    python scripts/visualize.py --model-dir output/.../seed1 --images 0 17 203 --output figures
    python scripts/visualize.py --model-dir output/.../seed1 --classes "red ring" "blue star"

RAda (arXiv:2507.15480), appendix B. The directory of a run is enough to find its config, weights
and data. Writes tsne.png, mask_histogram.png and heat_maps.png; for a method without a mask, only
the first. The t-SNE is of one row of each image's matrix: that of the predicted class, or with
--rows true of the true one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import file_flag, path_flag
from dassl.data.datasets import Datum
from dassl.data.wrapper import read_image
from dassl.errors import plain_main
from dassl.utils.logger import escape_unprintable
from scripts.drawing.image_choice import Choice, by_lot, choose_images, select
from scripts.drawing.mask_values import (
    ROWS_OF,
    Maps,
    Rows,
    ValueCounts,
    collect_maps,
    collect_rows,
    embed,
    head_outputs,
    require_head,
)
from scripts.drawing.pictures import HeatMap, save_heat_maps, save_histogram, save_scatter
from scripts.drawing.trained_run import load_run

FIGURES = ("tsne", "histogram", "heat_maps")
ROWS_SHOWN = 30  # of a heat map: more class names could not be read
DEFAULT_IMAGES = "4"
PICTURE_SIDE = 256  # pixels


def heat_map(item: Datum, maps: Maps, names: Sequence[str], wanted: Sequence[int]) -> HeatMap:
    """Return what is drawn of one image, whose label is -1 if its class is not known.

    ``wanted`` are labels of the classes to show; if empty, all classes or, of more than
    ``ROWS_SHOWN``, those with the highest logits and the true one.
    """
    best = int(maps.logits.argmax())
    if not wanted and len(names) <= ROWS_SHOWN:
        wanted = range(len(names))
    elif not wanted:
        # The true class comes first, so that it is shown however low its logit is.
        known = [item.label] if item.label >= 0 else []
        ranked = dict.fromkeys([*known, *np.argsort(-maps.logits).tolist()])
        wanted = sorted(list(ranked)[:ROWS_SHOWN])
    rows = list(wanted)
    shifted = np.exp(maps.logits - maps.logits.max())  # (K,); the shift prevents an overflow
    share = 100 * shifted[best] / shifted.sum()
    true = names[item.label] if item.label >= 0 else "unknown"
    lines = [
        "/".join(Path(item.impath).parts[-2:]),
        f"true: {true}",
        f"predicted: {names[best]} ({share:.0f}%)",
    ]
    picture = read_image(item.impath)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    shown = [names[label] for label in rows]
    own = rows.index(item.label) if item.label in rows else None
    return HeatMap(picture, lines, shown, own, maps.mask[rows], maps.rational[rows])


def figures_for(trainer: Any, args: argparse.Namespace, item: Datum) -> Sequence[str]:
    """Return the figures to draw: those asked for, or all that the method can have.

    Any image does as ``item``: it only shows whether the method has a mask.
    """
    mask = next(head_outputs(trainer, [item])).output.mask
    if mask is not None:
        return args.figures or FIGURES
    asked = [f"--figures {name}" for name in args.figures if name != "tsne"]
    asked += ["--images"] * bool(args.images)
    name = trainer.cfg.TRAINER.NAME
    if asked:
        raise ValueError(
            f"{name} has no mask (M = 1), so {' and '.join(asked)} cannot be drawn: only the t-SNE "
            "of R can, --figures tsne"
        )
    print(f"{name} has no mask (M = 1): only the t-SNE of R is drawn")
    return ("tsne",)


def draw(args: argparse.Namespace) -> list[Path]:
    """Draw the figures that the arguments ask for; return the files written."""
    trainer = load_run(args.model_dir, root=args.root, device=args.device)
    require_head(trainer)
    chosen = select(trainer, args.split, args.classes, args.seed)
    images = choose_images(args.images or [DEFAULT_IMAGES], chosen)
    # Drawn after the images, so that --points does not change which images a seed selects.
    points = by_lot(chosen, args.points)
    figures = figures_for(trainer, args, points[0])
    output = args.output or args.model_dir / "figures"
    written = []
    if "heat_maps" in figures:
        written.append(output / "heat_maps.png")
        wanted = chosen.classes if args.classes else []
        draw_heat_maps(written[-1:], trainer, images, chosen, wanted)
    if set(figures) & {"tsne", "histogram"}:
        rows, counts = collect_rows(trainer, points, args.rows)
        if counts is not None and "histogram" in figures:
            written.append(output / "mask_histogram.png")
            save_values(written[-1:], trainer, rows, counts, chosen)
        if "tsne" in figures:
            written.append(output / "tsne.png")
            save_embedding(written[-1:], trainer, rows, chosen, args.rows, args.seed)
    return written


def draw_heat_maps(
    paths: Sequence[Path],
    trainer: Any,
    images: list[Datum],
    chosen: Choice,
    wanted: Sequence[int] = (),
) -> None:
    """Heat maps of images, the same in every file; see :func:`heat_map` for ``wanted``."""
    found = collect_maps(trainer, images)
    # Unreadable images may be missing from what was found, hence the places.
    drawn = [heat_map(images[place], maps, chosen.names, wanted) for place, maps in found.items()]
    shown, known = max(len(one.names) for one in drawn), len(chosen.names)
    part = "" if shown == known else f"; {shown} of {known} classes"
    for path in paths:
        save_heat_maps(path, drawn, f"{_about(trainer)}: mask and rational matrix of images{part}")


def save_values(
    paths: Sequence[Path], trainer: Any, rows: Rows, counts: ValueCounts, chosen: Choice
) -> None:
    """Write the histogram of the images' masks."""
    images, width = rows.rational.shape
    size = f"{images} images x {len(chosen.names)} classes x {width} dimensions"
    for path in paths:
        save_histogram(path, counts, f"{_about(trainer)}: values of the mask, {size}")


def save_embedding(
    paths: Sequence[Path], trainer: Any, rows: Rows, chosen: Choice, of: str, seed: int
) -> None:
    """Write the t-SNE of the images' rows, which are ``of`` one of `ROWS_OF`."""
    letter, known = {"true": "y", "predicted": "p"}[of], len(chosen.names)
    shown = len(set(rows.label.tolist()))
    plain = f"rational matrix, R[b, {letter}]"
    masked = f"masked, (M * R)[b, {letter}]"
    if of == "predicted":  # as many clusters as are predicted, at most
        plain += f"; CLIP predicts {_count(rows.plain)} of {known} classes"
        masked += f"; predicted are {_count(rows.marked)} of {known}"
    if rows.masked is None:
        plain += " (this method has no mask: M = 1)"
    panels = [(plain, embed(rows.rational, seed))]
    if rows.masked is not None:
        panels.append((masked, embed(rows.masked, seed)))
    part = f"{shown} classes" if shown == known else f"{shown} of {known} classes"
    title = (
        f"{_about(trainer)}: rows of the {of} class {letter}, coloured by the true class, "
        f"{len(rows.label)} images of {part}"
    )
    for path in paths:
        save_scatter(path, panels, rows.label, chosen.names, title)


def _count(classes: np.ndarray | None) -> int:
    return len(set(() if classes is None else classes.tolist()))


def _about(trainer: Any) -> str:
    return f"{trainer.cfg.TRAINER.NAME} on {trainer.cfg.DATASET.NAME}"


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-dir", type=file_flag, required=True, help="output directory of a finished run")
    add(
        "--root",
        type=path_flag,
        default="",
        help="folder of all datasets; default: where the run found it",
    )
    add("--output", type=file_flag, metavar="DIR", help="default: figures in the run's directory")
    add("--split", choices=("train", "val", "test"), default="test")
    add(
        "--images",
        nargs="+",
        default=[],
        metavar="I",
        help=f"for the heat maps: how many (default {DEFAULT_IMAGES}), or several places in the "
        "split (one: @17), or paths",
    )
    add("--classes", nargs="+", default=[], metavar="NAME", help="show these classes only")
    add(
        "--points",
        type=int,
        default=1000,
        metavar="N",
        help="images in the t-SNE and the histogram, at most (default 1000)",
    )
    add("--figures", nargs="+", default=[], choices=FIGURES, help="default: all there are")
    add(
        "--rows",
        choices=ROWS_OF,
        default=ROWS_OF[0],
        help="of the t-SNE: the class whose row is drawn of an image (default predicted)",
    )
    add("--seed", type=int, default=0, help="of the random choice of images and of the t-SNE")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or end with a message."""
    parser = build_parser()
    escape_unprintable()
    args = parser.parse_args(argv)
    if args.points < 1:
        parser.error(f"--points must be at least 1, got {args.points}")
    for path in draw(args):
        print(f'Drawn: "{path}"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
