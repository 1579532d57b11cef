"""Merging files and options into a configuration, and its hash."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

from yacs.config import CfgNode

from dassl.config.identity import digest_of, relevant
from dassl.config.layers import PER_DATASET, PER_SHOTS, Layer, read_layers
from dassl.names import nearest

__all__ = [
    "clean_cfg",
    "config_hash",
    "full_keys",
    "merge_file",
    "merge_options",
    "shortened",
    "to_plain",
]

# YAML 1.1 has all of these, so people write them; our reader knows only true and false.
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DIGITS = re.compile(r"[-+]?[0-9]{1,300}$")
_LARGEST = 1e300  # a larger int may not fit into a float

Place = tuple[str, ...]  # ("OPTIM", "LR")
Values = dict[Place, Any]


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop the sections of all other trainers, in place, for shorter printing.

    A trainer's section may be spelt in capitals (``COOP``), as in CoOp's repository.
    """
    for key in list(cfg.TRAINER.keys()):
        if key != "NAME" and key.upper() != trainer.upper():
            cfg.TRAINER.pop(key, None)


def to_plain(node: Any) -> Any:
    """Turn a configuration, or a value in it, into dicts, lists and scalars that JSON can hold."""
    if isinstance(node, Mapping):
        return {str(key): to_plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [to_plain(value) for value in node]
    return node


def config_hash(cfg: CfgNode) -> str:
    """Hash what can change a result, see `CANNOT_MATTER`, to 16 hexadecimal digits."""
    return digest_of(relevant(to_plain(cfg)))[:16]


def merge_file(
    cfg: CfgNode,
    path: str | os.PathLike[str],
    dataset: str | None = None,
    shots: int | None = None,
    known_datasets: Iterable[str] | None = None,
) -> set[str]:
    """Merge a YAML file and the files it builds on into a configuration, in place.

    ``_BASE_: other.yaml`` names a file, relative to this one, that is merged before it.
    ``PER_DATASET: {<DATASET.NAME>: {...}}`` holds entries for datasets; that of the current dataset
    is merged after the rest of its file. In a file or in such an entry, ``PER_SHOTS:
    {<DATASET.NUM_SHOTS>: {...}}`` is merged after the keys beside it. A file thus wins over its
    base in everything; the order is base, the base's entry for the dataset, file, the file's own
    entry.

    Args:
        cfg: Configuration, not frozen.
        path: YAML file.
        dataset: Name that selects the entries, by default ``DATASET.NAME`` of the files or else of
            ``cfg``.
        shots: Likewise for ``PER_SHOTS``, by default ``DATASET.NUM_SHOTS``.
        known_datasets: Names that ``PER_DATASET`` may use; None allows every name.

    Returns:
        Full keys that were set.

    Raises:
        FileNotFoundError: The file or a base does not exist.
        ValueError: Not a YAML mapping, an unknown key, a value of the wrong type, an entry for an
            unknown dataset or an invalid number of shots, or a file that builds on itself; the
            message names the file.
    """
    names = None if known_datasets is None else list(known_datasets)
    # First into a copy: an error leaves the caller's configuration unchanged, and only when all
    # files are read is it known which dataset's entries count.
    merged = cfg.clone()
    read = [_read_layer(merged, layer, names, shots) for layer in read_layers(path)]
    chosen = dataset if dataset is not None else merged.DATASET.NAME
    shots = merged.DATASET.NUM_SHOTS if shots is None else shots
    found: set[str] = set()
    for own, entries in read:
        found |= own.merge_into(cfg, shots)
        if chosen in entries:
            found |= entries[chosen].merge_into(cfg, shots)
    return found


def merge_options(cfg: CfgNode, options: Sequence[Any]) -> set[str]:
    """Merge ``[KEY, value, KEY, value, ...]`` into a configuration, in place.

    Args:
        cfg: Configuration, not frozen.
        options: Full keys such as ``OPTIM.LR``, each followed by its value; a string that is a
            Python literal is read as one.

    Returns:
        Full keys that were set.

    Raises:
        ValueError: An odd number of items, an unknown key, or a value of the wrong type.
    """
    if len(options) % 2:
        raise ValueError(
            "options must be KEY VALUE pairs, got an odd number of items: "
            + " ".join(map(str, options))
        )
    found: set[str] = set()
    for key, value in zip(options[::2], options[1::2], strict=True):
        nested: Any = value
        for part in reversed(str(key).split(".")):
            nested = {part: nested}
        found |= _assign(cfg, _converted(cfg, nested, "command line"))
    return found


@dataclass(frozen=True)
class _Section:
    """A section of a file with converted values: its own, and those of its entries for shots."""

    values: Values
    per_shots: dict[int, Values]

    def merge_into(self, cfg: CfgNode, shots: int | None) -> set[str]:
        entry = {} if shots is None else self.per_shots.get(shots, {})
        return _assign(cfg, self.values) | _assign(cfg, entry)


def _read_layer(
    merged: CfgNode, layer: Layer, known: Sequence[str] | None, shots: int | None
) -> tuple[_Section, dict[str, _Section]]:
    """Convert a file and its entries for datasets; merge what does not depend on the dataset.

    All entries are converted, whichever is used: a typing error shows at once, not on the day when
    its dataset is used.
    """
    own = _read_section(merged, layer.content, layer.source)
    own.merge_into(merged, shots)
    entries = {}
    for name, section in layer.per_dataset.items():
        if known is not None and name not in known:
            raise ValueError(_no_dataset(layer, name, known))
        entries[name] = _read_section(merged, section, f"{layer.source}, {PER_DATASET}.{name}")
    return own, entries


def _read_section(cfg: CfgNode, section: Any, source: str) -> _Section:
    if not isinstance(section, Mapping) or PER_SHOTS not in section:
        return _Section(_converted(cfg, section, source), {})
    entries = section[PER_SHOTS]
    if not isinstance(entries, Mapping):
        raise ValueError(f"{source}: {PER_SHOTS} must map numbers of shots to sections")
    for number in entries:
        if type(number) is not int or number < -1 or number == 0:
            raise ValueError(
                f"{source}: {PER_SHOTS} must map numbers of shots to sections, got an entry for "
                f"{number!r}; allowed: images per class, 1 or more, or -1 for all"
            )
    values = {key: value for key, value in section.items() if key != PER_SHOTS}
    return _Section(
        _converted(cfg, values, source),
        {n: _converted(cfg, v, f"{source}, {PER_SHOTS}.{n}") for n, v in entries.items()},
    )


def _no_dataset(layer: Layer, name: object, known: Sequence[str]) -> str:
    return (
        f"{layer.source}: {PER_DATASET} has an entry for {name!r}, which is no dataset's name "
        f"(DATASET.NAME).{nearest(str(name), known)} Known: {', '.join(sorted(known))}"
    )


def full_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Yield the full key of every section and value, such as ``OPTIM`` and ``OPTIM.LR``."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from full_keys(value, f"{prefix}{key}.")


def _converted(cfg: CfgNode, content: Any, source: str) -> Values:
    """Convert what nested dicts set to a configuration's types; errors name the source."""
    if cfg.is_frozen():
        raise ValueError("the configuration is frozen; merge before cfg.freeze()")
    return dict(_walk(cfg, (), content, source))


def _walk(root: CfgNode, place: Place, content: Any, source: str) -> Iterator[tuple[Place, Any]]:
    node = reduce(getitem, place, root)
    if not isinstance(content, Mapping):
        name = ".".join(place) or "the file"
        raise ValueError(f"{source}: {name} is a section of keys, got {content!r}")
    for key, value in content.items():
        here = (*place, key)
        if key in node and isinstance(node[key], CfgNode):
            yield from _walk(root, here, value, source)
        elif key in node:
            yield here, _convert(".".join(here), value, node[key], source)
        # A trainer written for Dassl may open a section of its own for any key.
        elif node.is_new_allowed():
            yield here, value if isinstance(value, dict) else _decode(value)
        else:
            full = ".".join(map(str, here))
            hint = nearest(full, full_keys(root))
            raise ValueError(f"{source}: unknown config key {full!r}.{hint}")


def _assign(cfg: CfgNode, values: Values) -> set[str]:
    """Set converted values, in place; return their full keys."""
    for (*sections, last), value in values.items():
        node = reduce(getitem, sections, cfg)
        node[last] = CfgNode(value) if isinstance(value, dict) else value
    return {".".join(map(str, place)) for place in values}


def _decode(value: Any) -> Any:
    """Read a string as a Python literal if it is one (the command line has only strings)."""
    try:
        return CfgNode._decode_cfg_value(value)
    except (MemoryError, RecursionError):  # thousands of brackets
        return value


def _convert(key: str, value: Any, current: Any, source: str) -> Any:
    """Convert a new value to the type of the current one, or refuse it."""
    if isinstance(current, str) and isinstance(value, str):
        return value  # a name that looks like a number stays a name
    decoded = _decode(value)
    if current is None or type(decoded) is type(current):
        return decoded
    if isinstance(current, float) and type(decoded) is int and abs(decoded) < _LARGEST:
        return float(decoded)
    if isinstance(decoded, str):
        if isinstance(current, bool) and decoded.lower() in _BOOLEANS:
            return _BOOLEANS[decoded.lower()]
        if type(current) in (int, float) and _DIGITS.match(decoded):
            return type(current)(decoded)  # 010 is ten, as in a file
    if isinstance(current, tuple) and isinstance(decoded, list):
        return tuple(decoded)
    if isinstance(current, list) and isinstance(decoded, tuple):
        return list(decoded)
    raise ValueError(
        f"{source}: {key} must be of type {type(current).__name__} (now {current!r}), "
        f"got {shortened(value)} of type {type(decoded).__name__}{_hint(decoded, current)}"
    )


def shortened(value: Any) -> str:
    """Return a value as an error message shows it, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _hint(decoded: Any, current: Any) -> str:
    if isinstance(current, list | tuple):
        return f'; write a list, such as "[{shortened(decoded)}]"'
    if isinstance(current, bool):
        return "; write true or false"
    if decoded is None:
        return "; in YAML, ~ and null and an empty value are nothing: quote a text, leave a key out"
    if isinstance(current, str):
        return "; quote it if it is a name"
    return ""
