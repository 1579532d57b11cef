"""Reading YAML so that a file means what it looks like, without the surprises of YAML 1.1."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

__all__ = ["read_yaml"]

# Config files are two or three levels deep and have tens of values.
MAX_DEPTH, MAX_VALUES = 50, 100_000
_TAG = "tag:yaml.org,2002:"


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file by the rules of YAML 1.2; an empty file gives None.

    ``010`` is ten, ``1:30``, ``2024-01-01`` and ``yes`` are text, ``1e-3`` is a number. Merge keys
    (``<<``) and anchors work as long as the file stays small; tags that make other objects do not.

    Raises:
        FileNotFoundError: The file cannot be read.
        ValueError: It is not YAML or not UTF-8, has a key twice in a section, refers to itself, or
            is nested too deeply or too large. The message is one line.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise FileNotFoundError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: it is not UTF-8 text ({error})") from error
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        what = ", ".join(filter(None, (error.context, error.problem)))
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{path} is not valid YAML: {' '.join(what.split())}{where}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with only the core types of YAML 1.2, and limits."""

    # Empty: PyYAML's own would be shared and read 010 as eight, yes as true, 1:30 as ninety.
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - so in PyYAML's types
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._counts: dict[yaml.Node, int] = {}  # values below a node, aliases followed

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse too much depth, a node in itself, and blow-up by aliases."""
        event = self.peek_event()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self._counts:
            # An alias whose anchor is still being composed has no count yet.
            raise _error(f"*{event.anchor} contains itself", event.start_mark)
        self._counts[node] = 1 + sum(self._counts[child] for child in _children(node))
        if self._counts[node] > MAX_VALUES:
            raise _error(f"more than {MAX_VALUES} values, aliases followed", event.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a section; refuse a key that it has twice."""
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise _error("a key must be one word", name.start_mark)
            merges = name.tag == f"{_TAG}merge"
            key = name.value if merges else self.construct_object(name)
            line = name.start_mark.line + 1
            if key in lines:
                raise _error(
                    f"key {name.value!r} stands twice in one section, first in line {lines[key]}; "
                    "only one of them could count",
                    name.start_mark,
                )
            lines[key] = line
        return node


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text, base)
    except ValueError as error:
        raise _error(f"{text[:20]!r} is no whole number: {error}", node.start_mark) from error


def _real(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node)
    try:
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    except ValueError as error:
        raise _error(f"{text[:20]!r} is no number", node.start_mark) from error


def _boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node)
    if text.lower() not in ("true", "false"):
        raise _error(f"{text[:20]!r} is neither true nor false", node.start_mark)
    return text.lower() == "true"


def _unknown(loader: _Loader, node: yaml.Node) -> None:
    raise _error(f"tag {node.tag!r} makes no value of a config", node.start_mark)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)
for _name, _make in (
    ("null", yaml.SafeLoader.construct_yaml_null),
    ("bool", _boolean),
    ("int", _integer),
    ("float", _real),
    ("str", yaml.SafeLoader.construct_yaml_str),
    ("seq", yaml.SafeLoader.construct_yaml_seq),
    ("map", yaml.SafeLoader.construct_yaml_map),
):
    _Loader.add_constructor(_TAG + _name, _make)
# For every tag without a constructor, such as !!python/object.
_Loader.add_constructor(None, _unknown)
