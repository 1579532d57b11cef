"""Reading and checking the files of a dataset of features, see ``datasets.features``.

Notation: N rows, V views of each, K classes, P texts of each, D embedding width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dassl.config import user_path
from dassl.data.features.arrays import CLASSNAMES, Arrays, read_arrays
from dassl.names import nearest
from datasets.imagenet import standard_names

LOGIT_SCALE = 100.0  # CLIP's, exp(4.6052)
_BLOCK = 65_536  # rows that are looked at together
_SHOWN = 3  # wrong names that a message lists


class Part(NamedTuple):
    """What the files of train, val or test hold."""

    file: Path
    features: np.ndarray  # (N, D), or (N, V, D)
    labels: Any  # int array (N,), or class names
    names: list[str] | None  # of the classes in label order, if the file states them
    paths: list[str] | None  # of the pictures


class ClassTexts(NamedTuple):
    """The classes' text features and the scale that belongs to them."""

    file: str
    rows: list[np.ndarray]  # for each class (P, D), not necessarily of unit norm
    names: list[str] | None  # of the classes, if the file states them
    logit_scale: float  # logarithm of the factor, as in CLIP's weights


def read_part(directory: Path, part: str, option: Mapping[str, Any]) -> Part:
    """Read the features, labels, names and paths of train, val or test, and check each of them.

    Args:
        directory: Where relative paths start.
        part: ``train``, which may have several views, ``val`` or ``test``.
        option: The section DATASET.FEATURES.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: It is damaged, lacks an array, or holds what no run can use.
    """
    key, names = part.upper(), (option["KEY"], option["LABEL_KEY"])
    path = _find(directory, option, key)
    found, present = read_arrays(path, (*names, CLASSNAMES, "paths"))
    dimensions = (2, 3) if part == "train" else (2,)
    features = checked_features(
        _array(found, present, option["KEY"], "KEY", path), f"{path}: {option['KEY']}", dimensions
    )
    label_path = path
    if option[f"{key}_LABELS"]:
        label_path = _find(directory, option, f"{key}_LABELS")
        found[names[1]] = _array(
            *read_arrays(label_path, names[1:]), names[1], "LABEL_KEY", label_path
        )
    elif names[1] not in found:
        raise ValueError(
            f"{path} has no array {names[1]!r} (DATASET.FEATURES.LABEL_KEY), only "
            f"{', '.join(map(repr, present))}, and DATASET.FEATURES.{key}_LABELS names no file"
        )
    labels = checked_labels(found[names[1]], len(features), f"{label_path}: {names[1]}")
    paths = found.get("paths")
    if paths is not None and len(paths) != len(features):
        raise ValueError(f"{path}: {len(paths):,} paths for {len(features):,} rows of features")
    norms = np.linalg.norm(features[:_BLOCK], axis=-1)  # (n,) or (n, V)
    print(
        f"Features ({part}): {' x '.join(map(str, features.shape))} of {path}, norms "
        f"{norms.min():.4g} to {norms.max():.4g}; methods scale them to 1 where they compare them"
    )
    return Part(path, features, labels, _checked_names(found.get(CLASSNAMES), path), paths)


def read_texts(directory: Path, option: Mapping[str, Any]) -> ClassTexts:
    """Read text features (K, D), (K, P, D), or rows (n, D) with their classes in ``text_labels``.

    Args and errors as for `read_part`.
    """
    path, key = _find(directory, option, "TEXT"), option["TEXT_KEY"]
    found, present = read_arrays(path, (key, CLASSNAMES, "text_labels", "logit_scale"))
    what = f"{path}: {key}"
    features = checked_features(_array(found, present, key, "TEXT_KEY", path), what, (2, 3))
    if "text_labels" in found:
        labels = checked_labels(found["text_labels"], len(features), f"{path}: text_labels")
        rows = [features[labels == k] for k in range(max(labels) + 1)]
        lacking = [k for k, own in enumerate(rows) if not len(own)]
        if lacking:
            raise ValueError(f"{path}: no text of class {lacking[0]} among text_labels")
    else:
        rows = [np.atleast_2d(own) for own in features]
    names = _checked_names(found.get(CLASSNAMES), path)
    if names is not None and len(names) != len(rows):
        raise ValueError(f"{path}: {len(names)} class names for {len(rows)} classes of {key}")
    scale = float(found.get("logit_scale", math.log(LOGIT_SCALE)))
    if option["LOGIT_SCALE"]:
        scale = math.log(option["LOGIT_SCALE"])
    return ClassTexts(str(path), rows, names, scale)


