"""What each key of a configuration may hold and what it means, checked before anything is loaded.

Keys are rows: ``"OPTIM.LR": Option(0.0003, number(above=0), "learning rate")``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from yacs.config import CfgNode

from dassl.config.merge import shortened
from dassl.config.paths import user_path
from dassl.names import nearest

__all__ = [
    "FLAG", "PATH", "TEXT", "Option", "Rule", "add_options", "allowed_words", "check_config",
    "count", "each", "expand_paths", "matching", "names_of", "number", "one_of", "problems",
    "trainer_options", "values_of", "with_defaults",
]  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Which values a key may have.

    Attributes:
        words: The rule in words, to follow "must be".
        holds: Tells whether a value follows the rule.
        names: The allowed names, if the value is one of a list of names.
        registered: Whether other people's code may add such names.
        path: Whether the value is a path, in which ``~`` is replaced.
    """

    words: str
    holds: Callable[[Any], bool]
    names: Callable[[], Iterable[Any]] | None = None
    registered: bool = False
    path: bool = False


@dataclass(frozen=True)
class Option:
    """A key of the configuration.

    Attributes:
        default: Value unless a file, a flag or an option sets it; it also fixes the type.
        allowed: Rule for the value; by default anything finite of that type.
        meaning: A few words for the reader of an error or of a list of keys.
    """

    default: Any
    allowed: Rule | None = None
    meaning: str = ""

    @property
    def rule(self) -> Rule:
        """The rule for the value: the given one, or the one that the default's type implies."""
        return self.allowed or _rule_of_type(self.default)


def number(
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    also: Sequence[float] = (),
    whole: bool = False,
) -> Rule:
    """A finite number within bounds, or one of the special values in ``also``."""
    if least is not None and most is not None:
        words = [f"{least} to {most}"]
    else:
        words = [] if least is None else [f"{least} or more"]
        words += [] if above is None else [f"above {above}"]
        words += [] if most is None else [f"at most {most}"]
    words += [] if below is None else [f"below {below}"]
    text = " ".join(["a whole number" if whole else "a finite number", ", ".join(words)]).strip()

    def holds(value: Any) -> bool:
        # True and False are ints in Python, but in a config they are a mistake for a number.
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        return value in also or (
            math.isfinite(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return Rule(" or ".join([*map(str, also), text]), holds)


def count(least: int, most: int | None = None, also: Sequence[int] = ()) -> Rule:
    """A whole number within bounds, or one of the special values in ``also``."""
    return number(least, most, also=also, whole=True)


def one_of(*names: Any) -> Rule:
    """One of some names or numbers."""
    return names_of(lambda: names)


def names_of(place: str | Callable[[], Iterable[Any]]) -> Rule:
    """One of the names that are registered when the value is checked.

    ``place`` is ``module:attribute``, whose items are the names, or a function that returns them.
    """
    if callable(place):
        names = place
    else:
        module, _, attribute = place.partition(":")

        def names() -> Iterable[Any]:
            # Imported only when a name is checked or listed, since it may bring PyTorch.
            return getattr(import_module(module), attribute)

    def holds(value: Any) -> bool:
        # The types are compared too: otherwise True would pass as 1, and 1.0 as 1.
        return any(type(value) is type(name) and value == name for name in names())

    return Rule("one of", holds, names, registered=not callable(place))


def matching(pattern: str, words: str) -> Rule:
    """A text that matches a pattern as a whole."""
    return Rule(words, lambda value: re.fullmatch(pattern, str(value)) is not None)


def each(rule: Rule, *counts: int) -> Rule:
    """A list of values that all follow a rule; ``counts`` are the allowed lengths, or any."""

    def holds(value: Any) -> bool:
        # Dassl reads a bare value as a list of one.
        values = value if isinstance(value, list | tuple) else (value,)
        return (not counts or len(values) in counts) and all(map(rule.holds, values))

    many = f"{' or '.join(map(str, counts))} values, each " if counts else "values, each "
    return replace(rule, words=many + rule.words, holds=holds)


FINITE = number()
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str))
PATH = Rule("a path; ~ is your home directory", lambda value: isinstance(value, str), path=True)


def _rule_of_type(default: Any) -> Rule:
    # Before the numbers, since a bool is an int.
    if isinstance(default, bool):
        return FLAG
    if isinstance(default, int | float):
        return FINITE
    if isinstance(default, str):
        return TEXT
    return Rule("anything", lambda _: True)


