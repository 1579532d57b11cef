"""Where the prompts of a method come from, and what the log says of them."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from yacs.config import CfgNode

from clip.prompts import described_prompts, ensemble_prompts, template_prompts
from clip.text import TextBank
from dassl.engine import TrainerX
from datasets.base import CLIPDataset
from trainers.config import REPOSITORY, resolve
from trainers.heads import choose
from trainers.templates import chosen_template, hand_made

PROMPT_SOURCES = ("auto", "json", "template", "ensemble")


class PromptTexts(TrainerX):
    """The part of a trainer that makes prompts of the config and the class names."""

    defaults: ClassVar[dict[str, Any]] = {}
    _template_read = False  # whether prompts were made of the template that the user chose

    def template(self, own: str) -> str:
        """The template that the user chose for the dataset, else the method's.

        Args:
            own: The method's, with ``{}`` for the name; "" for none.
        """
        self._template_read = True
        return chosen_template(self.cfg.DATASET) or own

    def ensemble(self, classnames: list[str], size: int, own: str = "") -> list[list[str]]:
        """open_clip's 7 or 80 templates and :meth:`template`, if there is one, per class.

        Args:
            classnames: K names.
            size: 7 or 80.
            own: See :meth:`template`.
        """
        template = self.template(own)
        if template:
            print(f"Prompts: open_clip's {size} templates and {template!r}")
        return ensemble_prompts(classnames, size, [template] if template else [])

    def prompts(self, context: str = "", learned: bool = False) -> list[list[str]]:
        """Each class's prompts.

        Args:
            context: Words before the name, "a photo of a", whatever the dataset; a template that
                the user chose takes the place of a method's default. If empty, the dataset's own
                prompts, of the kind that ``DATASET.PROMPT_SOURCE`` names: ``json``, its template
                before each description of ``DATASET.PROMPT_PATH``; ``template`` alone;
                ``ensemble``, open_clip's 7 or 80 templates (``DATASET.PROMPT_ENSEMBLE``) and its
                own; ``auto``, descriptions if a file is named, else the ensemble.
            learned: Whether learned prompts stand where the words do, so that they have to stay.

        Raises:
            FileNotFoundError: The file of descriptions is missing.
            ValueError: A value is not allowed, or classes have no description.
        """
        names = self.dm.dataset.classnames
        if context:
            words = context.replace("_", " ") + " {}."
            default = context == self.defaults.get("CTX_INIT") and not learned
            return template_prompts(names, self.template(words) if default else words)
        dataset = self.cfg.DATASET
        template = self.template(dataset.PROMPT_TEMPLATE or hand_made(dataset.NAME))
        source = _prompt_source(dataset)
        if source == "json":
            print(f"Prompts: {template!r} before each description of {dataset.PROMPT_PATH}")
            return described_prompts(names, template, resolve(dataset.PROMPT_PATH))
        if source == "template":
            print(f"Prompts: {template!r}")
            return template_prompts(names, template)
        return self.ensemble(names, dataset.PROMPT_ENSEMBLE, template)

    def text_bank(self) -> TextBank | None:
        """The texts that stand for the classes; None if the method has none."""
        model = getattr(self, "model", None)
        modules = model.modules() if isinstance(model, nn.Module) else ()
        return next((module for module in modules if isinstance(module, TextBank)), None)

    def show_prompts(self) -> None:
        """Log what the first class's first prompt is; note a chosen template without effect."""
        bank = self.text_bank()
        if bank is not None:
            print(
                f'First prompt: "{bank.texts[0]}" ({bank.num_classes} classes, {len(bank)} texts)'
            )
        chosen = chosen_template(self.cfg.DATASET)
        if chosen not in ("", CLIPDataset.default_template) and not self._template_read:
            first = f", the first is {bank.texts[0]!r}" if bank is not None else ""
            self.add_note(
                f"DATASET.PROMPT_TEMPLATE {chosen!r} has no effect: {type(self).__name__} has "
                f"other prompts{first}; see the options of TRAINER."
                f"{self.config_section or type(self).__name__}"
            )


def _prompt_source(dataset: CfgNode) -> str:
    """``DATASET.PROMPT_SOURCE``, where ``auto`` has become what it stands for.

    Raises:
        ValueError: It is none of the four, or ``json`` without a file.
    """
    source = choose("DATASET.PROMPT_SOURCE", dataset.PROMPT_SOURCE, PROMPT_SOURCES)
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
