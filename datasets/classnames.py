"""Class names of the user's own choice, ``DATASET.CLASSNAMES``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dassl.config import user_path
from dassl.utils import nearest, read_json
from datasets.sampling import relabel
from datasets.splits import Splits


def rename_classes(splits: Splits, file: str) -> Splits:
    """Give classes the names that a file lists.

    Args:
        splits: Images of all classes, before any draw.
        file: A text file with one name per line or a JSON list, in label order; or a JSON object
            from present name, or label, to new name, which may leave classes out.

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
    names: Any
    if path.suffix.lower() == ".json":
        names = read_json(path)
        if isinstance(names, dict):
            names = _replace_some(names, present, path)
    else:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        names = [name for name in names if name]
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f"{path} must hold class names as texts: a list, or an object old: new")
    if len(names) != len(present):
        raise ValueError(
            f"{path} has {len(names)} names, but the dataset has {len(present)} classes; "
            f"one per class in label order is needed, from {present[0]!r} to {present[-1]!r}"
        )
    return names


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
