"""What a run depends on, and what cannot change its result.

Resuming, the job driver's "done", reports that compare seeds, and the check of a checkpoint before
it is evaluated all ask here. Nothing imports PyTorch, so that a dry run or a report starts at once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "CANNOT_MATTER",
    "FILE_MARK",
    "IDENTITY_NAME",
    "config_changes",
    "digest_of",
    "file_hash",
    "files_named",
    "find_file",
    "flatten",
    "folders_named",
    "relevant",
    "sealed",
    "identity_changes",
    "is_sealed",
    "shown",
    "split_change",
    "split_record",
    "texts",
]

# Where files lie, where it is computed, how much is logged, how often is saved. Files are compared
# by content instead, see `files_named` and `dassl.config.inputs`. Devices differ in the last bits
# only; the precision that a run falls back to on a device is part of its identity.
CANNOT_MATTER = frozenset(
    {
        "OUTPUT_DIR",
        "RESUME",
        "VERBOSE",
        "TRACK",
        "DEVICE",
        "USE_CUDA",
        "DATASET.ROOT",
        "DATASET.HASH_IMAGES",
        "FEATURE_CACHE.DIR",
        "FIRST_STAGE.DIR",
        "DATALOADER.NUM_WORKERS",
        "DATALOADER.CACHE_IMAGES",
        "TRAIN.PRINT_FREQ",
        "TRAIN.CHECKPOINT_FREQ",
        "TRAIN.RESUME_FREQ",
        "TRAIN.DETERMINISTIC",
        "TRAIN.GRAD_CHECKPOINTING",
        "TRAIN.KEPT_TOKENS",
        "TRAIN.COMPILE",
        "TRAIN.CUDA_GRAPHS",
        "TRAIN.TIMEOUT",
        "TEST.ZERO_SHOT_CHECK",
        "TEST.PER_CLASS_RESULT",
        "TEST.COMPUTE_CMAT",
        "TEST.SAVE_PREDICTIONS",
    }
)
IDENTITY_NAME = "identity.json"  # beside a run's result
FILE_MARK = "the file with SHA-256 "  # in a config's value that names a file
_PARTS = (("train", "train_x"), ("unlabelled", "train_u"), ("val", "val"), ("test", "test"))
_SEAL = "checksum"
_SHOWN = 3  # differences that a message names


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into one dict by full key; ``prefix`` is the full key of ``config``."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a plain config that can change a result, by full key."""
    return {key: value for key, value in flatten(config).items() if key not in CANNOT_MATTER}


