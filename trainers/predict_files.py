"""What a prediction reads and writes: pictures by pattern, lists of class names, tables."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from dassl.config import user_path
from dassl.utils.files import atomic_write
from datasets.readers import IMAGE_SUFFIXES

SUFFIXES = (".csv", ".json")


@dataclass
class Prediction:
    """What was predicted.

    Attributes:
        classnames: In label order.
        rows: Of each picture its path and (class name, probability) of the best, best first.
        unreadable: Reason by path.
        about: Trainer, backbone and run.
    """

    classnames: list[str]
    rows: list[tuple[str, list[tuple[str, float]]]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)


def find_images(patterns: Sequence[str]) -> list[str]:
    """The images that files, folders and globs stand for, each once, in their order.

    Args:
        patterns: A file is taken whatever it is called; of a folder, and of all below it, what has
            an image's suffix; of a glob (``**`` crosses folders) the same of each match.

    Raises:
        FileNotFoundError: One of them stands for no image.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        given = user_path(pattern)
        named = os.path.isfile(given)
        matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        images = [path for match in matches for path in _images_of(match, named)]
        if not images:
            what = "holds no image" if os.path.isdir(given) else "matches no image"
            raise FileNotFoundError(
                f"--predict: {pattern!r} {what}; give files, folders or globs (in quotes), of "
                f"images that end in {' '.join(IMAGE_SUFFIXES)}"
            )
        found.update(dict.fromkeys(images))
    return list(found)


def _images_of(path: str, named: bool) -> list[str]:
    if os.path.isdir(path):
        files = [p for p in Path(path).rglob("*") if p.is_file()]
        hidden = [p for p in files if any(q.startswith(".") for q in p.relative_to(path).parts)]
        return sorted(str(p) for p in set(files) - set(hidden) if _is_image(p.name))
    return [path] if named or _is_image(path) else []


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def read_names(path: Path) -> list[str]:
    """Class names of a text file, one a line, or a JSON list.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no list of names, or has none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--classnames: no file {path}")
    text = path.read_text(encoding="utf-8")
    try:
        names = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except ValueError as error:
        raise ValueError(f"--classnames: {path} is no JSON: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"--classnames: {path} must hold a list of names")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError(f"--classnames: {path} holds no name; each class is a line of its own")
    return names  # one may be there twice: two classes of ImageNet are called missile


def print_table(found: Prediction) -> None:
    """Print a row per picture."""
    rows = [
        [path, *(f"{name} {100 * probability:.1f}%" for name, probability in best)]
        for path, best in found.rows
    ]
    if rows:
        print(tabulate(rows, ["image", *map(str, range(1, len(rows[0])))], disable_numparse=True))


def write_prediction(found: Prediction, path: Path) -> None:
    """Write a CSV with a row per picture and class, or a JSON, by the file's suffix.

    Args:
        found: What was predicted.
        path: Written in one piece; its folder is made if need be.
    """
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
            content = {**found.about, "classnames": found.classnames, "images": images}
            json.dump({**content, "unreadable": found.unreadable}, file, indent=1)
            file.write("\n")
    print(f'Predictions written to "{path}"')
