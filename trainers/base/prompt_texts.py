"""Where the prompts of a method come from, and what the log says about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_clip import IMAGENET_CLASSNAMES
from yacs.config import CfgNode

from clip.prompts import described_prompts, ensemble_prompts, readable, template_prompts
from clip.text import TextBank
from dassl.config.paths import REPOSITORY, resolve
from datasets.base import CLIPDataset
from datasets.rows import ROW_OF
from trainers.base.templates import own_template


class PromptTexts:
    """Makes prompts of the config and the class names."""

    def __init__(self, dataset: CfgNode, classnames: list[str], default_context: Any) -> None:
        self.dataset = dataset  # the config's ``DATASET`` section
        self.classnames = classnames
        self.default_context = default_context  # CTX_INIT's, of the method; None if it has none
        self._template_read = False

    @property
    def unused_template(self) -> str:
        """The template that the user chose, if no prompt was made with it; else ""."""
        chosen = self.dataset.PROMPT_TEMPLATE
        # The configs that users copy for data of their own come with a text, which is no choice.
        own_data = self.dataset.NAME not in ROW_OF
        untouched = own_data and chosen == CLIPDataset.default_template
        return "" if self._template_read or untouched else chosen

    def template(self, own: str) -> str:
        """The template that the user chose for the dataset, else the method's ``own``."""
        self._template_read = True
        return self.dataset.PROMPT_TEMPLATE or own

    def ensemble(self, classnames: list[str], size: int, own: str = "") -> list[list[str]]:
        """open_clip's 7 or 80 templates and :meth:`template`, if there is one, per class."""
        template = self.template(own)
        if template:
            print(f"Prompts: open_clip's {size} templates and {template!r}")
        return ensemble_prompts(classnames, size, [template] if template else [])

    def prompts(self, context: str = "", learned: bool = False) -> list[list[str]]:
        """Each class's prompts.

        Args:
            context: Words before the name, "a photo of a", whatever the dataset; a template that
                the user chose replaces a method's default. If empty, the dataset's own prompts, of
                the kind that ``DATASET.PROMPT_SOURCE`` names: ``json``, its template before each
                description of ``DATASET.PROMPT_PATH``; ``template`` alone; ``ensemble``,
                open_clip's 7 or 80 templates (``DATASET.PROMPT_ENSEMBLE``) and its own; ``auto``,
                descriptions if a file is named, else the ensemble.
            learned: Whether learned prompts replace the words, so that no template may.
        """
        names, dataset = self.classnames, self.dataset
        if context:
            words = context.replace("_", " ") + " {}."
            default = context == self.default_context and not learned
            return template_prompts(names, self.template(words) if default else words)
        template = self.template(own_template(dataset.NAME))
        source = _prompt_source(dataset)
        if source == "json":
            print(f"Prompts: {template!r} before each description of {dataset.PROMPT_PATH}")
            return described_prompts(names, template, resolve(dataset.PROMPT_PATH))
        if source == "template":
            print(f"Prompts: {template!r}")
            return template_prompts(names, template)
        return self.ensemble(names, dataset.PROMPT_ENSEMBLE, template)


def text_notes(bank: TextBank, classnames: Sequence[str], dataset: str) -> list[str]:
    """What is wrong with texts: classes that the text encoder cannot tell apart or make sense of.

    A class without any name is a ValueError.
    """
    names = list(classnames)
    nameless = [label for label, name in enumerate(names) if not readable(name).strip()]
    if nameless:
        raise ValueError(
            f"{len(nameless)} of {len(names)} classes have no name (labels {nameless[:5]}, "
            f"{names[nameless[0]]!r}); every class needs one that a text encoder can read, "
            "DATASET.CLASSNAMES names a file with others"
        )
    notes = []
    signs = [name for name in names if not any(sign.isalnum() for sign in name)]
    if signs:
        notes.append(
            f"{len(signs)} of {len(names)} class names have neither letter nor digit: "
            f"{_listed(signs)}"
        )
    groups = [[names[k] for k in group] for group in bank.twins() if max(group) < len(names)]
    # Some classes of ImageNet share a name in the field's own list, which is nobody's mistake.
    groups = [g for g in groups if not ("ImageNet" in dataset and _known_twins(g))]
    if groups:
        notes.append(
            f"the text encoder cannot tell {sum(map(len, groups))} of {len(names)} classes "
            f"apart, whose {bank.alike}: {_listed(groups)}"
        )
    return notes


def _known_twins(names: Sequence[str]) -> bool:
    return len(set(names)) == 1 and IMAGENET_CLASSNAMES.count(names[0]) > 1


def _listed(items: Sequence[Any]) -> str:
    """The first three: names, or groups of names joined by "and"."""
    shown = [
        " and ".join(map(repr, item[:3])) if isinstance(item, list) else repr(item)
        for item in items[:3]
    ]
    return ", ".join(shown) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _prompt_source(dataset: CfgNode) -> str:
    """``DATASET.PROMPT_SOURCE``, with ``auto`` resolved."""
    source = dataset.PROMPT_SOURCE
    if source == "json" and not dataset.PROMPT_PATH:
        raise ValueError(
            "DATASET.PROMPT_SOURCE is 'json', but DATASET.PROMPT_PATH is empty; it must name a "
            "file of class descriptions"
        )
    if source != "auto":
        return source
    if dataset.PROMPT_PATH:
        return "json"
    path = f"prompts/{dataset.NAME}.json"
    unused = (REPOSITORY / path).is_file()
    hint = f"{path} is there, but DATASET.PROMPT_PATH does not name it" if unused else ""
    print(f"No class descriptions: {hint or 'DATASET.PROMPT_PATH names no file'}")
    return "ensemble"
