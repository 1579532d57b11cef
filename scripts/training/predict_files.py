"""Input and output of a prediction: images by pattern, lists of class names, tables."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dassl.config import user_path
from dassl.utils.files import atomic_write
from datasets.classnames import by_wnid, in_label_order, read_name_list
from datasets.listing import LeftOut, find_below, is_foreign, is_image

SUFFIXES = (".csv", ".json")


@dataclass
class Prediction:
    """What was predicted."""

    classnames: list[str]  # in label order
    # (path, [(class name, probability), best first]) of each image.
    rows: list[tuple[str, list[tuple[str, float]]]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # reason by path
    about: dict[str, str] = field(default_factory=dict)  # trainer, backbone and run
    notes: list[str] = field(default_factory=list)  # as in a run's ``result.json``


def find_images(patterns: Sequence[str], left_out: LeftOut | None = None) -> list[str]:
    """Return the images that files, folders and globs stand for, each once, in their order.

    A file is taken whatever its suffix. Of folders (with all below them) and of globs (``**``
    crosses folders) only files with an image's suffix are; ``left_out`` counts the rest.
    """
    left_out = LeftOut() if left_out is None else left_out
    found: dict[str, str] = {}
    for pattern in patterns:
        given = user_path(pattern)
        named = os.path.isfile(given)
        matches = [given] if os.path.exists(given) else _matches(given, left_out)
        images = [path for match in matches for path in _images_of(match, named, left_out)]
        if not images:
            what = "holds no image" if os.path.isdir(given) else "matches no image"
            rest = f"; left out: {left_out}" if left_out else ""
            raise FileNotFoundError(
                f"--predict: {pattern!r} {what}; give files, folders or globs (in quotes), of "
                f"images whose suffix Pillow knows (.jpg, .png, .webp, .tif, ...){rest}"
            )
        for path in images:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _matches(pattern: str, left_out: LeftOut) -> list[str]:
    """Return a glob's matches, except in folders that no user made, unless the glob names them."""
    matches = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        foreign = [part for part in Path(match).parts if is_foreign(part)]
        if set(foreign) <= set(Path(pattern).parts):
            matches.append(match)
        else:
            left_out.add_foreign(match.partition(foreign[0])[0] + foreign[0])
    return matches


def _images_of(path: str, named: bool, left_out: LeftOut) -> list[str]:
    if os.path.isdir(path):
        return find_below(path, left_out)
    if named or is_image(path):
        return [path]
    left_out.add_file(path)
    return []


def read_names(path: Path) -> list[str]:
    """Return class names from a file in label order, as ``datasets.classnames`` reads them."""
    if not path.is_file():
        raise FileNotFoundError(f"--classnames: no file {path}")
    names = read_name_list(path, "--classnames")
    if by_wnid(names):
        if list(names) != sorted(names):
            raise ValueError(
                f"--classnames: {path} has names by wnid, which are not sorted, so their labels "
                "are unknown; sort the lines, or give the names alone"
            )
        names = list(names.values())
    elif isinstance(names, dict):
        names = in_label_order(names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"--classnames: {path} must hold a list of names, or a JSON object from label to name"
        )
    empty = [label for label, name in enumerate(names) if not name.strip()]
    if not names or empty:
        what = f"no name for label {empty[0]}" if names else "no name; each class is a line"
        raise ValueError(f"--classnames: {path} holds {what}")
    return [name.strip() for name in names]  # duplicates are fine: ImageNet has "missile" twice


def print_table(found: Prediction) -> None:
    """Print a row per image."""
    rows = [
        [path, *(f"{name} {100 * probability:.1f}%" for name, probability in best)]
        for path, best in found.rows
    ]
    if rows:
        print(tabulate(rows, ["image", *map(str, range(1, len(rows[0])))], disable_numparse=True))


def write_prediction(found: Prediction, path: Path) -> None:
    """Write a CSV with a row per image and class, or a JSON, by the file's suffix."""
    with atomic_write(path) as file:
        if path.suffix.lower() == ".csv":
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image", "rank", "class", "probability"])
            for image, best in found.rows:
                for rank, (name, probability) in enumerate(best, start=1):
                    writer.writerow([image, rank, name, f"{probability:.6f}"])
        else:
            images = [
                {"image": image, "predictions": [{"class": n, "probability": p} for n, p in best]}
                for image, best in found.rows
            ]
            content: dict[str, Any] = {
                **found.about,
                "classnames": found.classnames,
                "images": images,
            }
            content |= {"unreadable": found.unreadable, "notes": found.notes}
            json.dump(content, file, indent=1)
            file.write("\n")
    print(f'Predictions written to "{path}"')
