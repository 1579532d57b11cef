"""Structure of class descriptions for HPT's text attention: entities, attributes, their relations.

A file is ``{class name: [structure, ...]}``, one per description, in the same order::

    {"entities": ["triangle", "stripes"], "attributes": ["red"],
     "entity_pairs": [["triangle", "stripes"]], "attribute_pairs": [["triangle", "red"]]}

The spelling that HPT (arXiv:2312.06323) asks its language model for is read too: "Entities",
"Attributes", "Entity-to-Entity Relationships" with ``{"entity1": ..., "entity2": ...}`` and
"Entity-to-Attribute Relationships" with ``{"entity": ..., "attribute": ...}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip.prompts import match_key, read_class_lists, readable

Pair = tuple[str, str]
_KEYS = {
    "entities": "entities",
    "attributes": "attributes",
    "entitypairs": "entity_pairs",
    "attributepairs": "attribute_pairs",
    "entitytoentityrelationships": "entity_pairs",
    "entitytoattributerelationships": "attribute_pairs",
}
_ENDS = (("entity1", "entity2"), ("entity", "attribute"))


@dataclass(frozen=True)
class Structure:
    """The things (entities) in a description, what they are like, and which belong together."""

    entities: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    entity_pairs: tuple[Pair, ...] = ()
    attribute_pairs: tuple[Pair, ...] = ()

    def text(self, classname: str) -> str:
        """``NAME. entity, entity. attribute, attribute.``, HPT's input without its prompts."""
        parts = (readable(classname), ", ".join(self.entities), ", ".join(self.attributes))
        return " ".join(f"{part}." for part in parts if part)


def read_structures(path: str | Path) -> dict[str, list[Structure]]:
    """A file of structures, by :func:`clip.prompts.match_key`.

    Malformed parts of a structure, such as a pair with one end, are left out: language models write
    such things now and then.
    """
    content = read_class_lists(
        path,
        dict,
        absent="No structures of class descriptions at {}, a JSON file",
        form=(
            '{"class name": [{"entities": [...], "attributes": [...], '
            '"entity_pairs": [[..., ...]], "attribute_pairs": [[..., ...]]}, ...]}'
        ),
    )
    return {match_key(name): [_structure(one) for one in ones] for name, ones in content.items()}


def _structure(raw: Mapping[str, Any]) -> Structure:
    found: dict[str, Any] = {}
    for key, values in raw.items():
        name = _KEYS.get(re.sub(r"[\s_-]", "", key).lower())
        if name and isinstance(values, list):
            read = _pairs if name.endswith("pairs") else _words
            found[name] = tuple(read(values))
    return Structure(**found)


def _words(values: Iterable[Any]) -> Iterable[str]:
    return (value.strip() for value in values if isinstance(value, str) and value.strip())


def _pairs(values: Iterable[Any]) -> Iterable[Pair]:
    for value in values:
        if isinstance(value, Mapping):
            ends = next(([value[k] for k in keys] for keys in _ENDS if value.keys() >= {*keys}), [])
        else:
            ends = value if isinstance(value, list) else []
        words = tuple(_words(ends))
        if len(words) == len(ends) == 2:
            yield words[0], words[1]


def related_positions(
    text: Sequence[int], pairs: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[int, int]]:
    """Positions in a text that its related phrases tie together, in both directions.

    Only a phrase's first occurrence counts, and a pair with a phrase that does not occur is
    skipped. A position pair is listed once for every pair of phrases that ties it. Text and phrases
    are token numbers.
    """
    found: list[tuple[int, int]] = []
    for first, second in pairs:
        # Symmetric: each token of one phrase attends to each of the other, and back.
        a, b = _first_match(text, first), _first_match(text, second)
        found += [pair for i in a for j in b for pair in ((i, j), (j, i))]
    return found


def _first_match(text: Sequence[int], phrase: Sequence[int]) -> range:
    size = len(phrase)
    if size:
        for start in range(len(text) - size + 1):
            if list(text[start : start + size]) == list(phrase):
                return range(start, start + size)
    return range(0)
