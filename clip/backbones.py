"""Loading of vision-language models: one function, one interface, whatever the source.

Models, weights and tokenizers are open_clip's. Names: OpenAI's (``ViT-B/16``), any open_clip
checkpoint (``openclip:ViT-B-16@laion2b_s34b_b88k``), ``siglip:<arch>@<tag>``, the bundled model
(``shapes``), or the path of a checkpoint in OpenAI's format (state dict or TorchScript archive).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import Transformer
from torch import Tensor, nn

from clip.attention import open_attention
from clip.checkpoints import build_model, load_bundled, read_state_dict
from clip.text import encode_tokens, end_of_text, pools_at_end_of_text, text_tower

PRECISIONS = ("fp32", "fp16", "bf16")
OPENAI_CACHE = Path("~/.cache/clip")  # where OpenAI's own package and CoOp's users have the files

_OPENAI = {
    name: name.replace("/", "-")
    for name in (
        "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64",
        "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
    )
}  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """The pictures a backbone was trained on."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


OPENAI_INPUT = InputSpec(224, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


class Backbone(nn.Module):
    """A vision-language model with one interface for all methods.

    Notation: B images, N texts, T token positions, D embedding width.

    Attributes:
        name: What :func:`load` was given.
        model: The open_clip module.
        embed_dim: D.
        image_size, image_mean, image_std: Input of the vision tower.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        spec: InputSpec,
        tokenizer: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.name = name
        self.image_size, self.image_mean, self.image_std = spec.size, spec.mean, spec.std
        self._tokenizer = tokenizer or open_clip.tokenizer._tokenizer
        self.context_length: int = model.context_length
        self.embed_dim = _embed_dim(model)
        for transformer in (self.vision_transformer, self.text_transformer):
            open_attention(transformer)

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the scale the cosine similarities are multiplied by, a scalar."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """What SigLIP adds to its logits; None for models trained with a softmax."""
        return getattr(self.model, "logit_bias", None)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the towers' matrices, hence of the images they take."""
        tower = text_tower(self.model).transformer
        return (
            tower.get_cast_dtype()
            if hasattr(tower, "get_cast_dtype")
            else next(self.parameters()).dtype
        )

    @property
    def vision_transformer(self) -> Any:
        """The vision tower's stack of ``resblocks``, or None (ResNets, timm models)."""
        transformer = getattr(self.model.visual, "transformer", None)
        return transformer if isinstance(transformer, Transformer) else None

    @property
    def text_transformer(self) -> Any:
        """The text tower's stack of ``resblocks``, or None."""
        transformer = getattr(text_tower(self.model), "transformer", None)
        return transformer if isinstance(transformer, Transformer) else None

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features, not normalised: (B, 3, S, S) -> (B, D)."""
        return self.model.encode_image(images.to(self.dtype))

    def encode_text(self, tokens: Tensor, length: int | None = None) -> Tensor:
        """Text features, not normalised: (N, T) -> (N, D).

        Sequences are cut behind the longest one's end wherever that cannot change the result.
        ``length`` spares the look-up of that place.
        """
        return encode_tokens(self.model, tokens, length)

    def end_of_text(self) -> Callable[[Tensor], Tensor] | None:
        """The function that finds end-of-text positions, or None if sequences must stay whole."""
        if not pools_at_end_of_text(self.model):
            return None
        return lambda tokens: end_of_text(self.model, tokens)

    def tokenize(self, texts: str | list[str], truncate: bool = True) -> Tensor:
        """Token numbers of texts, (N, T).

        Raises:
            ValueError: ``truncate`` is false and a text does not fit; it names the text.
        """
        return _tokenize(self._tokenizer, texts, self.context_length, truncate)


def load(name: str, *, precision: str = "fp32", device: str | torch.device = "cpu") -> Backbone:
    """Load a pre-trained vision-language model, frozen and in evaluation mode.

    Args:
        name: See the module's docstring.
        precision: Type of the weights: fp32, fp16 or bf16 (normalisation layers stay fp32).
        device: Where to put it.

    Raises:
        ValueError: Unknown name or precision (nearest names are suggested), or a file that is no
            checkpoint in OpenAI's format.
        ConnectionError: The weights are not on this machine and cannot be downloaded.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if name == "shapes":
        backbone = _of_openai_layout(load_bundled(precision), name)
    elif ":" in name and name.split(":", 1)[0] in ("openclip", "siglip"):
        backbone = _load_open_clip(name, precision)
    elif name in _OPENAI:
        cached = (OPENAI_CACHE / f"{_OPENAI[name].replace('@', '-')}.pt").expanduser()
        if cached.is_file():
            backbone = _load_file(cached, name, precision)
        else:
            arch = _openai_arch(name)
            backbone = _create(arch, "openai", name, precision)
    elif Path(name).is_file():
        backbone = _load_file(Path(name), name, precision)
    else:
        raise _unknown(name)
    return backbone.requires_grad_(False).eval().to(device)


def available_models() -> list[str]:
    """Names with weights of their own; ``openclip:<arch>@<tag>`` names come on top."""
    return [*_OPENAI, "shapes"]


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """CLIP's tokenizer: texts -> token numbers, (N, context_length).

    Raises:
        ValueError: A text does not fit and ``truncate`` is false, as with OpenAI's function.
    """
    return _tokenize(open_clip.tokenizer._tokenizer, texts, context_length, truncate)


def input_spec(name: str) -> InputSpec:
    """What pictures a backbone takes, without loading its weights where the name tells.

    Raises:
        ValueError: Unknown name.
    """
    if name == "shapes" or (Path(name).is_file() and name not in _OPENAI):
        backbone = load(name)
        return InputSpec(backbone.image_size, backbone.image_mean, backbone.image_std)
    arch, tag = (_openai_arch(name), "openai") if name in _OPENAI else _arch_and_tag(name)
    config = open_clip.get_model_config(arch)
    pretrained = open_clip.pretrained.get_pretrained_cfg(arch, tag)
    return InputSpec(
        _side(config["vision_cfg"].get("image_size", 224)), pretrained["mean"], pretrained["std"]
    )


def has_vision_transformer(name: str) -> bool | None:
    """Whether the vision tower is a transformer of CLIP's form; None if only loading can tell."""
    if name == "shapes":
        return True
    if name in _OPENAI:
        return not name.startswith("RN")
    if Path(name).is_file():
        return None
    vision = open_clip.get_model_config(_arch_and_tag(name)[0])["vision_cfg"]
    return not isinstance(vision.get("layers"), list) and not vision.get("timm_model_name")


def _openai_arch(name: str) -> str:
    if name == "ViT-L/14@336px":
        return "ViT-L-14-336-quickgelu"
    return f"{_OPENAI[name]}-quickgelu"


def _arch_and_tag(name: str) -> tuple[str, str]:
    source, _, rest = name.partition(":")
    arch, _, tag = rest.partition("@")
    if source not in ("openclip", "siglip"):
        raise _unknown(name)
    if arch not in open_clip.list_models():
        near = difflib.get_close_matches(arch, open_clip.list_models(), 3)
        raise ValueError(
            f"Unknown open_clip architecture {arch!r} in backbone {name!r}. Nearest: {near}"
        )
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if tag.lower().replace("-", "_") not in tags:
        raise ValueError(f"Unknown weights {tag!r} in backbone {name!r}. {arch} has: {tags}")
    return arch, tag


def _unknown(name: str) -> ValueError:
    near = difflib.get_close_matches(name, [*available_models(), "openclip:", "siglip:"], 3, 0.4)
    return ValueError(
        f"Unknown backbone {name!r}, and no such file. Nearest names: {near}. Known: "
        f"{', '.join(available_models())}; openclip:<arch>@<tag>; siglip:<arch>@<tag>; "
        "or the path of a checkpoint in OpenAI's format."
    )


def _create(arch: str, tag: str, name: str, precision: str) -> Backbone:
    try:
        model = open_clip.create_model(
            arch, pretrained=tag, precision=precision, require_pretrained=True
        )
    except (RuntimeError, OSError) as error:
        raise ConnectionError(
            f"The weights of backbone {name!r} are not on this machine and could not be downloaded "
            f"({error}). Connect once, or copy OpenAI's file to {OPENAI_CACHE}, or set "
            "MODEL.BACKBONE.NAME (--backbone) to the path of a local checkpoint. "
            "The bundled model 'shapes' needs no download."
        ) from error
    preprocess = model.visual.preprocess_cfg
    spec = InputSpec(_side(preprocess["size"]), tuple(preprocess["mean"]), tuple(preprocess["std"]))
    return Backbone(model, name, spec, open_clip.get_tokenizer(arch))


def _load_open_clip(name: str, precision: str) -> Backbone:
    arch, tag = _arch_and_tag(name)
    return _create(arch, tag, name, precision)


def _load_file(path: Path, name: str, precision: str) -> Backbone:
    return _of_openai_layout(build_model(read_state_dict(path), precision, path), name)


def _of_openai_layout(model: Any, name: str) -> Backbone:
    side = _side(model.visual.image_size)
    return Backbone(model, name, InputSpec(side, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))


def _embed_dim(model: Any) -> int:
    projection = text_tower(model).text_projection
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return projection.shape[1]


def _side(size: int | tuple[int, int] | list[int]) -> int:
    return size if isinstance(size, int) else int(size[0])


def _tokenize(
    tokenizer: Callable[..., Tensor], texts: str | list[str], context_length: int, truncate: bool
) -> Tensor:
    texts = [texts] if isinstance(texts, str) else texts
    if not truncate:
        for text in texts:
            used = len(tokenizer.encode(text)) + 2 if hasattr(tokenizer, "encode") else 0
            if used > context_length:
                raise ValueError(
                    f"Text needs {used} tokens, the model takes {context_length}: {text!r}"
                )
    return tokenizer(texts, context_length=context_length)
