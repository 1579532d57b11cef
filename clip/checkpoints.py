"""Files with weights in OpenAI's layout, and the compact file of the bundled tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip.model import (
    build_model_from_openai_state_dict,
    convert_weights_to_lp,
    get_cast_dtype,
)
from torch import Tensor

from dassl.utils.torchtools import load_checkpoint, weights_in

BUNDLED = Path(__file__).parent / "weights" / "shapes.pt"


def read_state_dict(path: Path, *, shapes_only: bool = False) -> dict[str, Tensor]:
    """The weights in a state dict or TorchScript archive of OpenAI's; never runs code of it.

    A ValueError says if it cannot be read, has other weights, or some that are infinite or NaN. For
    ``shapes_only`` see :func:`dassl.utils.load_checkpoint`.
    """
    content = load_checkpoint(path, shapes_only=shapes_only)
    state = {k.removeprefix("module."): v for k, v in weights_in(content, path).items()}
    if "text_projection" not in state:
        raise ValueError(
            f"{path} holds no CLIP weights in OpenAI's layout: 'text_projection' is missing"
        )
    return state


def image_side(path: Path) -> int:
    """Side in pixels of the images that a file's model takes, from the shapes of its weights."""
    state = read_state_dict(path, shapes_only=True)
    vit = "visual.proj" in state
    places = "visual.positional_embedding" if vit else "visual.attnpool.positional_embedding"
    try:
        cells = state[places].shape[0] - 1  # of the last grid, and one place for the class token
        # A ResNet halves the image five times before it pools by attention.
        cell = state["visual.conv1.weight"].shape[-1] if vit else 32
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} does not fit OpenAI's CLIP layout: {error}") from error
    return round(cells**0.5) * cell


def build_model(state: dict[str, Tensor], precision: str, path: Path) -> Any:
    """The open_clip model that weights in OpenAI's layout describe; ``path`` is for messages."""
    derived = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # not weights
    state = {k: v for k, v in state.items() if k.rpartition(".")[2] not in derived}
    try:
        model = build_model_from_openai_state_dict(
            dict(state), cast_dtype=get_cast_dtype(precision)
        )
    except Exception as error:  # sizes are read off the weights, in many ways
        raise ValueError(f"{path} does not fit OpenAI's CLIP layout: {error}") from error
    model.float()
    model.load_state_dict(state)  # once more: the builder rounds the weights to half precision
    dtype = get_cast_dtype(precision)
    if dtype is not None:
        convert_weights_to_lp(model, dtype)
    return model


def load_bundled(precision: str) -> Any:
    """The tiny open_clip model that the repository carries."""
    content = load_checkpoint(BUNDLED)
    state = {k: v.float() for k, v in content["state_dict"].items()}
    # Only the tokens of its captions were ever trained: the others are zero and not stored.
    table = torch.zeros(content["vocab_size"], content["token_rows"].shape[1])
    table[content["token_ids"].long()] = content["token_rows"].float()
    state["token_embedding.weight"] = table
    return build_model(state, precision, BUNDLED)


def save_bundled(model: Any, token_ids: Tensor, path: Path, about: dict[str, Any]) -> None:
    """Write a tiny model in the compact form of the bundled one (half precision, sparse tokens)."""
    state = {k: v.half() for k, v in model.state_dict().items() if k != "token_embedding.weight"}
    table = model.state_dict()["token_embedding.weight"]
    content = {
        "state_dict": state,
        "token_ids": token_ids.int(),
        "token_rows": table[token_ids].half(),
        "vocab_size": len(table),
        "about": about,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: a kill in between must not leave half a model there.
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)
