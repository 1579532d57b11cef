"""Class names of the user's own choice, ``DATASET.CLASSNAMES``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.config import user_path
from dassl.utils import nearest
from datasets.name_lists import WNID, by_wnid, in_label_order, read_name_list
from datasets.sampling import relabel
from datasets.splits import Splits

NUMBERED = re.compile(r"\d+[.-]")  # 001.Black_footed_Albatross; not 2012 Audi TTS Coupe


def rename_classes(splits: Splits, file: str) -> Splits:
    """Give classes the names that a file lists.

    Args:
        splits: Images of all classes, before any draw.
        file: Names in label order, as ``name_lists`` reads them; or names by wnid, of classes that
            are called so; or a JSON object from present name, or label, to new name, which may
            leave classes out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The number of names differs from that of the classes, or a key is no class.
    """
    present = splits.class_names()
    names = read_class_names(Path(user_path(file)), present)
    return Splits(
        *([relabel(item, classname=names[item.label]) for item in part] for part in splits)
    )


def read_class_names(path: Path, present: list[str]) -> list[str]:
    """Read new names for the classes ``present`` (in label order) from ``path``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As in ``rename_classes``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}; DATASET.CLASSNAMES must name one")
    names: Any = read_name_list(path, "DATASET.CLASSNAMES")
    if by_wnid(names):
        names = _names_of_wnids(names, present, path)
    elif isinstance(names, dict):
        labelled = any(type(value) is int for value in names.values())
        names = (in_label_order(names) if labelled else None) or _replace_some(names, present, path)
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f"{path} must hold class names as texts: a list, or an object old: new")
    if len(names) != len(present):
        raise ValueError(
            f"{path} has {len(names)} names, but the dataset has {len(present)} classes; "
            f"one per class in label order is needed, from {present[0]!r} to {present[-1]!r}"
        )
    return names


def _names_of_wnids(names: dict[str, Any], present: list[str], path: Path) -> list[Any]:
    missing = [name for name in present if name not in names]
    if missing:
        what = "is not in it" if WNID.fullmatch(missing[0]) else "is no wnid"
        raise ValueError(
            f"{path} has names by wnid, but class {missing[0]!r} of the dataset {what}; give names "
            "in label order (ImageNet's own list is classnames.txt in the dataset's directory)"
        )
    return [names[name] for name in present]


def unreadable_names(names: Sequence[str]) -> str:
    """Say in what way class names mean nothing to a text encoder; empty if they do.

    Args:
        names: In label order.
    """
    wnids = [name for name in names if WNID.fullmatch(name.strip())]
    if wnids:
        what = f"WordNet ids ({len(wnids)} of {len(names)}, first {wnids[0]})"
    elif all(name.isdecimal() for name in names):
        what = f"numbers ({names[0]} to {names[-1]})"
    elif all(NUMBERED.match(name) for name in names):
        what = f"numbered ({names[0]!r})"
    else:
        return ""
    return f"the class names are {what}, which mean nothing to a text encoder"


def _replace_some(new_names: dict[str, Any], present: list[str], path: Path) -> list[Any]:
    names: list[Any] = list(present)
    for key, new_name in new_names.items():
        if key in present:
            # A name may belong to two classes (ImageNet's "missile"): both are meant then.
            labels = [label for label, name in enumerate(present) if name == key]
        elif key.isdecimal() and int(key) < len(present):
            labels = [int(key)]
        else:
            raise ValueError(
                f"{path}: {key!r} is neither a class name nor a label 0..{len(present) - 1}."
                f"{nearest(key, present)}"
            )
        for label in labels:
            names[label] = new_name
    return names
