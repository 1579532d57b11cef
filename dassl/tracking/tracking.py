"""All trackers of a run: what is written goes to each, and one that fails is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl.config import clean_cfg, to_plain
from dassl.config.identity import IDENTITY_NAME, flatten
from dassl.results import RESULT_NAME
from dassl.tracking.available import MLFLOW, TENSORBOARD, WANDB, check_installed
from dassl.tracking.base import TrackedRun, Tracker
from dassl.tracking.tensorboard import TensorBoard
from dassl.utils.distributed import is_main

__all__ = ["Tracking", "closing_trackers", "tracking_of"]

_CLASSES = {
    WANDB: "dassl.tracking.wandb_tracker:WandbTracker",
    MLFLOW: "dassl.tracking.mlflow_tracker:MLflowTracker",
}
_SHOWN = 300  # characters of a tracker's error
_FILES = (RESULT_NAME, IDENTITY_NAME, "log.txt")  # of a run's folder, copied at its end


class Tracking:
    """TensorBoard, and the trackers of TRACK by name.

    A tracker starts with the first thing that is written, so that a resumed run knows by then
    which tracked run it continues.

    Args:
        run: What trackers are told of the run; None if there are no trackers.
        trackers: By name; none on processes other than the first.
        tensorboard: Whether TensorBoard is wanted.

    Attributes:
        tensorboard: Its writer; without a folder until `open_tensorboard`.
        ids: By tracker, the id of the run there; a resumed run has those of the killed one.
    """

    def __init__(
        self,
        run: TrackedRun | None = None,
        trackers: Mapping[str, Tracker] | None = None,
        *,
        tensorboard: bool = True,
    ) -> None:
        self.tensorboard = TensorBoard()
        self._wants_tensorboard = tensorboard
        self.ids: dict[str, str] = {}
        self._run = run
        self._trackers = dict(trackers or {})
        self._started: set[str] = set()

    def open_tensorboard(self, log_dir: str) -> None:
        """Let TensorBoard write to a folder, if it is wanted."""
        if self._wants_tensorboard:
            self.tensorboard = TensorBoard(log_dir)

    def scalar(self, tag: str, value: Any, step: int | None = None) -> None:
        """Write a number."""
        self.tensorboard.scalar(tag, value, step)
        self._each(lambda tracker: tracker.scalar(tag, float(value), step))

    def result(self, content: Mapping[str, Any]) -> None:
        """Write the run's result, as in ``result.json``."""
        self._each(lambda tracker: tracker.result(content))

    def close(self, failed: bool) -> None:
        """End the run in all trackers that it has started in, with copies of its files."""
        folder = self._run.folder if self._run is not None else Path()
        paths = [folder / name for name in _FILES if (folder / name).is_file()]
        # None is begun only to be ended, as by a run that stops before its first number.
        self._trackers = {n: self._trackers[n] for n in self._trackers if n in self._started}
        self._each(lambda tracker: tracker.files(paths))
        self._each(lambda tracker: tracker.close(failed))
        self._trackers = {}

    def _each(self, write: Callable[[Tracker], None]) -> None:
        """Let each tracker do something, the first time after it has started."""
        for name, tracker in list(self._trackers.items()):
            try:
                if name not in self._started and self._run is not None:
                    self.ids[name] = tracker.start(self._run, self.ids.get(name, ""))
                    self._started.add(name)
                    print(f"Tracking with {name}: {tracker.place}")
                write(tracker)
            except Exception as error:  # their own types, those of HTTP libraries, of a full disk
                del self._trackers[name]
                reason = " ".join(str(error).split()) or type(error).__name__
                print(f"WARNING: {name} has failed, the run goes on without it: {reason[:_SHOWN]}")


def tracking_of(cfg: CfgNode, seed: int, section: str | None) -> Tracking:
    """Return the trackers that TRACK names; none is started yet, and only rank 0 has any.

    Args:
        cfg: Configuration.
        seed: The run's seed, which may have been drawn.
        section: The trainer's under TRAINER, by default its name.

    Raises:
        ValueError: One is not installed.
    """
    # A trainer's own code may set a bare name, which the config's rules allow.
    names = [cfg.TRACK] if isinstance(cfg.TRACK, str) else list(cfg.TRACK)
    check_installed(names)
    if not is_main():
        return Tracking()
    own = cfg.clone()
    own.defrost()
    clean_cfg(own, section or cfg.TRAINER.NAME)
    parts = [cfg.TRAINER.NAME, cfg.DATASET.NAME]
    if cfg.DATASET.NUM_SHOTS >= 1:
        parts.append(f"{cfg.DATASET.NUM_SHOTS} shots")
    if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
        parts.append(f"{cfg.DATASET.SUBSAMPLE_CLASSES} classes")
    config = {**flatten(to_plain(own)), "SEED": seed}
    run = TrackedRun(" ".join(parts), seed, config, Path(cfg.OUTPUT_DIR).absolute())
    trackers = {name: _tracker(name) for name in names if name in _CLASSES}
    return Tracking(run, trackers, tensorboard=TENSORBOARD in names)


def _tracker(name: str) -> Tracker:
    module, _, attribute = _CLASSES[name].partition(":")
    return getattr(import_module(module), attribute)()


@contextmanager
def closing_trackers(trainer: Any) -> Iterator[None]:
    """End a trainer's tracked runs when the block ends, as failed if an error leaves it."""
    tracking: Tracking | None = getattr(trainer, "tracking", None)  # another's trainer has none
    failed = True
    try:
        yield
        failed = False
    finally:
        if tracking is not None:
            tracking.close(failed)