def texts_of(
    texts: ClassTexts, classnames: list[str], names: list[str], kept: list[int]
) -> ClassTexts:
    """Pick the text features of a run's classes, by label or by name.

    Args:
        texts: Of all classes, or of more.
        classnames: Of the run's classes, in label order.
        names: Of all classes of the dataset, as its files state them.
        kept: Labels of the run's classes among ``names``.

    Raises:
        ValueError: They are those of other classes.
    """
    if texts.names is None and len(texts.rows) != len(names):
        raise ValueError(
            f"{texts.file} has text features of {len(texts.rows)} classes without their names, but "
            f"the dataset has {len(names)} classes; one per class in label order is needed, or "
            f"names beside them (array {CLASSNAMES!r})"
        )
    if texts.names is None or texts.names == names:
        return texts._replace(rows=[texts.rows[label] for label in kept])
    place = {name: k for k, name in enumerate(texts.names)}
    absent = [name for name in classnames if name not in place]
    if absent:
        raise ValueError(
            f"{texts.file} has text features of other classes: none for {len(absent)} of "
            f"{len(classnames)}, such as {absent[:_SHOWN]}.{nearest(absent[0], place)} It has "
            f"{', '.join(map(repr, texts.names[:_SHOWN]))} ..."
        )
    return texts._replace(rows=[texts.rows[place[name]] for name in classnames])


def checked_features(features: Any, what: str, dimensions: Sequence[int]) -> np.ndarray:
    """Features in single precision; half and double are converted, which a line says.

    Raises:
        ValueError: No floating-point array of so many dimensions, or a row that is no direction:
            zero, NaN or infinite. The message begins with ``what``.
    """
    shape = np.shape(features)
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f":
        kind = features.dtype if isinstance(features, np.ndarray) else "texts"
        raise ValueError(f"{what} must be floating-point numbers, got {kind} {shape}")
    if len(shape) not in dimensions or 0 in shape:
        allowed = {2: "(rows, width)", 3: "(rows, views, width)"}
        words = " or ".join(allowed[n] for n in dimensions)
        raise ValueError(f"{what} must have the shape {words}, got {shape}")
    if features.dtype != np.float32:
        print(f"{what}: {features.dtype} is converted to float32")
        features = features.astype(np.float32)
    for start in range(0, len(features), _BLOCK):
        # In double precision: squares of large values would overflow.
        norms = np.linalg.norm(features[start : start + _BLOCK].astype(np.float64), axis=-1)
        bad = ~np.isfinite(norms) | (norms == 0)  # (n,) or (n, V)
        if bad.any():
            place = tuple(np.argwhere(bad)[0])
            said = "is zero" if norms[place] == 0 else "has NaN or infinite values"
            raise ValueError(
                f"{what}: row {start + place[0]} {said}, and so has no direction; leave it out or "
                "compute it again"
            )
    return features


def checked_labels(labels: Any, rows: int, what: str) -> Any:
    """Labels of so many rows: class numbers as int64 (N,), or class names; else a ValueError."""
    if not isinstance(labels, list):
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            hint = "; of one-hot rows give the argmax" if labels.ndim == 2 else ""
            raise ValueError(
                f"{what} must be whole numbers or class names, one per row, got {labels.dtype} "
                f"{labels.shape}{hint}"
            )
        labels = labels.astype(np.int64)
        if len(labels) and labels.min() < 0:
            raise ValueError(f"{what}: label {labels.min()} is below 0; labels run from 0")
    if len(labels) != rows:
        raise ValueError(f"{what}: {len(labels):,} labels for {rows:,} rows of features")
    return labels


