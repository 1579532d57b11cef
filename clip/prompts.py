"""The prompts of a class: a template, an ensemble, or a template followed by descriptions."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

ENSEMBLES: dict[int, Sequence[Callable[[str], str]]] = {
    len(SIMPLE_IMAGENET_TEMPLATES): SIMPLE_IMAGENET_TEMPLATES,
    len(OPENAI_IMAGENET_TEMPLATES): OPENAI_IMAGENET_TEMPLATES,
}


def readable(classname: str) -> str:
    """A class name as it stands in a prompt: lower case, spaces for underscores."""
    return classname.replace("_", " ").lower()


def match_key(classname: str) -> str:
    """A class name without what its spellings differ in: case, underscores, repeated spaces."""
    return " ".join(readable(classname).split())


def check_template(template: str, what: str = "A prompt template") -> None:
    """Refuse a template without exactly one place for the class name, ``{}``, by a ValueError."""
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise ValueError(
            f"{what} needs {{}} where the class name goes, once and without other braces, such as "
            f"'a photo of a {{}}.'; got {template!r}"
        )


def fill(template: str, classname: str) -> str:
    """The template with the class name in place of ``{}``; errors as :func:`check_template`."""
    check_template(template)
    return template.strip().replace("{}", readable(classname))


def template_prompts(classnames: Sequence[str], template: str) -> list[list[str]]:
    """One prompt per class."""
    return [[fill(template, name)] for name in classnames]


def ensemble_prompts(
    classnames: Sequence[str], size: int, extra: Sequence[str] = ()
) -> list[list[str]]:
    """open_clip's ImageNet templates (80, or the 7 chosen ones) and ``extra`` ones, per class."""
    if size not in ENSEMBLES:
        raise ValueError(
            f"There are ensembles of {sorted(ENSEMBLES)} templates, none of {size} "
            "(DATASET.PROMPT_ENSEMBLE, TRAINER.ZeroshotCLIP2.TEMPLATES)"
        )
    return [
        # Without repetitions: a template that the ensemble has too would weigh twice in the mean.
        list(
            dict.fromkeys(
                [template(readable(name)) for template in ENSEMBLES[size]]
                + [fill(t, name) for t in extra]
            )
        )
        for name in classnames
    ]


def described_prompts(
    classnames: Sequence[str], template: str, path: str | Path
) -> list[list[str]]:
    """Per class, the filled template followed by each of its descriptions (LightRA's text side).

    The JSON file is {class name: [sentence, ...]}. Names match whatever their case, and with
    underscores for spaces; failing that, with hyphens for spaces too.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no such JSON, or classes have no sentence; the error names them.
    """
    found = class_descriptions(classnames, path)
    return [
        [f"{fill(template, name)} {sentence}" for sentence in sentences]
        for name, sentences in zip(classnames, found, strict=True)
    ]


def class_descriptions(classnames: Sequence[str], path: str | Path) -> list[list[str]]:
    """Each class's descriptions alone; arguments and errors as :func:`described_prompts`."""
    descriptions = read_descriptions(path)
    found = {name: find_description(descriptions, name) for name in classnames}
    missing = [name for name in classnames if not found[name]]
    if missing:
        # Looking for the nearest of many names is slow, and nobody reads a thousand hints.
        near = {
            name: difflib.get_close_matches(match_key(name), descriptions, 1)
            for name in missing[:20]
        }
        hints = "; ".join(
            f"{n!r}" + (f" (nearest: {m[0]!r})" if m else "") for n, m in near.items()
        )
        raise ValueError(
            f"{path} has no description for {len(missing)} of {len(classnames)} classes: {hints}"
            f"{' ...' if len(missing) > 20 else ''}. Add them (scripts/describe.py writes what is "
            "missing), or set DATASET.PROMPT_PATH to '' for templates alone."
        )
    return [found[name] for name in classnames]


def find_description(descriptions: Mapping[str, list[str]], classname: str) -> list[str]:
    """The sentences of a class in what :func:`read_descriptions` returned, or an empty list."""
    key = match_key(classname)
    if key in descriptions:
        return descriptions[key]
    # "T-shirt" and "t shirt" are mostly the same class, unless the file tells them apart.
    loose = key.replace("-", " ")
    similar = [name for name in descriptions if name.replace("-", " ") == loose]
    return descriptions[similar[0]] if len(similar) == 1 else []


def load_descriptions(path: str | Path) -> dict[str, list[str]]:
    """A file of class descriptions as it stands; errors as :func:`described_prompts`."""
    return read_class_lists(
        path,
        str,
        absent="No class descriptions at {}: DATASET.PROMPT_PATH names a JSON file",
        form='{"class name": ["sentence", ...]}',
    )


def read_class_lists(
    path: str | Path, item: type, *, absent: str, form: str
) -> dict[str, list[Any]]:
    """A JSON file with a list of items for each class, as it stands.

    For messages, ``form`` is what the file must look like, and ``absent`` what to say if it is
    missing, with ``{}`` for its path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{absent.replace('{}', str(path.resolve()))} of the form {form}")
    try:
        # Windows' editors put a byte-order mark in front, which plain UTF-8 would take for a sign.
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    good = isinstance(content, dict) and all(
        isinstance(items, list) and all(isinstance(one, item) for one in items)
        for items in content.values()
    )
    if not good:
        raise ValueError(f"{path} must have the form {form}")
    return content


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook for ``json.loads`` that refuses repeated keys; by itself it would keep the last one."""
    names = [name for name, _ in pairs]
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{name!r} stands there {count} times; only one could count")
    return dict(pairs)


def read_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Class descriptions by :func:`match_key`, without blank ones.

    Two spellings of one name are one class, with the sentences of both.
    """
    descriptions: dict[str, list[str]] = {}
    for name, sentences in load_descriptions(path).items():
        known = descriptions.setdefault(match_key(name), [])
        known += [s.strip() for s in sentences if s.strip()]
    return descriptions
