"""Vision-language models over open_clip, and the adapters that are attached to them."""

from clip.adapters import (
    Adapter,
    adapter_parameters,
    adapters_disabled,
    freeze_except,
    load_adapters,
)
from clip.attention import AdaptedAttention, ResidualAttention, attach_residual_attention
from clip.backbones import Backbone, InputSpec, available_models, input_spec, load, tokenize
from clip.text import TextBank

__all__ = [
    "AdaptedAttention",
    "Adapter",
    "Backbone",
    "InputSpec",
    "ResidualAttention",
    "TextBank",
    "adapter_parameters",
    "adapters_disabled",
    "attach_residual_attention",
    "available_models",
    "freeze_except",
    "input_spec",
    "load",
    "load_adapters",
    "tokenize",
]