def check_widths(width_of: Mapping[str, int]) -> None:
    """Refuse features of different widths, by file, which are those of different models."""
    if len(set(width_of.values())) > 1:
        said = ", ".join(f"{file} has {width}" for file, width in width_of.items())
        raise ValueError(f"features of different width: {said}; they must come from one model")


def class_names(parts: Mapping[str, Part], texts: ClassTexts | None, renamed: bool) -> list[str]:
    """Class names in label order: those stated, those that are labels, or numbered ones.

    Numbered ones are enough if they are ``renamed`` later or text features take their place.
    """
    stated = {str(part.file): part.names for part in parts.values() if part.names is not None}
    if len({tuple(names) for names in stated.values()}) > 1:
        raise ValueError(f"{' and '.join(stated)} state different class names; they must agree")
    if stated:
        return next(iter(stated.values()))
    defining = parts.get("train") or parts["test"]
    if isinstance(defining.labels, list):
        return sorted(set(defining.labels))
    if texts is not None and texts.names is not None:
        return texts.names
    if texts is None and not renamed:
        raise ValueError(
            f"{defining.file} has labels without class names: add an array {CLASSNAMES!r}, set "
            "DATASET.CLASSNAMES to a file with names in label order, or give the classes' text "
            "features (DATASET.FEATURES.TEXT)"
        )
    return [f"class {label}" for label in range(int(defining.labels.max()) + 1)]


def label_numbers(part: Part, names: list[str]) -> list[int]:
    """The labels of a part's rows as numbers; a ValueError refuses those that are no class."""
    if not isinstance(part.labels, list):
        largest = int(part.labels.max())
        if largest >= len(names):
            raise ValueError(f"{part.file} has label {largest}, but of {len(names)} classes only")
        return part.labels.tolist()
    label_of = {name: label for label, name in enumerate(names)}
    unknown = sorted(set(part.labels) - label_of.keys())
    if unknown:
        raise ValueError(
            f"{part.file} has labels that are no class name: {unknown[:_SHOWN]}."
            f"{nearest(unknown[0], names)}"
        )
    return [label_of[name] for name in part.labels]


def _find(directory: Path, option: Mapping[str, Any], key: str) -> Path:
    """The file or folder that a key names; it must be there."""
    path = directory / user_path(option[key])
    if not path.exists():
        beside = path.parent if path.parent.is_dir() else directory
        present = sorted(entry.name for entry in beside.iterdir() if not entry.name.startswith("."))
        raise FileNotFoundError(
            f"Features: no file {path}; DATASET.FEATURES.{key} ({option[key]!r}) is looked for in "
            f"{directory} (--root joined with DATASET.DIR). {beside} holds {present[:20]}"
        )
    return path


def _array(found: Arrays, present: Sequence[str], name: str, key: str, path: Path) -> Any:
    if name not in found:
        raise ValueError(
            f"{path} has no array {name!r} (DATASET.FEATURES.{key}); it has "
            f"{', '.join(map(repr, present)) or 'none'}.{nearest(name, present)}"
        )
    return found[name]


def _checked_names(names: Any, path: Path) -> list[str] | None:
    """Class names of a file, each of which must be a text of its own."""
    if names is None:
        return None
    if not isinstance(names, list) or not all(name.strip() for name in names):
        raise ValueError(f"{path}: array {CLASSNAMES!r} must hold class names as texts")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        # ImageNet's usual list has two names twice, which is nobody's mistake.
        usual = list(standard_names().values())
        twice = [name for name in twice if usual.count(name) < 2]
    if twice:
        raise ValueError(f"{path}: class names stand there twice: {twice[:_SHOWN]}; rename one")
    return names
