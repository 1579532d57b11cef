"""CoOp's hand-made templates, by dataset; what zero-shot CLIP and several teachers read."""

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