def digest_of(content: Any) -> str:
    """Return the SHA-256 of what JSON can hold, in hexadecimal; the order of keys is ignored."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum to what is written as JSON, replacing an older one."""
    plain = json.loads(json.dumps(content))  # as it will be read back
    plain.pop(_SEAL, None)
    return {**plain, _SEAL: digest_of(plain)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Tell whether content read back from JSON fits its checksum; True if it has none."""
    rest = {key: value for key, value in content.items() if key != _SEAL}
    return _SEAL not in content or content[_SEAL] == digest_of(rest)


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file; a process reads an unchanged file only once."""
    status = os.stat(path)
    # All four, since a file may be replaced by one of the same size and time.
    state = (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
    return _hash(os.fspath(path), state)


@functools.cache
def _hash(path: str, state: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_named(
    config: Mapping[str, Any], places: Sequence[str | os.PathLike[str]]
) -> dict[str, str]:
    """Find the files that a config's values name, whatever their suffix.

    Args:
        config: Plain sections, or one dict by full key; lists are looked into.
        places: Folders in which relative paths are looked up, in this order.

    Returns:
        Absolute paths by full key (``KEY.0`` for the first of a list).
    """
    found = {key: find_file(value, places) for key, value in texts(config)}
    return {key: path for key, path in found.items() if path and key not in CANNOT_MATTER}


def folders_named(
    config: Mapping[str, Any], places: Sequence[str | os.PathLike[str]]
) -> dict[str, str]:
    """Find the folders that a config's values name, by full key; see `files_named`.

    Only values with a ``/`` or ``~`` count: a plain word such as a dataset's name is no path, even
    if the current folder happens to hold a folder of that name.
    """
    found = {}
    for key, value in texts(config):
        if (os.sep in value or value[0] == "~") and key not in CANNOT_MATTER:
            # A backbone's folder may be named as `align:<folder>`.
            path = _find(value.removeprefix("align:"), places, os.path.isdir)
            found.update({key: path} if path else {})
    return found


def find_file(value: str, places: Sequence[str | os.PathLike[str]]) -> str | None:
    """Return the absolute path of the file that a text names, looked up in ``places``; or None."""
    return _find(value, places, os.path.isfile)


def _find(
    value: str, places: Sequence[str | os.PathLike[str]], exists: Callable[[str], bool]
) -> str | None:
    given = os.path.expanduser(value)
    folders = (os.path.expanduser(os.fspath(place)) for place in places)
    paths = (os.path.abspath(os.path.join(folder, given)) for folder in folders)
    return next((path for path in paths if exists(path)), None)


def texts(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text that may be a path with its full key; ``prefix`` is the key of ``value``."""
    if isinstance(value, str):
        # Longer texts and these characters make the system's calls fail instead of saying no.
        if value and len(value) < 1024 and not set("\0\n") & set(value):
            yield prefix, value
        return
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    for name, item in pairs:
        yield from texts(item, f"{prefix}.{name}" if prefix else str(name))


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in which keys two configs (from `relevant`) differ, as "KEY was 1, is 2".

    A file that a key names counts by its content.
    """
    lines = []
    for key in sorted({*old, *new}):
        if key not in old:
            lines.append(f"{key} is {new[key]!r}, was not set")
        elif key not in new:
            lines.append(f"{key} was {old[key]!r}, is not set")
        elif digest_of(old[key]) == digest_of(new[key]):
            continue
        elif all(str(config[key]).startswith(FILE_MARK) for config in (old, new)):
            lines.append(f"the file that {key} names changed")
        else:
            lines.append(f"{key} was {old[key]!r}, is {new[key]!r}")
    return lines


def split_record(dataset: Any, root: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe which images with which labels and names a run uses, in their order.

    Returns:
        For each part of the split its size, a hash of the paths (relative to ``root``) and a hash
            of the labels; and ``classes``, the names in the order of the labels.
    """
    base = os.path.abspath(os.path.expanduser(os.fspath(root)))
    found: dict[str, Any] = {"classes": [str(name) for name in dataset.classnames]}
    for part, attribute in _PARTS:
        items = getattr(dataset, attribute, None)
        if items:
            paths = [path_below(item.impath, base) for item in items]
            labels = [(int(item.label), item.classname) for item in items]
            hashes = (digest_of(column)[:16] for column in (paths, labels))
            found[part] = [len(items), *hashes]
    return found


def path_below(path: str, base: str) -> str:
    """Return an image's path relative to ``base``, an absolute path."""
    prefix = f"{base}{os.sep}"
    # relpath is slow enough to be felt over a million images.
    if path.startswith(prefix):
        return path[len(prefix) :]
    return os.path.relpath(os.path.abspath(path), base)


def split_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say in one line how two splits (from `split_record`) differ; empty if they do not."""
    found = []
    before, now = old.get("classes", []), new.get("classes", [])
    if len(before) != len(now):
        found.append(f"{len(now)} classes, were {len(before)}")
    moved = [k for k, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]]
    if moved:
        first = moved[0]
        found.append(
            f"label {first} is {now[first]!r}, was {before[first]!r} "
            f"({len(moved)} labels have other names)"
        )
    for part, _ in _PARTS:
        one, other = old.get(part, [0, "", ""]), new.get(part, [0, "", ""])
        if one[0] != other[0]:
            found.append(f"{other[0]} {part} images, were {one[0]}")
        elif list(one) != list(other):
            found.append(f"other {'images' if one[1] != other[1] else 'labels'} in {part}")
    return f"the split changed: {', '.join(found)}" if found else ""


def identity_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say how two identities differ, apart from the files that were read.

    Each has ``config`` from `relevant`, ``split`` from `split_record`, and ``precision``.
    """
    lines = config_changes(old.get("config", {}), new.get("config", {}))
    if old.get("precision") != new.get("precision"):
        lines.append(f"the precision was {old.get('precision')}, is {new.get('precision')}")
    split = split_change(old.get("split", {}), new.get("split", {}))
    return [*lines, split] if split else lines


def shown(lines: Sequence[str]) -> str:
    """Join the first differences into one line, and count the rest."""
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
