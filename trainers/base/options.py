"""Options that several methods have.

``OPTIONS`` are keys outside of ``TRAINER``. The functions make keys of ``TRAINER.<name>`` and take
the method's default.
"""

from __future__ import annotations

from dassl.config.schema import PATH, TEXT, Option, count, number, one_of
from dassl.data.features.cache import DEFAULT_DIR

OPTIONS = {
    # At the top level, as in RAda's released code.
    "ALPHA": Option(1.5, number(0), "RAda: weight of the mask's regulariser"),
    "TEMP": Option(1.0, number(above=0), "RAda: temperature of the mask's attention"),
    "FEATURE_CACHE.ENABLED": Option(False, None, "compute a frozen encoder's features once"),
    "FEATURE_CACHE.REQUIRED": Option(
        True, None, "False: methods that change image features run without the cache"
    ),
    "FEATURE_CACHE.DIR": Option(DEFAULT_DIR, PATH, "folder that they are kept in"),
    "FEATURE_CACHE.VIEWS": Option(4, count(1, 10_000), "augmentations of each training image"),
    "FIRST_STAGE.CONFIG": Option("", TEXT, "such as RAdaFFT/fft; how scripts/run.py makes DIR"),
    "FIRST_STAGE.DIR": Option("", PATH, "directory of the run that a two-stage method starts from"),
    "FIRST_STAGE.EPOCH": Option(0, count(0), "its epoch, 0 for the last"),
}

# CLIP's texts have 77 tokens, of which one starts and one ends them.
TEXT_ROOM = 75
# Far beyond what any paper learns; a million vectors per layer would not end in an error but hang.
MANY = 1024
# More layers than any published tower has. More than a tower has means all of them.
LAYERS = 128


def precision(default: str = "fp32") -> Option:
    """PREC."""
    return Option(default, one_of("fp32", "fp16", "bf16", "amp"), "arithmetic")


def text_prompts(default: int, least: int = 1) -> Option:
    """N_CTX and the like: vectors that take the place of words."""
    return Option(default, count(least, TEXT_ROOM), "learned vectors in front of the class name")


def vision_prompts(default: int, least: int = 1) -> Option:
    """N_CTX_VISION and the like: tokens that join the patches."""
    return Option(default, count(least, MANY), "learned tokens beside the patches")


def depth(default: int, of: str) -> Option:
    """PROMPT_DEPTH and the like."""
    return Option(default, count(0, LAYERS), f"{of}; more than there are means all")


def context_words(
    default: str, meaning: str = "words that the learned vectors start from"
) -> Option:
    """CTX_INIT."""
    return Option(default, TEXT, meaning)


def templates(default: int) -> Option:
    """TEMPLATES."""
    return Option(default, one_of(7, 80), "templates of open_clip's that class weights start from")


def weight(default: float, of: str) -> Option:
    """The weight of a part of the loss."""
    return Option(default, number(0), f"weight of {of}")


def share(default: float, of: str) -> Option:
    """A share above 0."""
    return Option(default, number(above=0, most=1), f"share of {of}")
