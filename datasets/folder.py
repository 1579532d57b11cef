"""The user's own data, described in YAML alone: ``DATASET.NAME: Folder`` and ``Split``.

``Folder`` reads class folders. Below ``<root>/<DATASET.DIR>`` lies one of

* ``{train,val,test}/<class>/*.jpg``; val may be absent (taken from train then), and so may train
  (for zero-shot evaluation);
* ``<class>/*.jpg``, split by ``DATASET.SPLIT_RATIO`` with ``DATASET.SPLIT_SEED``.

``Split`` reads a split file in CoOp's format, ``DATASET.SPLIT_FILE`` in ``<root>/<DATASET.DIR>``,
whose paths start at ``<root>/<DATASET.DIR>/<DATASET.IMAGES>``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dassl.config import user_path
from dassl.config.schema import PATH, Option, count, values_of
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils.files import is_text
from datasets.base import CLIPDataset
from datasets.listing import LeftOut, find_below, list_folder
from datasets.sampling import by_label, check_ratio, split_off_val, split_three_ways
from datasets.splits import PARTS, Splits, check_repeats, read_split_file, require_images

LAYOUTS = "expected are train/, val/ and test/ with class folders in each, or class folders"

# Keys of the DATASET section that only these two read.
OPTIONS: dict[str, Option] = {
    "DIR": Option("", PATH, "directory below --root"),
    "SPLIT_SEED": Option(
        1, count(0, 2**32 - 1), "Folder: of a split made here; the same in all runs, unlike SEED"
    ),
    "SPLIT_FILE": Option("", PATH, "Split: the split file, in CoOp's format"),
    "IMAGES": Option("", PATH, "Split: directory in DIR where the split file's paths start"),
}

Classes = dict[str, list[str]]


def extend_cfg(cfg: Any) -> None:
    """Add the keys of the DATASET section that only these two read, in place."""
    for key, default in values_of(OPTIONS).items():
        if key not in cfg.DATASET:
            cfg.DATASET[key] = default


@DATASET_REGISTRY.register()
class Folder(CLIPDataset):
    """The user's own class folders."""

    def read_splits(self, cfg: Any) -> Splits:
        """Read whichever layout is there; a note counts what was left out."""
        option = own_options(cfg)
        if option["SPLIT_FILE"]:
            raise ValueError(
                f"DATASET.SPLIT_FILE is {option['SPLIT_FILE']!r}, but DATASET.NAME Folder reads "
                "no split file; DATASET.NAME Split does"
            )
        directory = own_directory(self, option["DIR"], LAYOUTS)
        self.dataset_dir = self.image_dir = str(directory)
        ratio = check_ratio(cfg.DATASET.SPLIT_RATIO)
        self.left_out = LeftOut(directory)
        # Without train/ and test/ all folders are classes, one called val included.
        parts = find_parts(directory)
        if "train" in parts or "test" in parts:
            splits = self._read_parts(directory, parts, ratio, option["SPLIT_SEED"])
        else:
            splits = self._split_tree(directory, ratio, option["SPLIT_SEED"])
        if self.left_out:
            self.note(f"Folder: left out of {directory}: {self.left_out}")
        _require_linked(self.links, directory)
        check_repeats(splits, str(directory), self.links)
        return splits

    def _list_classes(self, directory: Path) -> Classes:
        classes, links = list_classes(directory, self.left_out)
        real = os.path.realpath(self.dataset_dir)
        # Links must not bring one image into train and test: their targets are compared, spelt as
        # paths below the dataset's directory, which may itself be behind a link.
        for path, target in links.items():
            self.links[path] = os.path.join(self.dataset_dir, os.path.relpath(target, real))
        return classes

    def _read_parts(
        self, directory: Path, parts: list[str], ratio: tuple[float, float, float], seed: int
    ) -> Splits:
        if "test" not in parts:
            raise ValueError(
                f"{directory} has train/ but no test/ with class folders; rename val/ if that is "
                "what you test on, or put all class folders side by side to have them split"
            )
        beside = list_folder(directory, self.left_out)
        others = [name for name in beside.folders if name not in PARTS]
        if others:
            self.note(f"Folder: ignored beside train/ and test/ in {directory}: {others}")
        for image in beside.images:
            self.left_out.add("image(s) outside of class folders", str(directory / image))
        found = {part: self._list_classes(directory / part) for part in parts}
        for part, classes in found.items():
            _require_filled(directory / part, classes)
        # Labels are numbered by the folders of one part, and hold for the others.
        defining = "train" if "train" in found else "test"
        labels = _number(found[defining])
        _require_known(found, labels, directory, defining)
        items = {part: _items(directory / part, classes, labels) for part, classes in found.items()}
        train, val = items.get("train", []), items.get("val", [])
        if train and "val" not in parts:
            # What the ratio would give val of these two, since test/ is there already.
            share = ratio[1] / (ratio[0] + ratio[1])
            train, val = split_off_val(list(by_label(train).values()), share, seed)
            print(f"No val/ in {directory}: took {len(val)} images of train/ (seed {seed})")
        return Splits(train, val, items["test"])

    def _split_tree(self, directory: Path, ratio: tuple[float, float, float], seed: int) -> Splits:
        classes = self._list_classes(directory)
        # An empty folder is no class; one with images deeper down is a mistake, refused below.
        for name in [name for name, files in classes.items() if not files]:
            if not find_below(directory / name):
                self.left_out.add("folder(s) without an image", str(directory / name))
                del classes[name]
        _require_filled(directory, classes)
        if classes.keys() <= set(PARTS):
            raise ValueError(f"{directory} holds images in {sorted(classes)} directly; {LAYOUTS}")
        lone = [name for name, files in classes.items() if len(files) < 2]
        if lone:
            raise ValueError(
                f"{directory}: class folder(s) {lone} hold one image, which cannot be split into "
                "train and test; add images or remove the folder"
            )
        items = _items(directory, classes, _number(classes))
        print(f"Split {directory} {ratio} per class (seed {seed})")
        return Splits(*split_three_ways(list(by_label(items).values()), ratio, seed))


