"""The prompts of a class: a template, an ensemble, or a template followed by descriptions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

ENSEMBLES: dict[int, Sequence[Callable[[str], str]]] = {
    len(SIMPLE_IMAGENET_TEMPLATES): SIMPLE_IMAGENET_TEMPLATES,
    len(OPENAI_IMAGENET_TEMPLATES): OPENAI_IMAGENET_TEMPLATES,
}


def readable(classname: str) -> str:
    """A class name as it stands in a prompt: lower case, spaces for underscores."""
    return classname.replace("_", " ").lower()


def fill(template: str, classname: str) -> str:
    """The template with the class name in place of ``{}``.

    Raises:
        ValueError: The template has no ``{}``.
    """
    if "{}" not in template:
        raise ValueError(
            f"A prompt template needs {{}} where the class name goes, got {template!r}"
        )
    return template.replace("{}", readable(classname))


def template_prompts(classnames: Sequence[str], template: str) -> list[list[str]]:
    """One prompt per class."""
    return [[fill(template, name)] for name in classnames]


def ensemble_prompts(
    classnames: Sequence[str], size: int, extra: Sequence[str] = ()
) -> list[list[str]]:
    """open_clip's ImageNet templates (80, or the 7 chosen ones) and any ``extra`` ones, per class.

    Raises:
        ValueError: There is no ensemble of that size.
    """
    if size not in ENSEMBLES:
        raise ValueError(f"There are ensembles of {sorted(ENSEMBLES)} templates, none of {size}")
    return [
        [template(readable(name)) for template in ENSEMBLES[size]] + [fill(t, name) for t in extra]
        for name in classnames
    ]


def described_prompts(
    classnames: Sequence[str], template: str, path: str | Path
) -> list[list[str]]:
    """Per class, the filled template followed by each of its descriptions (LightRA's text side).

    Args:
        classnames: K names.
        template: With ``{}`` for the name.
        path: JSON file, {class name: [sentence, ...]}; names match whatever their case, and with
            underscores for spaces.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no such JSON, or classes have no sentence; all of them are listed.
    """
    descriptions = read_descriptions(path)
    missing = [name for name in classnames if not descriptions.get(readable(name))]
    if missing:
        near = {
            name: difflib.get_close_matches(readable(name), descriptions, 1)
            for name in missing[:20]
        }
        hints = "; ".join(
            f"{n!r}" + (f" (nearest: {m[0]!r})" if m else "") for n, m in near.items()
        )
        raise ValueError(
            f"{path} has no description for {len(missing)} of {len(classnames)} classes: {hints}"
            f"{' ...' if len(missing) > 20 else ''}. Add them, or set DATASET.PROMPT_PATH to '' "
            "for the template alone."
        )
    return [
        [f"{fill(template, name)} {sentence}" for sentence in descriptions[readable(name)]]
        for name in classnames
    ]


def read_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Class descriptions by :func:`readable` name; errors as :func:`described_prompts`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No class descriptions at {path.resolve()}: DATASET.PROMPT_PATH names a JSON file "
            "of the form "
            '{"class name": ["sentence", ...]}'
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    good = isinstance(content, dict) and all(
        isinstance(v, list) and all(isinstance(s, str) for s in v) for v in content.values()
    )
    if not good:
        raise ValueError(f'{path} must have the form {{"class name": ["sentence", ...]}}')
    return {
        readable(name): [s.strip() for s in sentences if s.strip()]
        for name, sentences in content.items()
    }
