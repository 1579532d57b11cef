"""What a tracker is: a place besides the run's folder where people look at runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PROJECT", "TrackedRun", "Tracker"]

PROJECT = "vlmadapt"  # where runs are collected, unless the tracker's own variable says otherwise


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told of a run when it starts.

    Attributes:
        group: Name that its repetitions with other seeds share, such as "LightRA dtd 16 shots".
        seed: The run's seed.
        config: Plain values by full key, without the sections of other methods.
        folder: The run's folder.
    """

    group: str
    seed: int
    config: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """What people read in a list of runs."""
        return f"{self.group} seed {self.seed}"


class Tracker(ABC):
    """One run in one tracker. Any method may raise: `Tracking` lets the run go on without it.

    Attributes:
        place: Where to look at the run, once it has started; for the log.
    """

    place: str = ""

    @abstractmethod
    def start(self, run: TrackedRun, earlier: str) -> str:
        """Begin a run, or continue the one with the id ``earlier`` unless that is empty.

        Returns:
            The id by which a later process can continue it.
        """

    @abstractmethod
    def scalar(self, tag: str, value: float, step: int | None) -> None:
        """Write a number, such as ``train/loss`` of a step."""

    @abstractmethod
    def result(self, content: Mapping[str, Any]) -> None:
        """Write what ``result.json`` holds: the metrics, and the table of classes if it has one."""

    @abstractmethod
    def files(self, paths: Sequence[Path]) -> None:
        """Keep copies of files of the run's folder."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """End the run; ``failed`` tells that an error or Ctrl-C has ended it."""