def allowed_words(rule: Rule) -> str:
    """Return a rule in words, with the names that are registered now."""
    if rule.names is None:
        return rule.words
    return f"{rule.words} {', '.join(str(name) or repr(name) for name in rule.names())}"


def with_defaults(options: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return the same options with some other defaults."""
    changed = {key: replace(options[key], default=value) for key, value in defaults.items()}
    return {**options, **changed}


def values_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of options, some of which may be plain values already."""
    return {
        key: deepcopy(option.default if isinstance(option, Option) else option)
        for key, option in options.items()
    }


def add_options(cfg: CfgNode, options: Mapping[str, Option]) -> None:
    """Add keys such as ``OPTIM.LR`` with their defaults to a configuration, in place."""
    for key, value in values_of(options).items():
        *sections, last = key.split(".")
        node = cfg
        for section in sections:
            if section not in node:
                node[section] = CfgNode()
            node = node[section]
        node[last] = value


def trainer_options(name: str, trainer: Any) -> dict[str, Option]:
    """Return the options that a trainer declares, by full key such as ``TRAINER.CoOp.N_CTX``.

    Plain values among its ``defaults`` have no rule and are left out; a trainer may have no
    ``defaults``.
    """
    section = getattr(trainer, "config_section", None) or name
    declared = getattr(trainer, "defaults", None)
    return {
        f"TRAINER.{section}.{key}": option
        for key, option in (declared.items() if isinstance(declared, Mapping) else ())
        if isinstance(option, Option)
    }


def expand_paths(cfg: CfgNode, options: Mapping[str, Option]) -> CfgNode:
    """Return a configuration with ``~`` replaced in every path: a copy, if that changes anything.

    Raises:
        ValueError: A path starts with ``~`` and the name of no user; the message names the key.
    """
    changed: dict[str, Any] = {}
    for key, option in options.items():
        node, last = _find(cfg, key)
        if option.rule.path and node is not None and str(node[last]).startswith("~"):
            try:
                changed[key] = user_path(node[last])
            except ValueError as error:
                raise ValueError(f"{key} is {error}") from None
    if not changed:
        return cfg
    copy = cfg.clone()
    copy.defrost()
    for key, path in changed.items():
        node, last = _find(copy, key)
        if node is not None:
            node[last] = path
    if cfg.is_frozen():
        copy.freeze()
    return copy


def check_config(
    cfg: CfgNode,
    options: Mapping[str, Option],
    together: Sequence[Callable[[CfgNode], str]] = (),
    *,
    registered: bool = True,
) -> None:
    """Refuse a configuration with values that make no sense.

    Args:
        cfg: Configuration. Options whose key it does not have are skipped.
        options: By full key.
        together: Rules about several keys: each returns what is wrong, or an empty string.
        registered: Also check names that other people's code may register.

    Raises:
        ValueError: One line for each wrong value.
    """
    found = problems(cfg, options, registered=registered)
    # Rules about several keys may take for granted that each value is valid by itself.
    found = found or [text for text in (rule(cfg) for rule in together) if text]
    if found:
        raise ValueError("\n".join(found))


def problems(cfg: CfgNode, options: Mapping[str, Option], *, registered: bool = True) -> list[str]:
    """Return one line for each single value that is wrong; see :func:`check_config`."""
    found = []
    for key, option in options.items():
        node, last = _find(cfg, key)
        rule = option.rule
        if node is None or (rule.registered and not registered):
            continue
        value = node[last]
        # A default may lie outside of its rule, as "" for a name that must be set.
        if value == option.default or rule.holds(value):
            continue
        meaning = f" ({option.meaning})" if option.meaning else ""
        line = f"{key} must be {allowed_words(rule)}, got {shortened(value)}{meaning}"
        found.append(f"{line}.{_nearest(value, rule)}")
    return found


def _find(cfg: CfgNode, key: str) -> tuple[CfgNode | None, str]:
    """Return the section that holds a key, None if there is none, and the key's last part."""
    *sections, last = key.split(".")
    node: Any = cfg
    for section in sections:
        node = node.get(section) if isinstance(node, Mapping) else None
    return (node, last) if isinstance(node, Mapping) and last in node else (None, last)


def _nearest(value: Any, rule: Rule) -> str:
    if rule.names is None:
        return ""
    known = [name for name in rule.names() if isinstance(name, str)]
    values = value if isinstance(value, list | tuple) else [value]
    odd = [str(one) for one in values if one not in known]
    return nearest(odd[0], known) if odd and known else ""
