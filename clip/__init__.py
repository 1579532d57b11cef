"""Vision-language models over open_clip, and the adapters that are attached to them."""

from clip.adapters import (
    Adapter,
    adapter_parameters,
    adapters_disabled,
    freeze_except,
    load_adapters,
)
from clip.adapters.clip_adapter import FeatureAdapter
from clip.adapters.coop import ClassContextBank, ConditionalPrompts, ContextPrompts, attach_context
from clip.adapters.hpt import HierarchicalPrompts, StructuredBank, attach_hierarchical_prompts
from clip.adapters.lightra import ResidualAttention, attach_residual_attention
from clip.adapters.maple import CoupledPrompts, attach_coupled_prompts
from clip.adapters.mma import MultiModalAdapter, attach_multimodal_adapters
from clip.adapters.prompts import (
    AppendedPrompts,
    LearnedPrompts,
    TextPrompts,
    VisionPrompts,
    attach_text_prompts,
    attach_vision_prompts,
    install_vision_prompts,
)
from clip.adapters.provp import ProgressivePrompts, attach_progressive_prompts
from clip.backbones import Backbone, InputSpec, available_models, input_spec, load, tokenize
from clip.features import FeatureBackbone, FeatureBank
from clip.text import TextBank
from clip.transformer import AdaptedAttention

__all__ = [
    "AdaptedAttention",
    "Adapter",
    "AppendedPrompts",
    "Backbone",
    "ClassContextBank",
    "ConditionalPrompts",
    "ContextPrompts",
    "CoupledPrompts",
    "FeatureAdapter",
    "FeatureBackbone",
    "FeatureBank",
    "HierarchicalPrompts",
    "InputSpec",
    "LearnedPrompts",
    "MultiModalAdapter",
    "ProgressivePrompts",
    "ResidualAttention",
    "StructuredBank",
    "TextBank",
    "TextPrompts",
    "VisionPrompts",
    "adapter_parameters",
    "adapters_disabled",
    "attach_context",
    "attach_coupled_prompts",
    "attach_hierarchical_prompts",
    "attach_multimodal_adapters",
    "attach_progressive_prompts",
    "attach_residual_attention",
    "attach_text_prompts",
    "attach_vision_prompts",
    "available_models",
    "freeze_except",
    "input_spec",
    "install_vision_prompts",
    "load",
    "load_adapters",
    "tokenize",
]
