"""How long the phases of a computation take, also on a GPU that works behind Python's back."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Adds up the seconds of phases that follow each other again and again.

    On a GPU the times are marked in its own queue and read when somebody asks for the seconds: to
    wait for it at the end of every phase would keep it idle meanwhile.
    """

    def __init__(self, device: torch.device, *phases: str) -> None:
        self.device = device
        self._seconds = dict.fromkeys(phases, 0.0)
        self._laps: list[tuple[str, Any, Any]] = []  # phase, its start, its end
        self._last: Any = None

    def start(self) -> None:
        """Begin the first phase."""
        self._last = self._mark()

    def lap(self, phase: str) -> None:
        """End a phase, and begin the next."""
        mark = self._mark()
        self._laps.append((phase, self._last, mark))
        self._last = mark

    def seconds(self) -> dict[str, float]:
        """Return the seconds by phase so far; waits for a GPU."""
        if self._laps and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for phase, start, end in self._laps:
            gpu = self.device.type == "cuda"
            self._seconds[phase] += start.elapsed_time(end) / 1000 if gpu else end - start
        self._laps = []
        return dict(self._seconds)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
