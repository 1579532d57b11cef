"""Load vision-language models from any source, behind one interface.

Models, weights and tokenizers are open_clip's; ALIGN's are transformers'. A backbone is named as in
:mod:`clip.names`, or by the path of a checkpoint in OpenAI's format (state dict or TorchScript
archive).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import Transformer
from torch import Tensor, nn

from clip.align import align_input, load_align
from clip.checkpoints import BUNDLED, build_model, image_side, load_bundled, read_state_dict
from clip.layouts import Ends
from clip.names import (
    OPENAI,
    InputSpec,
    arch_and_tag,
    available_models,
    has_vision_transformer,
    openai_arch,
    source_of,
    unknown,
    unreachable,
)
from clip.text import TextBank, encode_tokens, end_of_text, pools_at_end_of_text, text_tower
from clip.tokens import cuts
from clip.tokens import tokenize as tokenize_with
from clip.transformer import open_blocks
from dassl.utils.torchtools import not_finite

__all__ = [
    "OPENAI_INPUT",
    "PRECISIONS",
    "Backbone",
    "InputSpec",
    "available_models",
    "has_vision_transformer",
    "input_spec",
    "lay_out_for_gpu",
    "load",
    "tokenize",
    "weight_files",
]

PRECISIONS = ("fp32", "fp16", "bf16")
OPENAI_CACHE = Path("~/.cache/clip")  # where OpenAI's own package and CoOp's users have the files
OPENAI_INPUT = InputSpec(224, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


class Backbone(nn.Module):
    """A vision-language model with one interface for all methods.

    Notation: B images, N texts or classes, T token positions, D embedding width.

    Logits are ``exp(logit_scale) * cos(image, text) + logit_bias``. SigLIP reads each of them as a
    yes or no by itself, ``sigmoid(logit)``, which is what its bias is for (a random text is most
    probably wrong). Choosing one of N classes is another question: every method here classifies
    with a softmax over the classes, and trains with its cross entropy, on the scaled cosines
    alone. The bias, the same constant for all classes, could not change that softmax, its order or
    its gradient, so it is left out for SigLIP too.

    Attributes:
        name: What :func:`load` was given.
        model: The open_clip module, or :class:`clip.align.Align`, which looks like one.
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
        visual = model.visual
        class_token = getattr(visual, "pool_type", "") == "tok" and visual.attn_pool is None
        whole = getattr(visual, "output_tokens", False)  # all tokens are asked for
        open_blocks(self.vision_transformer, pools=class_token and not whole)
        open_blocks(self.text_transformer, pools=pools_at_end_of_text(model))

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the scale the cosine similarities are multiplied by, a scalar."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """What SigLIP adds to its logits, a scalar; None for models trained with a softmax.

        Pairwise probabilities need it; classification does not, see the class.
        """
        return getattr(self.model, "logit_bias", None)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the towers' matrices, hence of the images they take."""
        # Every vision tower begins with a convolution; other first parameters may stay fp32.
        kernels = (p for p in self.model.visual.parameters() if p.ndim == 4)
        return next(kernels, next(self.parameters())).dtype

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

    def encode_text(self, tokens: Tensor, ends: Ends | None = None) -> Tensor:
        """Text features, not normalised: (N, T) -> (N, D).

        Sequences are cut behind the longest one's end, and what all begin with is encoded once,
        wherever that cannot change the result. ``ends`` spare the look-up of both.
        """
        prompts: Any = getattr(self, "text_prompts", None)
        if ends is not None and prompts is not None and prompts.enabled:
            ends = ends._replace(shared=prompts.shareable(ends.shared))
        return encode_tokens(self.model, tokens, ends)

    def end_of_text(self) -> Callable[[Tensor], Tensor] | None:
        """The function that finds end-of-text positions, or None if sequences must stay whole."""
        if not pools_at_end_of_text(self.model):
            return None
        return lambda tokens: end_of_text(self.model, tokens)

    def tokenize(self, texts: str | list[str], truncate: bool = True) -> Tensor:
        """Token numbers of texts, (N, T); T is 77 with CLIP's models, 64 with SigLIP's and ALIGN's.

        Longer texts are cut before their end token, and one line counts them; without ``truncate``
        they are a ValueError that names the text.
        """
        return tokenize_with(self._tokenizer, texts, self.context_length, truncate)

    def text_bank(self, prompts: Sequence[Sequence[str]]) -> TextBank:
        """All prompts of all classes, as this model tokenizes and cuts them."""
        return TextBank(prompts, self.tokenize, self.end_of_text())

    def cuts(self, texts: list[str], tokens: Tensor) -> str:
        """What :meth:`tokenize` printed about texts that it cut to tokens (N, T); empty if none."""
        return cuts(self._tokenizer, texts, tokens)


