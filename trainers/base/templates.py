"""CoOp's hand-made templates, by dataset; what zero-shot CLIP and several teachers read."""

from __future__ import annotations

from yacs.config import CfgNode

from datasets.table import ROWS

_SHIPPED = {row.name: row.template for row in ROWS}

DEFAULT = "a photo of a {}."

HAND_MADE = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
    "ShapesCounts": "a photo of {}.",
}


def hand_made(dataset: str) -> str:
    """The template of a dataset (its registered name); "a photo of a {}." if CoOp has no other."""
    return HAND_MADE.get(dataset, DEFAULT)


def chosen_template(dataset: CfgNode) -> str:
    """``DATASET.PROMPT_TEMPLATE`` where the user has chosen it; else "".

    A dataset of this repository has a template in its YAML, for descriptions and the ensemble.
    Published numbers of methods with a template of their own were made with that one, so that the
    YAML's is no choice; any other text is. A dataset of the user's own has no other template.

    Args:
        dataset: The config's section.
    """
    template = dataset.PROMPT_TEMPLATE
    return "" if template == _SHIPPED.get(dataset.NAME) else template


# KgCoOp's reference prompts (arXiv:2303.13283) differ in one dataset.
KGCOOP = {**HAND_MADE, "DescribableTextures": "a photo of a {}, a type of texture."}

# ProGrad's and ProVP's (arXiv:2205.14865) have what the classes are in front.
HINT_FIRST = {
    **HAND_MADE,
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "DescribableTextures": "a texture of {}.",
    "Food101": "a type of food, a photo of {}.",
}