@DATASET_REGISTRY.register()
class Split(CLIPDataset):
    """The user's own images, listed by a split file in CoOp's format."""

    def read_splits(self, cfg: Any) -> Splits:
        """Read the split file."""
        option = own_options(cfg)
        if not option["SPLIT_FILE"]:
            raise ValueError(
                "DATASET.NAME Split needs DATASET.SPLIT_FILE, the name of a split file in the "
                "directory DATASET.DIR; class folders without one are DATASET.NAME Folder"
            )
        directory = own_directory(self, option["DIR"], "it holds the split file")
        images = directory / option["IMAGES"]
        if not images.is_dir():
            raise FileNotFoundError(
                f"Split: no directory {images}. It is {directory} joined with DATASET.IMAGES "
                f"({option['IMAGES']!r}), where the paths of the split file start."
            )
        self.dataset_dir, self.image_dir = str(directory), str(images)
        path = directory / option["SPLIT_FILE"]
        if not path.is_file():
            present = sorted(file.name for file in directory.glob("*.json"))
            raise FileNotFoundError(
                f"Split: no split file {path}; DATASET.SPLIT_FILE ({option['SPLIT_FILE']!r}) is "
                f"looked for in {directory}, whose JSON files are {present}"
            )
        print(f"Reading split from {path}")
        splits = read_split_file(path, images)
        require_images(splits, path, f"Paths in it start at {images} (DATASET.IMAGES).")
        return splits


def own_options(cfg: Any) -> dict[str, Any]:
    """The keys of ``OPTIONS``; their defaults where a config was not extended."""
    values = {key: cfg.DATASET.get(key, default) for key, default in values_of(OPTIONS).items()}
    return {key: user_path(v) if OPTIONS[key].rule.path else v for key, v in values.items()}


def own_directory(dataset: CLIPDataset, name: str, purpose: str) -> Path:
    """The directory that ``DATASET.DIR`` names; it must exist, for the ``purpose`` in messages."""
    directory = dataset.root / name
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{type(dataset).__name__}: no directory {directory}. It is --root ({dataset.root}) "
            f"joined with DATASET.DIR ({name!r}); {purpose}."
        )
    return directory


