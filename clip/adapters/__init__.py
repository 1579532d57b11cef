"""What methods put into the encoders; each file bears its method's name."""

from clip.adapters.base import (
    Adapter,
    adapter_parameters,
    adapter_switches,
    adapters_disabled,
    checked_depth,
    freeze_except,
    load_adapters,
    refuse_second,
)

__all__ = [
    "Adapter",
    "adapter_parameters",
    "adapter_switches",
    "adapters_disabled",
    "checked_depth",
    "freeze_except",
    "load_adapters",
    "refuse_second",
]
