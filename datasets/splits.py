"""Train, val and test lists: reading split files and checking what they claim.

A split file is ``{"train": [[relative path, label, class name], ...], "val": ..., "test": ...}``
with paths relative to the image directory, the format of CoOp's ``split_zhou_<Name>.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from dassl.config.inputs import recording
from dassl.data.datasets import Datum
from dassl.utils import read_json

PARTS = ("train", "val", "test")


class Splits(NamedTuple):
    """The images of a dataset; ``train`` is empty in a test-only set, ``val`` often is."""

    train: list[Datum]
    val: list[Datum]
    test: list[Datum]

    @property
    def defining(self) -> list[Datum]:
        """The part whose labels define the classes: train, or test where there is no train."""
        return self.train or self.test

    def class_names(self) -> list[str]:
        """Class names in label order."""
        names = {item.label: item.classname for item in self.defining}
        return [names[label] for label in sorted(names)]


def read_split_file(path: Path, image_dir: Path) -> Splits:
    """Read and validate a split file; whether the images exist is checked by ``require_images``.

    A ValueError names the file and the first malformed entry, or how the file contradicts itself.
    """
    content = read_json(path)
    if not isinstance(content, dict) or any(
        not isinstance(content.get(part), list) for part in PARTS
    ):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f'{path} must hold {{"train": [...], "val": [...], "test": [...]}}, '
            f"each a list; found {found}"
        )
    parts = (_read_part(content[part], f"{path}: {part}", image_dir) for part in PARTS)
    splits = Splits(*parts)
    check_labels(splits, str(path))
    check_repeats(splits, str(path))
    return splits


def _read_part(entries: list[Any], where: str, image_dir: Path) -> list[Datum]:
    prefix = str(image_dir)
    items = []
    for index, entry in enumerate(entries):
        problem = _entry_problem(entry)
        if problem:
            raise ValueError(
                f"{where}[{index}] = {json.dumps(entry)}: {problem}; "
                "an entry is [path relative to the image directory, label, class name]"
            )
        relative, label, classname = entry
        items.append(Datum(impath=os.path.join(prefix, relative), label=label, classname=classname))
    return items


def _entry_problem(entry: Any) -> str:
    """Say what is wrong with an entry of a split file; empty if nothing is."""
    if not isinstance(entry, list) or len(entry) != 3:
        return "not a list of three"
    relative, label, classname = entry
    if not isinstance(relative, str) or not relative:
        return "the path is not a text"
    # Joined with the image directory, such paths would leave it unnoticed: os.path.join drops what
    # stands before an absolute one.
    if relative.startswith(("/", "\\")) or relative[1:2] == ":":
        return "the path is absolute"
    if ".." in relative.split("/"):
        return "the path leaves the image directory"
    # JSON's true is an int to Python, and would be label 1.
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        return "the label is not an integer from 0 on"
    if not isinstance(classname, str) or not classname.strip():
        return "the class name is not a text"
    return ""


def check_labels(splits: Splits, source: str) -> None:
    """Check that labels run from 0 without a gap, each with one name, and that train has them all.

    ``source`` is the file or directory that the error names.
    """
    if not splits.defining:
        raise ValueError(f"{source}: neither train nor test holds an image")
    names: dict[int, str] = {}
    for item in splits.defining:
        names.setdefault(item.label, item.classname)
    missing = max(names) + 1 - len(names)
    if missing:
        # A label of a billion must not make a list of a billion gaps.
        gaps = islice((label for label in count() if label not in names), min(missing, 10))
        raise ValueError(
            f"{source}: labels must run 0..n-1, but {len(names):,} classes have labels up to "
            f"{max(names):,}; no image has {_some(list(gaps), missing)}"
        )
    # A model has no class for a label that training lacks, so that its images are always wrong.
    for part, items in zip(PARTS, splits, strict=True):
        unknown = sorted({item.label for item in items} - names.keys())
        if unknown:
            lacking = _some(unknown[:10], len(unknown))
            raise ValueError(f"{source}: {part} has labels that train lacks: {lacking}")
        for index, item in enumerate(items):
            if item.classname != names[item.label]:
                raise ValueError(
                    f"{source}: {part}[{index}] ({item.impath}) calls label {item.label} "
                    f"{item.classname!r}, elsewhere it is {names[item.label]!r}"
                )


class Place(NamedTuple):
    """Where a split lists an image."""

    part: str
    position: int
    item: Datum


def repeated_images(splits: Splits, links: Mapping[str, str] | None = None) -> list[list[Place]]:
    """All places of each image that a split has more than once, under any spelling of its path.

    ``links`` has the real path of images that are known to be links.
    """

    def file_of(item: Datum) -> str:
        # normpath is slow on a million paths: only for spellings that can vary.
        path = links.get(item.impath, item.impath) if links else item.impath
        odd = "/." in path or "//" in path or os.sep != "/"
        return os.path.normpath(path) if odd else path

    # Hardly any of a million images is there twice: only then are their places looked up.
    files = [file_of(item) for part in splits for item in part]
    if len(set(files)) == len(files):
        return []
    places: dict[str, list[Place]] = {}
    listed = iter(files)
    for part, items in zip(PARTS, splits, strict=True):
        for index, item in enumerate(items):
            places.setdefault(next(listed), []).append(Place(part, index, item))
    return [group for group in places.values() if len(group) > 1]


def check_repeats(splits: Splits, source: str, links: Mapping[str, str] | None = None) -> None:
    """Refuse what makes every accuracy on a split wrong, before any draw.

    That is an image with two labels, in both train and test, or twice in test.
    """
    found: dict[str, list[list[Place]]] = {}
    for group in repeated_images(splits, links):
        parts = [place.part for place in group]
        if len({place.item.label for place in group}) > 1:
            found.setdefault("more than one label", []).append(group)
        elif {"train", "test"} <= set(parts):
            found.setdefault("a place in train and in test", []).append(group)
        elif parts.count("test") > 1:
            found.setdefault("more than one place in test", []).append(group)
    if not found:
        return
    said = []
    for what, groups in found.items():
        where = ", ".join(
            f"{place.part}[{place.position}] is {place.item.label} ({place.item.classname!r})"
            for place in groups[0][:4]
        )
        path = groups[0][0].item.impath
        said.append(f"{len(groups):,} image(s) have {what}, first {path}: {where}")
    raise ValueError(f"{source}: {'; '.join(said)}. Keep one entry of each")


def split_notes(splits: Splits, links: Mapping[str, str] | None = None) -> list[str]:
    """Describe repetitions that may be intended, but that readers of results must know about.

    These are images in train or in val twice, or in val and another part.
    """
    found: dict[str, list[str]] = {}
    for group in repeated_images(splits, links):
        parts = [place.part for place in group]
        for what, holds in (
            ("in train twice; they count twice", parts.count("train") > 1),
            ("in val twice; they count twice", parts.count("val") > 1),
            ("in train and val; accuracy on val is partly that of training images",
             {"train", "val"} <= set(parts)),
            ("in val and test; a model selected on val (TEST.FINAL_MODEL best_val) is selected on "
             "what it is tested on", {"val", "test"} <= set(parts)),
        ):  # fmt: skip
            if holds:
                found.setdefault(what, []).append(group[0].item.impath)
    return [
        f"{len(paths):,} image(s), first {paths[0]}, are {what}" for what, paths in found.items()
    ]


def untested_classes(splits: Splits) -> str:
    """A sentence on classes without a test image, in a split with test images; empty if none."""
    tested = {item.label for item in splits.test}
    names = {item.label: item.classname for item in splits.defining}
    lacking = [names[label] for label in sorted(names.keys() - tested)]
    if not lacking:
        return ""
    some = ", ".join(map(repr, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
    return (
        f"{len(lacking):,} of {len(names):,} classes have no test image ({some}): images can be "
        "mistaken for them, but never be one of them"
    )


def require_images(splits: Splits, source: Path, hint: str) -> None:
    """Refuse a split with missing images; ``source`` lists them, ``hint`` says what to do."""
    paths = [item.impath for part in splits for item in part]
    missing = missing_files(paths)
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing, and with it {len(missing):,} of the {len(paths):,} images "
            f"that {source} lists. Correct --root, or complete the images. {hint}"
        )


def missing_files(paths: Iterable[str]) -> list[str]:
    """Return the paths that do not exist.

    One directory listing instead of one ``stat`` per file: on a network disk, asking for each of a
    million images takes an hour, listing their thousand directories seconds.
    """
    wanted: dict[str, list[str]] = {}
    for path in paths:
        directory, name = os.path.split(path)
        wanted.setdefault(directory, []).append(name)
    missing: list[str] = []
    for directory, names in wanted.items():
        try:
            # Not recorded as an input: files that no split names may come and go in a folder.
            with recording(None), os.scandir(directory) as entries:
                present = {entry.name for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            missing.extend(os.path.join(directory, name) for name in names)
            continue
        absent = (os.path.join(directory, name) for name in names if name not in present)
        # A disk that ignores case lists other names than it opens: ask again before complaining.
        missing.extend(path for path in absent if not os.path.exists(path))
    return missing


def _some(values: list[int], total: int) -> str:
    text = ", ".join(map(str, values))
    return text + (f" and {total - len(values):,} more" if total > len(values) else "")