def load(name: str, *, precision: str = "fp32", device: str | torch.device = "cpu") -> Backbone:
    """Load a pre-trained vision-language model, frozen and in evaluation mode.

    Args:
        name: See the module's docstring.
        precision: Type of the weights: fp32, fp16 or bf16. CLIP's layer norms and ALIGN's batch
            norms stay fp32.
        device: Where to put it.

    Raises:
        ValueError: The name or precision is unknown (nearest names are suggested), the checkpoint
            has another format or is incomplete, or weights are infinite or NaN.
        ConnectionError: The weights, or the tokenizer of a SigLIP or ALIGN, are not on this machine
            and cannot be downloaded.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if name == "shapes":
        backbone = _of_openai_layout(load_bundled(precision), name)
    elif source_of(name) == "align":
        align, spec, tokenizer = load_align(name, precision)
        backbone = Backbone(align, name, spec, tokenizer)
    elif source_of(name):
        backbone = _create(*arch_and_tag(name), name, precision)
    elif name in OPENAI:
        cached = _openai_file(name)
        if cached.is_file():
            backbone = _load_file(cached, name, precision)
        else:
            backbone = _create(openai_arch(name), "openai", name, precision)
    elif Path(name).is_file():
        backbone = _load_file(Path(name), name, precision)
    else:
        raise unknown(name)
    key = not_finite(backbone.model.state_dict())
    if key is not None:
        raise ValueError(
            f"Backbone {name!r} cannot be used: {key!r} has infinite or NaN values in {precision}"
        )
    return backbone.requires_grad_(False).eval().to(device)


def lay_out_for_gpu(backbone: Backbone) -> None:
    """Put a ResNet's kernels in the order that convolutions of GPUs prefer, channels last.

    Its activations follow. Values, state-dict keys and results stay the same, up to rounding.
    """
    if isinstance(backbone.model.visual, ModifiedResNet):
        backbone.model.visual.to(memory_format=torch.channels_last)


def weight_files(name: str) -> list[Path]:
    """The local files that a backbone's weights come from, sorted.

    Empty for models that open_clip or transformers download: there the name tells the content.
    """
    if name == "shapes":
        return [BUNDLED]
    if name in OPENAI:
        cached = _openai_file(name)
        return [cached] if cached.is_file() else []
    path = Path(name.removeprefix("align:")).expanduser()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path] if path.is_file() else []


def _openai_file(name: str) -> Path:
    return (OPENAI_CACHE / f"{OPENAI[name].replace('@', '-')}.pt").expanduser()


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """CLIP's tokenizer: texts -> token numbers, (N, context_length).

    Raises:
        ValueError: A text does not fit and ``truncate`` is false, as with OpenAI's function.
    """
    return tokenize_with(open_clip.tokenizer._tokenizer, texts, context_length, truncate)


def input_spec(name: str) -> InputSpec:
    """What images a backbone takes; loads no weights, and reads only their shapes from a file.

    Raises:
        ValueError: The name is unknown, or the file is not in OpenAI's format.
        ConnectionError: An ``align:`` model other than the published one cannot be looked up.
    """
    if name == "shapes" or (Path(name).is_file() and name not in OPENAI):
        side = image_side(BUNDLED if name == "shapes" else Path(name))
        return replace(OPENAI_INPUT, size=side)
    if source_of(name) == "align":
        return align_input(name)
    arch, tag = (openai_arch(name), "openai") if name in OPENAI else arch_and_tag(name)
    config = open_clip.get_model_config(arch)
    pretrained = open_clip.pretrained.get_pretrained_cfg(arch, tag)
    return InputSpec(
        _side(config["vision_cfg"].get("image_size", 224)), pretrained["mean"], pretrained["std"]
    )


def _create(arch: str, tag: str, name: str, precision: str) -> Backbone:
    tokenizer = _tokenizer_of(arch, name)  # first: a small file, missing long before the weights
    try:
        model = open_clip.create_model(
            arch, pretrained=tag, precision=precision, require_pretrained=True
        )
    except (RuntimeError, OSError) as error:
        remedy = "set MODEL.BACKBONE.NAME (--backbone) to the path of a local checkpoint"
        if name in OPENAI:
            remedy = f"copy OpenAI's file to {OPENAI_CACHE}, or {remedy}"
        raise unreachable("weights", name, error, remedy) from error
    preprocess = model.visual.preprocess_cfg
    spec = InputSpec(_side(preprocess["size"]), tuple(preprocess["mean"]), tuple(preprocess["std"]))
    return Backbone(model, name, spec, tokenizer)


def _tokenizer_of(arch: str, name: str) -> Callable[..., Tensor]:
    try:
        tokenizer = open_clip.get_tokenizer(arch)
    except (RuntimeError, OSError, ValueError) as error:  # SigLIP's come from the hub
        remedy = "choose a model with CLIP's own tokenizer, such as ViT-B/16"
        raise unreachable("tokenizer files", name, error, remedy) from error
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None and not hasattr(inner, "batch_encode_plus"):
        # Older releases of open_clip call it so; transformers 5 has only the plain call.
        inner.batch_encode_plus = inner.__call__
    return tokenizer


def _load_file(path: Path, name: str, precision: str) -> Backbone:
    return _of_openai_layout(build_model(read_state_dict(path), precision, path), name)


def _of_openai_layout(model: Any, name: str) -> Backbone:
    return Backbone(model, name, replace(OPENAI_INPUT, size=_side(model.visual.image_size)))


def _embed_dim(model: Any) -> int:
    tower = text_tower(model)
    if getattr(tower, "output_dim", None):
        return int(tower.output_dim)
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return projection.shape[1]


def _side(size: int | tuple[int, int] | list[int]) -> int:
    return size if isinstance(size, int) else int(size[0])