def find_parts(directory: Path) -> list[str]:
    """Which of train/, val/ and test/ are there with class folders inside.

    A folder of that name with images alone may be a class. A ValueError refuses a mixture.
    """
    present = {part: list_folder(directory / part) for part in PARTS if (directory / part).is_dir()}
    nested = [part for part, listing in present.items() if listing.folders]
    if not nested:
        return []
    # train/ with folders beside test/ with images: half a layout, whose reading would be a guess.
    odd = [part for part, listing in present.items() if not listing.folders or listing.images]
    if odd:
        raise ValueError(
            f"{directory}: {' and '.join(odd)} must hold class folders and no images beside them, "
            f"because {nested[0]}/ holds folders; {LAYOUTS}"
        )
    return nested


def list_classes(directory: Path, left_out: LeftOut) -> tuple[Classes, dict[str, str]]:
    """List class folders and the images directly in them; other files are counted in ``left_out``.

    Returns:
        Image file names per class folder, folders sorted; and the real paths of images that are
        links, or in a folder that is one.
    """
    listing = list_folder(directory, left_out)
    for image in listing.images:
        left_out.add("image(s) outside of class folders", str(directory / image))
    names = listing.folders
    if not names:
        raise ValueError(f"{directory} holds no class folders; {LAYOUTS}")
    if all(name.isdecimal() for name in names):
        # As text, 10 comes before 2, and a list of names in order would name other classes.
        names.sort(key=int)
    classes, links = {}, {}
    for name in names:
        folder = directory / name
        inside = list_folder(folder, left_out)
        classes[name] = inside.images
        if directory.is_symlink() or folder.is_symlink():
            real = folder.resolve()
            links.update({str(folder / image): str(real / image) for image in inside.images})
        links.update(inside.links)
        # A class folder without images of its own gets an error that says more.
        if inside.images:
            for below in inside.folders:
                for path in find_below(folder / below, left_out):
                    left_out.add("image(s) in folders inside a class folder", path)
    return classes, links


def _require_filled(directory: Path, classes: Classes) -> None:
    empty = [name for name, files in classes.items() if not files]
    if empty or not classes:
        raise ValueError(
            f"{directory}: class folder(s) {empty} hold no image directly; fill or remove them, "
            f"and check that DATASET.DIR is not a level too high: {LAYOUTS}"
        )


def _require_linked(links: dict[str, str], directory: Path) -> None:
    lost = [path for path, real in links.items() if not os.path.exists(real)]
    if lost:
        raise FileNotFoundError(
            f"{lost[0]} is a link to {links[lost[0]]}, which is not there; so are {len(lost):,} "
            f"images in {directory}. Restore what they lead to, or remove them"
        )


def _number(classes: Classes) -> dict[str, int]:
    """Number the class folders in order, refusing two that would share a class name."""
    folder_of: dict[str, str] = {}
    for folder in classes:
        # Such a name is no text that a prompt could hold.
        if not is_text(folder):
            raise ValueError(
                f"the name of class folder {folder!r} is not UTF-8, so it is no class name; rename "
                "it, for example with convmv -f latin1 -t utf8"
            )
        other = folder_of.setdefault(_class_name(folder), folder)
        if other != folder:
            raise ValueError(
                f"class folders {other!r} and {folder!r} are both class {_class_name(folder)!r}; "
                "rename one"
            )
    return {folder: label for label, folder in enumerate(classes)}


def _class_name(folder: str) -> str:
    return folder.replace("_", " ")


def _require_known(
    found: dict[str, Classes], labels: dict[str, int], directory: Path, defining: str
) -> None:
    for part, classes in found.items():
        unknown = sorted(classes.keys() - labels.keys())
        if unknown:
            raise ValueError(
                f"{directory / part} has classes that {defining}/ lacks: {', '.join(unknown)}"
            )


def _items(directory: Path, classes: Classes, labels: dict[str, int]) -> list[Datum]:
    return [
        Datum(
            impath=str(directory / folder / file),
            label=labels[folder],
            classname=_class_name(folder),
        )
        for folder, files in classes.items()
        for file in files
    ]
