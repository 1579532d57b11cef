"""YAML config files and the files that they build on.

``_BASE_: base2novel.yaml`` at the top of a file names another file to build on, relative to its own
folder, as in detectron2. A base may have a base itself. This module does not know which keys exist;
the job driver also reads config files here, without importing PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.config.paths import user_path
from dassl.config.yaml_file import read_yaml

__all__ = ["Layer", "overlay", "read_layers"]

BASE, PER_DATASET, PER_SHOTS = "_BASE_", "PER_DATASET", "PER_SHOTS"


@dataclass(frozen=True)
class Layer:
    """The content of one config file, without the files that it builds on.

    Attributes:
        source: Its path, for messages.
        content: Its keys, without the two below; may have ``PER_SHOTS``, sections by
            ``DATASET.NUM_SHOTS``.
        base: Path of the file it builds on; empty if there is none.
        per_dataset: ``PER_DATASET``: sections by ``DATASET.NAME``, which may have a ``PER_SHOTS``.
    """

    source: str
    content: dict[str, Any]
    base: str
    per_dataset: dict[str, Any]


def read_layers(path: str | os.PathLike[str]) -> list[Layer]:
    """Read a config file and everything it builds on.

    Returns:
        One layer per file in the order of merging: the lowest base first, the file itself last.

    Raises:
        FileNotFoundError: The file or a base does not exist.
        ValueError: A file is no YAML mapping, ``_BASE_`` is no path, or a file builds on itself.
    """
    source = user_path(path)
    if not os.path.isfile(source):
        raise FileNotFoundError(f'No config file at "{source}"')
    layers = [_read_layer(source)]
    # Resolved: a link or a "../" would hide that a file builds on itself.
    seen = [Path(source).resolve()]
    while base := layers[-1].base:
        if not os.path.isfile(base):
            raise FileNotFoundError(_no_base(layers[-1]))
        if Path(base).resolve() in seen:
            chain = " -> ".join([*(layer.source for layer in layers), base])
            raise ValueError(f"{BASE} goes round in a circle: {chain}")
        seen.append(Path(base).resolve())
        layers.append(_read_layer(base))
    return layers[::-1]


def overlay(below: Any, above: Any) -> Any:
    """Merge nested dicts into a new one; where both have a value, that of ``above`` counts."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = overlay(below[key], value) if key in below else value
    return merged


def _read_layer(source: str) -> Layer:
    content = read_yaml(source)
    # An empty file, or one with comments only, is a config without keys.
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{source} must hold KEY: value pairs, got {type(content).__name__}")
    per_dataset = content.pop(PER_DATASET, None) or {}
    if not isinstance(per_dataset, dict):
        raise ValueError(f"{source}: {PER_DATASET} must map dataset names to sections")
    base = ""
    if BASE in content:
        base = content.pop(BASE)
        if not isinstance(base, str) or not base:
            raise ValueError(
                f"{source}: {BASE} must be the path of one YAML file, relative to this one,"
                f" got {base!r}"
            )
        base = os.path.join(os.path.dirname(source), user_path(base))
    return Layer(source, content, base, per_dataset)


def _no_base(layer: Layer) -> str:
    folder = Path(layer.base).parent
    near = sorted(path.name for path in folder.glob("*.yaml")) if folder.is_dir() else []
    where = f"{folder} has {near}" if near else f"a path in {BASE} is relative to the file's folder"
    return f"{layer.source}: {BASE} names {layer.base}, which is no file; {where}"
