"""Merging files and options into a configuration, and its hash."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from yacs.config import CfgNode

from dassl.config.identity import digest_of, relevant
from dassl.config.layers import PER_DATASET, PER_SHOTS, Layer, read_layers
from dassl.names import nearest

__all__ = ["clean_cfg", "config_hash", "merge_file", "merge_options", "to_plain"]

# What YAML 1.1 and people write for them.
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DIGITS = re.compile(r"[-+]?[0-9]{1,300}$")
_LARGEST = 1e300


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop the sections of other trainers, in place, for shorter printing.

    Args:
        cfg: Configuration.
        trainer: Name of the trainer in use. Its section may be spelt in capitals, as in CoOp's
            repository (``CoOp``'s section is ``COOP``).
    """
    for key in list(cfg.TRAINER.keys()):
        if key != "NAME" and key.upper() != trainer.upper():
            cfg.TRAINER.pop(key, None)


def to_plain(node: Any) -> Any:
    """Turn a configuration into dicts, lists and scalars that JSON can hold.

    Args:
        node: Configuration, or a value in it.

    Returns:
        The same content in plain types.
    """
    if isinstance(node, Mapping):
        return {str(key): to_plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [to_plain(value) for value in node]
    return node


def config_hash(cfg: CfgNode) -> str:
    """Hash everything in a configuration that can change a result.

    Args:
        cfg: Configuration.

    Returns:
        16 hexadecimal digits.
    """
    return digest_of(relevant(to_plain(cfg)))[:16]


def merge_file(
    cfg: CfgNode,
    path: str | os.PathLike[str],
    dataset: str | None = None,
    shots: int | None = None,
    known_datasets: Iterable[str] | None = None,
) -> None:
    """Merge a YAML file and the files it builds on into a configuration, in place.

    ``_BASE_: other.yaml`` names a file, relative to this one, that is merged before it. A section
    ``PER_DATASET: {<DATASET.NAME>: {...}}`` is taken out; its entry for the current data set is
    merged after the rest of the file that it stands in. In a file or in such an entry, a section
    ``PER_SHOTS: {<DATASET.NUM_SHOTS>: {...}}`` is merged after the keys beside it. So the more
    specific file wins over its base in everything: base, the base's entry for the data set, file,
    the file's own entry. All entries are checked, so that a typing error shows at once and not on
    the day the data set is used.

    Args:
        cfg: Configuration, not frozen.
        path: YAML file.
        dataset: Name that selects the entries, by default ``DATASET.NAME`` of the files or else
            of ``cfg``.
        shots: Likewise for ``PER_SHOTS``, by default ``DATASET.NUM_SHOTS``.
        known_datasets: Names that an entry of ``PER_DATASET`` may have; None allows every name.

    Raises:
        FileNotFoundError: The file or a base does not exist.
        ValueError: Not a YAML mapping, an unknown key, a value of the wrong type, an entry for an
            unknown data set or for no number of shots, or a file that builds on itself; the
            message names the file.
    """
    layers = read_layers(path)
    merged = cfg.clone()
    names = None if known_datasets is None else list(known_datasets)
    for layer in layers:
        _merge_entries(merged, layer.content, layer.source, shots)
        for name, section in layer.per_dataset.items():
            if names is not None and name not in names:
                raise ValueError(_no_dataset(layer, name, names))
            _merge_entries(merged.clone(), section, f"{layer.source}, {PER_DATASET}.{name}", shots)
    chosen = dataset if dataset is not None else merged.DATASET.NAME
    shots = merged.DATASET.NUM_SHOTS if shots is None else shots
    _merge_layers(cfg.clone(), layers, chosen, shots)
    # Only now touch the caller's configuration: an error leaves it as it was.
    _merge_layers(cfg, layers, chosen, shots)


def merge_options(cfg: CfgNode, options: Sequence[Any]) -> None:
    """Merge ``[KEY, value, KEY, value, ...]`` into a configuration, in place.

    Args:
        cfg: Configuration, not frozen.
        options: Full keys such as ``OPTIM.LR``, each followed by its value; strings are read as
            Python literals where they are some.

    Raises:
        ValueError: An odd number of items, an unknown key, or a value of the wrong type.
    """
    if len(options) % 2:
        raise ValueError(
            "options must be KEY VALUE pairs, got an odd number of items: "
            + " ".join(map(str, options))
        )
    for key, value in zip(options[::2], options[1::2], strict=True):
        nested: Any = value
        for part in reversed(str(key).split(".")):
            nested = {part: nested}
        _merge(cfg, nested, "command line")


def _merge_layers(cfg: CfgNode, layers: Sequence[Layer], dataset: str, shots: int) -> None:
    for layer in layers:
        _merge_entries(cfg, layer.content, layer.source, shots)
        _merge_entries(cfg, layer.per_dataset.get(dataset, {}), layer.source, shots)


def _merge_entries(cfg: CfgNode, section: Any, source: str, shots: int | None) -> None:
    """Merge a section and then its own entry for ``shots``; all its entries are checked."""
    if not isinstance(section, Mapping) or PER_SHOTS not in section:
        return _merge(cfg, section, source)
    entries = section[PER_SHOTS]
    if not isinstance(entries, Mapping):
        raise ValueError(f"{source}: {PER_SHOTS} must map numbers of shots to sections")
    for number in entries:
        if type(number) is not int or number < -1 or number == 0:
            raise ValueError(
                f"{source}: {PER_SHOTS} must map numbers of shots to sections, got an entry for "
                f"{number!r}; allowed: images per class, 1 or more, or -1 for all"
            )
    _merge(cfg, {key: value for key, value in section.items() if key != PER_SHOTS}, source)
    for number, entry in entries.items():
        _merge(cfg.clone(), entry, f"{source}, {PER_SHOTS}.{number}")
    return _merge(cfg, entries.get(shots, {}), source)


def _no_dataset(layer: Layer, name: object, known: Sequence[str]) -> str:
    return (
        f"{layer.source}: {PER_DATASET} has an entry for {name!r}, which is no data set's name "
        f"(DATASET.NAME).{nearest(str(name), known)} Known: {', '.join(sorted(known))}"
    )


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Yield the full key of every section and value."""
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")


def _merge(cfg: CfgNode, content: Any, source: str) -> None:
    """Merge nested dicts into a configuration, naming the source in errors."""
    if cfg.is_frozen():
        raise ValueError("the configuration is frozen; merge before cfg.freeze()")
    _merge_section(cfg, cfg, content, "", source)


def _merge_section(root: CfgNode, node: CfgNode, content: Any, prefix: str, source: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{source}: {prefix.rstrip('.') or 'the file'} is a section of keys, got {content!r}"
        )
    for key, value in content.items():
        full = f"{prefix}{key}"
        if key not in node:
            if node.is_new_allowed():
                node[key] = CfgNode(value) if isinstance(value, dict) else _decode(value)
                continue
            # Imported here: it brings PyTorch, which a reader of config files can do without.
            hint = nearest(full, _leaves(root))
            raise ValueError(f"{source}: unknown config key {full!r}.{hint}")
        if isinstance(node[key], CfgNode):
            _merge_section(root, node[key], value, f"{full}.", source)
        else:
            node[key] = _convert(full, value, node[key], source)


def _decode(value: Any) -> Any:
    """Read a string as a Python literal if it is one (the command line knows nothing else)."""
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
    """Return a value as an error message shows it, however long it is."""
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
