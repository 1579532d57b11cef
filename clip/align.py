"""ALIGN (Jia et al. 2021, arXiv:2102.05918) from transformers, in the form of an open_clip model.

An EfficientNet and a BERT, trained on noisy image descriptions. Three things differ from CLIP:

* The factor of the cosine similarities is stored as its inverse, a temperature.
* BERT reads in both directions and is read out at its first token. Padding is masked, so sequences
  may be cut where the longest text ends, exactly; nothing else may be cut.
* Images: ALIGN squashes them to 346 x 346 pixels (bilinear) and takes the central 289 x 289,
  values scaled to [-1, 1], that is mean and standard deviation 0.5. This project scales the shorter
  side to 289 and takes the centre, for all models alike: the aspect ratio is kept, and the image
  reaches further out, to its full shorter side instead of 84 % of each side. Numbers therefore
  differ a little from those of ALIGN's own pipeline.

Texts are cut at 64 tokens as in the paper (its tokenizer's ``model_max_length``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip.names import ALIGN_INPUTS, InputSpec, unreachable
from dassl.utils.torchtools import load_checkpoint

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Align(nn.Module):
    """transformers' ``AlignModel`` with open_clip's attributes and methods.

    It stays in evaluation mode whatever :meth:`train` is told: both towers have dropout and the
    EfficientNet batch statistics, all of which would change a frozen model.

    ``context_length`` is T, the longest sequence of tokens; ``pad_id`` the token that fills up
    shorter texts.
    """

    logit_bias = None  # trained with a softmax

    def __init__(self, align: Any, context_length: int, pad_id: int) -> None:
        super().__init__()
        self.align: Any = align
        self.context_length, self.pad_id = context_length, pad_id
        self.output_dim: int = align.config.projection_dim

    @property
    def visual(self) -> Any:
        """The EfficientNet."""
        return self.align.vision_model

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the similarities' factor, 1 / temperature; a scalar."""
        return -self.align.temperature.log()

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features, not normalised: (B, 3, S, S) -> (B, D)."""
        return self.align.vision_model(pixel_values=images)[1]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features, not normalised: (N, T) -> (N, D)."""
        used = tokens.ne(self.pad_id)
        length = int(used.sum(1).max())
        states = self.align.text_model(
            input_ids=tokens[:, :length], attention_mask=used[:, :length].long()
        )[0]
        # The first token's state, projected; BERT's own pooler takes no part in ALIGN.
        return self.align.text_projection(states[:, 0])

    def train(self, mode: bool = True) -> Align:
        """Nothing to switch; see the class."""
        return super().train(False)


class AlignTokenizer:
    """The checkpoint's own tokenizer, called as open_clip's tokenizers are."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @staticmethod
    def clean_fn(text: str) -> str:
        """Return the text as it is: BERT's tokenizer cleans it."""
        return text

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Token numbers, padded or cut: N texts -> (N, context_length)."""
        return self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=context_length,
            return_tensors="pt",
        )["input_ids"]  # fmt: skip


def load_align(name: str, precision: str) -> tuple[Align, InputSpec, AlignTokenizer]:
    """Load ``align:<hub id or directory>`` from the hub, its cache or the directory.

    Batch normalisation and the temperature stay fp32, whatever the precision.

    Raises:
        ValueError: The name has another form, or the checkpoint there is incomplete.
        ConnectionError: It is not on this machine and cannot be downloaded.
    """
    import transformers  # large, and only needed here

    place = _place(name)
    auto: Any = transformers  # its types differ between versions
    try:
        for file in sorted(Path(place).glob("pytorch_model*.bin")):
            load_checkpoint(file)  # transformers compares no checksum
        config = auto.AutoConfig.from_pretrained(place)
        if config.model_type != "align":
            raise ValueError(f"its config.json is of a model of type {config.model_type!r}")
        tokenizer = auto.AutoTokenizer.from_pretrained(place)
        _check_vocabulary(len(tokenizer), config.text_config.vocab_size)
        spec = spec_of(auto.EfficientNetImageProcessor.from_pretrained(place))
        align, info = auto.AlignModel.from_pretrained(place, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"its weights lack {sorted(info['missing_keys'])[:3]}")
    except ImportError:
        raise
    except Exception as error:  # transformers, safetensors and torch raise many kinds
        raise _explained(name, place, error) from error
    context = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
    model = Align(_cast(align, _DTYPES[precision]), context, tokenizer.pad_token_id)
    return model, spec, AlignTokenizer(tokenizer)


def align_input(name: str) -> InputSpec:
    """What images an ``align:`` backbone takes, without its weights; errors as `load_align`."""
    place = _place(name)
    if place in ALIGN_INPUTS:
        return ALIGN_INPUTS[place]
    import transformers

    try:
        return spec_of(transformers.EfficientNetImageProcessor.from_pretrained(place))
    except (OSError, ValueError, RuntimeError) as error:
        raise _explained(name, place, error) from error


def spec_of(processor: Any) -> InputSpec:
    """The constants of an ``EfficientNetImageProcessor`` in this project's form.

    The processor computes ``factor * pixel - offset`` of pixels in [0, 255], then perhaps
    ``(y - mean) / std``, then perhaps ``/ std`` once more (``include_top``).
    """
    # Only the cut-out reaches the encoder; its size before cutting is not the model's input.
    size = processor.crop_size if processor.do_center_crop else processor.size
    if size["height"] != size["width"]:
        raise ValueError(f"images must be square, its image processor makes {size}")
    # Our pixels u are in [0, 1]: factor * pixel = scale * u.
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    offset = 1.0 if processor.do_rescale and processor.rescale_offset else 0.0
    means = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    power = bool(processor.do_normalize) + bool(processor.include_top)
    mean = [round((offset + m) / scale, 6) for m in means]
    std = [round(s**power / scale, 6) for s in processor.image_std]
    return InputSpec(size["height"], (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _check_vocabulary(tokens: int, embeddings: int) -> None:
    # Where the files are missing, some versions of transformers return an empty tokenizer.
    if tokens != embeddings:
        raise ValueError(
            f"its tokenizer has {tokens} tokens, its model {embeddings}: tokenizer.json or "
            "vocab.txt is missing, or of another model"
        )


def _cast(align: Any, dtype: torch.dtype) -> Any:
    align.to(dtype)
    for module in align.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.float()  # running variances exceed what half precision can hold
    align.temperature.data = align.temperature.data.float()
    return align


def _place(name: str) -> str:
    place = name.partition(":")[2]
    if place and Path(place).expanduser().is_dir():
        return str(Path(place).expanduser())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise ValueError(
            f"Backbone {name!r}: {place!r} is neither a directory here nor a hub id. "
            "Write align:kakaobrain/align-base or align:<directory>"
        )
    return place


def _explained(name: str, place: str, error: Exception) -> ValueError | ConnectionError:
    from huggingface_hub.utils import RepositoryNotFoundError

    said = " ".join(str(error).split())
    # transformers reports a missing file and a missing connection by the same OSError.
    if Path(place).is_dir() or not isinstance(error, OSError):
        return ValueError(
            f"Backbone {name!r}: {place} is no complete ALIGN checkpoint as transformers saves it "
            f"(model, tokenizer, image processor): {said}"
        )
    if isinstance(error.__cause__, RepositoryNotFoundError):
        return ValueError(
            f"Backbone {name!r}: {place!r} is no directory here, and the hub has no such model, "
            f"or it is not public ({said}). The published one is align:kakaobrain/align-base"
        )
    return unreachable("files", name, error, "write align:<directory> with a copy of them")
