"""ObjectNet: which of its 313 folders are tested, and which classes of ImageNet they stand for.

Its archive says so in ``mappings/``:

* ``folder_to_objectnet_label.json``: ``{"alarm_clock": "Alarm clock", ...}``, all 313;
* ``objectnet_to_imagenet_1k.json``: ``{"Alarm clock": "analog clock; digital clock", ...}``, the
  113 shared with ImageNet;
* ``imagenet_to_label_2012_v2``: these titles, one per line, in the order of ILSVRC 2012's numbers;
* ``pytorch_to_imagenet_2012_id.json``: from labels by sorted wnid to these numbers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from dassl.data.datasets import Datum
from dassl.names import nearest
from dassl.utils import read_json
from dassl.utils.files import read_text
from datasets.imagenet import read_folder, standard_names
from datasets.readers import list_directories, require_file
from datasets.splits import Splits

FOLDERS = "folder_to_objectnet_label.json"
TARGETS = "objectnet_to_imagenet_1k.json"
TITLES = "imagenet_to_label_2012_v2"
NUMBERS = "pytorch_to_imagenet_2012_id.json"
HINT = "it is in the mappings/ of objectnet-1.0.zip"


class SharedClass(NamedTuple):
    """A class of ObjectNet that ImageNet has too: its name, and the wnids it stands for."""

    name: str
    wnids: list[str]


def objectnet(dataset_dir: Path, image_dir: Path) -> Splits:
    """The classes shared with ImageNet, labelled by their sorted folder names; test only."""
    shared = read_mappings(dataset_dir / "mappings")
    missing = sorted(shared.keys() - set(list_directories(image_dir)))
    if missing:
        raise ValueError(
            f"{image_dir} lacks {len(missing)} of the {len(shared)} folders of classes shared with "
            f"ImageNet, first {missing[0]!r}; complete the data"
        )
    items: list[Datum] = []
    for label, (folder, shared_class) in enumerate(shared.items()):
        items += read_folder(str(image_dir / folder), label, shared_class.name)
    return Splits([], [], items)


def objectnet_wnids(dataset_dir: Path, image_dir: Path) -> list[list[str]]:
    """The wnids that each label stands for."""
    return [wnids for _, wnids in read_mappings(dataset_dir / "mappings").values()]


def read_mappings(directory: Path) -> dict[str, SharedClass]:
    """Read the classes shared with ImageNet by folder name, sorted."""
    folder_of = {name: folder for folder, name in _read_texts(directory / FOLDERS).items()}
    wnids_of = _read_titles(directory)
    shared = {}
    for name, titles in _read_texts(directory / TARGETS).items():
        if name not in folder_of:
            raise ValueError(
                f"{directory / TARGETS}: {name!r} is no class of {FOLDERS}."
                f"{nearest(name, folder_of)}"
            )
        wnids = []
        # Several titles where ObjectNet's class is wider: "Alarm clock" is analog and digital.
        for title in titles.split(";"):
            found = wnids_of.get(title.strip(), [])
            if len(found) != 1:
                raise ValueError(
                    f"{directory / TARGETS}: {title.strip()!r} of {name!r} is on {len(found)} "
                    f"lines of {TITLES}, but must be on one"
                )
            wnids += found
        shared[folder_of[name]] = SharedClass(name, wnids)
    return dict(sorted(shared.items()))  # labels follow the folders' names, as for ImageNet-A


def _read_texts(path: Path) -> dict[str, str]:
    require_file(path, HINT)
    content = read_json(path)
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(text, str) and text.strip() for text in content.values())
    ):
        raise ValueError(f"{path} must hold texts by name; {HINT}")
    return content


def _read_titles(directory: Path) -> dict[str, list[str]]:
    """Wnids by title; a few titles of ImageNet belong to two classes."""
    require_file(directory / TITLES, HINT)
    require_file(directory / NUMBERS, HINT)
    titles = read_text(directory / TITLES).rstrip().split("\n")
    numbers = read_json(directory / NUMBERS)
    names = standard_names()
    good = isinstance(numbers, dict) and numbers.keys() == set(map(str, range(len(names))))
    # Numbered from 1 in ILSVRC's own lists, from 0 as lines of a file.
    first = min(numbers.values()) if good and all(type(n) is int for n in numbers.values()) else -1
    if first not in (0, 1) or sorted(numbers.values()) != [*range(first, first + len(titles))]:
        raise ValueError(
            f"{directory / NUMBERS} must lead from each label 0 to {len(names) - 1} to a line of "
            f"{TITLES}, of which there are {len(titles):,}; {HINT}"
        )
    wnids_of: dict[str, list[str]] = {}
    odd = []
    # Two lists with different numbers are joined here; an error in either shows in the words alone.
    for label, (wnid, name) in enumerate(names.items()):
        title = titles[numbers[str(label)] - first].strip()
        wnids_of.setdefault(title, []).append(wnid)
        if not _words(title) & _words(name):
            odd.append(f"{title!r} for {wnid} ({name})")
    # OpenAI renamed some classes beyond recognition, but a shifted list has hardly a match left.
    if len(odd) > len(names) / 2:
        raise ValueError(
            f"{directory}: {TITLES} and {NUMBERS} do not belong together: {len(odd)} of "
            f"{len(names):,} classes of ImageNet get a title of another one, first {odd[0]}"
        )
    return wnids_of


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text.lower()))
