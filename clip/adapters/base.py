"""What every adapter of a frozen CLIP has in common: a switch, a place, freezing, loading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Adapter(nn.Module):
    """Base class of modules that are added to a pre-trained model and trained.

    With ``enabled`` false the host model must compute exactly what it computed without the adapter;
    every teacher pass relies on it (see :func:`adapters_disabled`).
    """

    enabled: bool = True


def adapters(model: nn.Module) -> list[tuple[str, Adapter]]:
    """All adapters below ``model`` with their qualified names, in module order."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, Adapter)]


def _each_adapter(model: nn.Module) -> list[Adapter]:
    """The same without names, ten times as fast: every step and every encoding asks for them."""
    found, waiting, seen = [], [model], set()
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if isinstance(module, Adapter):
            found.append(module)
        waiting += [child for child in module._modules.values() if child is not None]
    return found


def adapter_switches(model: nn.Module) -> tuple[bool, ...]:
    """Whether each adapter is enabled, in an order of their own; caches are keyed by it."""
    return tuple(adapter.enabled for adapter in _each_adapter(model))


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Let ``model`` compute as if it had no adapters.

    Re-entrant, restores every switch to what it was even after an exception, and leaves
    ``requires_grad`` alone.
    """
    # Every switch by itself: inside another ``with`` some are off already and must stay so.
    before = [(adapter, adapter.enabled) for adapter in _each_adapter(model)]
    try:
        for adapter, _ in before:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled


def checked_depth(backbone: Any, tower: str, depth: int, what: str, unit: str) -> int:
    """How many blocks of a tower, text or vision, get an adapter: ``depth``, or all it has.

    With depth 0 the tower may have any form. ``what`` names the adapter in messages, and ``unit``
    what ``depth`` counts.

    Raises:
        ValueError: The depth is negative, or the tower has no such blocks.
    """
    if depth < 0:
        raise ValueError(f"The {tower} depth must be 0 or more {unit}, got {depth}")
    if depth == 0:
        return 0
    transformer = getattr(backbone, f"{tower}_transformer")
    if transformer is None:
        raise ValueError(
            f"The {tower} tower of this backbone is no transformer of CLIP's form (ResNets, timm "
            f"and Hugging Face towers are not), so {what} cannot be attached. ViT-B/16, ViT-B/32, "
            "ViT-L/14 or another OpenAI-style ViT works."
        )
    return min(depth, len(transformer.resblocks))


def refuse_second(backbone: nn.Module, attribute: str, what: str) -> None:
    """Raise a ValueError if the backbone has such an adapter already, as its ``attribute``."""
    if hasattr(backbone, attribute):
        raise ValueError(f"This backbone has {what} already, as its {attribute!r}")


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Qualified name -> parameter, for every parameter that belongs to an adapter."""
    found: dict[str, nn.Parameter] = {}
    for prefix, adapter in adapters(model):
        for name, parameter in adapter.named_parameters():
            found[f"{prefix}.{name}" if prefix else name] = parameter
    return found


def freeze_except(model: nn.Module, heads: Iterable[nn.Module] = ()) -> None:
    """Let only adapters and the given heads train; freezing follows structure, never names."""
    model.requires_grad_(False)
    for parameter in adapter_parameters(model).values():
        parameter.requires_grad_(True)
    for head in heads:
        head.requires_grad_(True)


def load_adapters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy adapter weights, named as by :func:`adapter_parameters`, into ``model``.

    Raises:
        ValueError: A name is missing or unknown, or a shape differs.
    """
    own = adapter_parameters(model)
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"Adapter weights do not fit the model: missing {missing[:5]} ({len(missing)} in all), "
            f"unknown {unknown[:5]} ({len(unknown)} in all). "
            "Attach the same adapters (method, depth, backbone) the weights were trained with."
        )
    # All shapes are compared before the first weight is copied, so that an error changes nothing.
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"Adapter weight {name} has shape {tuple(state[name].shape)}, "
                f"the model expects {tuple(parameter.shape)}: another context length or backbone?"
            )
    for name, parameter in own.items():
        parameter.data.copy_(state[name])
