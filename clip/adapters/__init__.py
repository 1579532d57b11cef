"""What methods put into the encoders; each file bears its method's name."""

from clip.adapters.base import (
    Adapter,
    adapter_parameters,
    adapter_switches,
    adapters_disabled,
    freeze_except,
    load_adapters,
)

__all__ = [
    "Adapter",
    "adapter_parameters",
    "adapter_switches",
    "adapters_disabled",
    "freeze_except",
    "load_adapters",
]
