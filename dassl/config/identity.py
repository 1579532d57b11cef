"""What a run depends on, and what cannot matter to it.

One place decides this for everybody: for resuming, for the job driver's "done", for reports that
compare seeds, and for the check of a checkpoint before it is evaluated. No PyTorch: a dry run and a
report should not cost its import.
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

# Where things lie and are computed, how much is logged, how often is saved. What lies there is
# compared by content instead, see `files_named` and `dassl.config.inputs`. Devices differ in the
# last bits only; the precision that a run falls back to on one is part of its identity.
CANNOT_MATTER = frozenset(
    {
        "OUTPUT_DIR",
        "RESUME",
        "VERBOSE",
        "DEVICE",
        "USE_CUDA",
        "DATASET.ROOT",
        "DATASET.HASH_IMAGES",
        "FEATURE_CACHE.DIR",
        "FIRST_STAGE.DIR",
        "DATALOADER.NUM_WORKERS",
        "TRAIN.PRINT_FREQ",
        "TRAIN.CHECKPOINT_FREQ",
        "TRAIN.RESUME_FREQ",
        "TRAIN.GRAD_CHECKPOINTING",
        "TRAIN.TIMEOUT",
        "TEST.ZERO_SHOT_CHECK",
        "TEST.PER_CLASS_RESULT",
        "TEST.COMPUTE_CMAT",
    }
)
IDENTITY_NAME = "identity.json"  # beside a run's result
FILE_MARK = "the file with SHA-256 "  # in a config's value that names a file
_PARTS = (("train", "train_x"), ("unlabelled", "train_u"), ("val", "val"), ("test", "test"))
_SEAL = "checksum"
_SHOWN = 3  # differences that a message names


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into one dict by full key.

    Args:
        config: Plain sections, or a value.
        prefix: Full key of ``config``.
    """
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can change a result, by full key.

    Args:
        config: Plain sections.
    """
    return {key: value for key, value in flatten(config).items() if key not in CANNOT_MATTER}


def digest_of(content: Any) -> str:
    """SHA-256 of plain data, in hexadecimal.

    Args:
        content: What JSON can hold; the order of keys does not count.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum to what is written as JSON, in place of one that is there.

    Args:
        content: What JSON can hold.
    """
    plain = json.loads(json.dumps(content))  # as it will be read back
    plain.pop(_SEAL, None)
    return {**plain, _SEAL: digest_of(plain)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether something read back is what was written; True where no checksum says otherwise.

    Args:
        content: From a JSON file.
    """
    rest = {key: value for key, value in content.items() if key != _SEAL}
    return _SEAL not in content or content[_SEAL] == digest_of(rest)


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content; it is read once per process as long as it stays as it is.

    Args:
        path: Of an existing file.

    Raises:
        OSError: It cannot be read.
    """
    status = os.stat(path)
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
        places: Folders that relative paths are looked for in, in this order.

    Returns:
        Absolute paths by full key (``KEY.0`` for the first of a list).
    """
    found = {key: find_file(value, places) for key, value in texts(config)}
    return {key: path for key, path in found.items() if path and key not in CANNOT_MATTER}


def folders_named(
    config: Mapping[str, Any], places: Sequence[str | os.PathLike[str]]
) -> dict[str, str]:
    """Find the folders that a config's values name by more than one word.

    Args:
        config: As for `files_named`.
        places: Likewise.

    Returns:
        Absolute paths by full key.
    """
    found = {}
    for key, value in texts(config):
        if (os.sep in value or value[0] == "~") and key not in CANNOT_MATTER:
            path = _find(value.removeprefix("align:"), places, os.path.isdir)
            found.update({key: path} if path else {})
    return found


def find_file(value: str, places: Sequence[str | os.PathLike[str]]) -> str | None:
    """Find the file that a config's value names.

    Args:
        value: Any text.
        places: Folders that a relative path is looked for in, in this order.

    Returns:
        Its absolute path, or None.
    """
    return _find(value, places, os.path.isfile)


def _find(
    value: str, places: Sequence[str | os.PathLike[str]], exists: Callable[[str], bool]
) -> str | None:
    given = os.path.expanduser(value)
    folders = (os.path.expanduser(os.fspath(place)) for place in places)
    paths = (os.path.abspath(os.path.join(folder, given)) for folder in folders)
    return next((path for path in paths if exists(path)), None)


def texts(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text that may be a path, with its full key.

    Args:
        value: Plain sections and lists, or a value.
        prefix: Full key of ``value``.
    """
    if isinstance(value, str):
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
    """Say in which keys two configs differ; a file that a key names counts by its content.

    Args:
        old: By full key, as `relevant` returns it.
        new: The same of now.

    Returns:
        "KEY was 1, is 2", by key.
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

    Args:
        dataset: Has lists of images, each with ``impath``, ``label`` and ``classname``.
        root: DATASET.ROOT; paths are taken relative to it.

    Returns:
        For each part that is there number, hash of the paths and hash of the labels, and
        ``classes``, the names in the order of the labels.
    """
    base = os.path.abspath(os.path.expanduser(os.fspath(root)))
    found: dict[str, Any] = {"classes": [str(name) for name in dataset.classnames]}
    for part, attribute in _PARTS:
        items = getattr(dataset, attribute, None)
        if items:
            paths = [_below(item.impath, base) for item in items]
            labels = [(int(item.label), item.classname) for item in items]
            hashes = (digest_of(column)[:16] for column in (paths, labels))
            found[part] = [len(items), *hashes]
    return found


def _below(path: str, base: str) -> str:
    prefix = f"{base}{os.sep}"
    # relpath is slow enough to be felt over a million images.
    if path.startswith(prefix):
        return path[len(prefix) :]
    return os.path.relpath(os.path.abspath(path), base)


def split_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say in one line in what two splits differ; empty if they do not.

    Args:
        old: From `split_record`.
        new: The same of now.
    """
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
    """Say in what two identities differ, apart from the files that were read.

    Args:
        old: With ``config`` from `relevant`, ``split`` from `split_record`, and ``precision``.
        new: The same of now.
    """
    lines = config_changes(old.get("config", {}), new.get("config", {}))
    if old.get("precision") != new.get("precision"):
        lines.append(f"the precision was {old.get('precision')}, is {new.get('precision')}")
    split = split_change(old.get("split", {}), new.get("split", {}))
    return [*lines, split] if split else lines


def shown(lines: Sequence[str]) -> str:
    """Join the first differences to one line, and count the rest.

    Args:
        lines: Differences.
    """
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
