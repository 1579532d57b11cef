"""What the name of a backbone tells before it is loaded: its source, architecture and input.

Names: OpenAI's (``ViT-B/16``), any open_clip checkpoint (``openclip:ViT-B-16@laion2b_s34b_b88k``),
``siglip:<arch>@<tag>``, ``align:<hub id or directory>``, or the bundled model (``shapes``).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import open_clip

SOURCES = ("openclip", "siglip", "align")
ALIGN_BASE = "kakaobrain/align-base"

OPENAI = {
    name: name.replace("/", "-")
    for name in (
        "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64",
        "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
    )
}  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """The images a backbone was trained on.

    ``size`` is the side of the square the encoder sees, in pixels; ``mean`` and ``std`` normalise
    RGB values in [0, 1]. How images become squares is one rule here, CLIP's: the shorter side is
    scaled to ``size`` and the centre is cut out. SigLIP was trained and tested on images squashed
    to ``size`` x ``size``, ALIGN on more deeply cut ones (:mod:`clip.align`): images far from a
    square look different to these two than in their own papers.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# What transformers' conversion script gave the published files; other checkpoints are looked up.
ALIGN_INPUTS = {ALIGN_BASE: InputSpec(289, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}


def available_models() -> list[str]:
    """Names that need no tag; those of the form ``openclip:<arch>@<tag>`` are not listed."""
    return [*OPENAI, "shapes"]


def source_of(name: str) -> str:
    """The known prefix of a name (``openclip``, ``siglip``, ``align``), or an empty string."""
    source, colon, _ = name.partition(":")
    return source if colon and source in SOURCES else ""


def openai_arch(name: str) -> str:
    """The open_clip architecture of one of OpenAI's models; they were trained with QuickGELU."""
    if name == "ViT-L/14@336px":
        return "ViT-L-14-336-quickgelu"
    return f"{OPENAI[name]}-quickgelu"


def arch_and_tag(name: str) -> tuple[str, str]:
    """Architecture and weights of an ``openclip:`` or ``siglip:`` name.

    Raises:
        ValueError: open_clip does not know them, or a ``siglip:`` architecture is none of SigLIP's.
    """
    source, _, rest = name.partition(":")
    arch, _, tag = rest.partition("@")
    if source not in ("openclip", "siglip"):
        raise unknown(name)
    if arch not in open_clip.list_models():
        near = difflib.get_close_matches(arch, open_clip.list_models(), 3)
        raise ValueError(
            f"Unknown open_clip architecture {arch!r} in backbone {name!r}. Nearest: {near}"
        )
    if source == "siglip" and "init_logit_bias" not in open_clip.get_model_config(arch):
        raise ValueError(f"{arch} in backbone {name!r} is no SigLIP. Write openclip:{rest}")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag.lower().replace("-", "_") not in tags:
        raise ValueError(f"Unknown weights {tag!r} in backbone {name!r}. {arch} has: {tags}")
    return arch, tag


def has_vision_transformer(name: str) -> bool | None:
    """Whether the vision tower is a transformer of CLIP's form; None if only loading can tell."""
    if name == "shapes":
        return True
    if name in OPENAI:
        return not name.startswith("RN")
    if source_of(name) == "align":
        return False  # an EfficientNet
    if Path(name).is_file():
        return None
    vision = open_clip.get_model_config(arch_and_tag(name)[0])["vision_cfg"]
    return not isinstance(vision.get("layers"), list) and not vision.get("timm_model_name")


def unknown(name: str) -> ValueError:
    """The error for a name that is neither a model's nor a file's, with the nearest names."""
    prefix, colon, rest = name.partition(":")
    near = difflib.get_close_matches(prefix.lower(), SOURCES, 3) if colon else []
    # A misspelt prefix is corrected with its rest; else the name as a whole is compared, loosely.
    near = [f"{source}:{rest}" for source in near] or difflib.get_close_matches(
        name, [*available_models(), f"align:{ALIGN_BASE}", *(f"{s}:" for s in SOURCES)], 3, 0.4
    )
    return ValueError(
        f"Unknown backbone {name!r}, and no such file. Nearest names: {near}. Known: "
        f"{', '.join(available_models())}; openclip:<arch>@<tag>; siglip:<arch>@<tag>; "
        "align:<hub id or directory>; or the path of a checkpoint in OpenAI's format."
    )


def unreachable(what: str, name: str, error: Exception, remedy: str) -> ConnectionError:
    """The error for a known model's files (``what``, such as "weights") that are out of reach.

    ``remedy`` is what helps besides connecting, without a full stop.
    """
    said = " ".join(str(error).split())
    return ConnectionError(
        f"The {what} of backbone {name!r} are not on this machine and could not be downloaded "
        f"({said}). Connect once, or {remedy}. The bundled model 'shapes' needs no download."
    )
