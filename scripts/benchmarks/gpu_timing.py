"""Times a step on a GPU: how long it takes, how many there are in a row, how busy the GPU is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from scripts.benchmarks.tools import median_seconds, peak_mib, reset_peak

WARM_UP, STEPS, PROFILED = 5, 20, 10
ENOUGH = 4.0  # seconds that a case's timed steps may take; slow steps are timed fewer times
Step = Callable[[], object]


def time_step(step: Step, device: torch.device) -> dict[str, Any]:
    """Measure a step that is repeated.

    Returns:
        ``seconds``, the median of ``steps`` steps that are waited for one by one; ``a_second``, how
        many there are in a second when only the last is waited for, as in training; ``mib``, the
        most memory that was in use; ``busy``, see :func:`watch`.
    """
    reset_peak(device)
    median_seconds(step, 1, device)  # the first makes what is kept
    once = median_seconds(step, 1, device)
    fits = int(ENOUGH / once)
    for _ in range(min(WARM_UP - 2, fits)):
        step()
    count = min(STEPS, max(3, fits))
    seconds = median_seconds(step, count, device)
    in_a_row = median_seconds(lambda: _repeat(step, count), 1, device)
    peak = peak_mib(device)  # before the profiler, which takes some of its own
    _, busy = watch(lambda: _repeat(step, min(count, PROFILED)), device)
    return {
        "steps": count,
        "seconds": seconds,
        "a_second": count / in_a_row,
        "mib": peak,
        "busy": busy,
    }


def _repeat(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def watch(work: Step, device: torch.device) -> tuple[float, float | None]:
    """Return the seconds that a piece of work takes, and the share of them the GPU is busy in.

    That is the time of all kernels and copies, those at the same time counted once, by what passes
    until the last of them is done. None for other devices.
    """
    if device.type != "cuda":
        return median_seconds(work, 1, device), None
    torch.cuda.synchronize(device)
    # Only of the GPU: noting what the host does would slow it down, and leave the GPU less to do.
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        seconds = median_seconds(work, 1, device)
    ran = spans(found.events())
    # A machine may not let its users profile; then nothing was seen, which is not idleness.
    return seconds, merged(ran) / 1e6 / seconds if ran else None


def spans(events: Iterable[Any]) -> list[tuple[float, float]]:
    """Return start and end of what ran on the GPU, in microseconds, of the profiler's events."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        # An annotation, such as an optimiser's step, lies over its kernels and the gaps in between.
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]


def merged(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of what intervals cover together, wherever they overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total
