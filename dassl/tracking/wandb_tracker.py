"""Weights & Biases. Account, project and mode are its own environment variables, WANDB_*."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.tracking.base import PROJECT, TrackedRun, Tracker

__all__ = ["WandbTracker"]

_START_SECONDS = 30.0  # that a run waits for the server before it goes on without it
_END_SECONDS = 300.0  # and for the last uploads; what is left then stays on the disk


class WandbTracker(Tracker):
    """A run of Weights & Biases; without network if WANDB_MODE is offline."""

    def start(self, run: TrackedRun, earlier: str) -> str:
        """Begin or continue a run, see `Tracker.start`."""
        import wandb

        waits = {"init_timeout": _START_SECONDS, "finish_timeout": _END_SECONDS}
        settings = wandb.Settings(
            # Standard output is copied into log.txt already, and must not be replaced.
            console="off",
            silent=True,
            # Another run of this process, such as one that was not closed, is another run.
            reinit="create_new",
            # Older versions wait for the last uploads as long as it takes.
            **{name: value for name, value in waits.items() if hasattr(wandb.Settings(), name)},
        )
        self._folder = run.folder
        self._axes: dict[str, str] = {}  # by tag, the scalar that counts its steps
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            group=os.environ.get("WANDB_RUN_GROUP") or run.group,
            config=dict(run.config),
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            id=earlier or None,
            resume="allow" if earlier else None,
            settings=settings,
        )
        folder = self._run.settings.sync_dir
        offline = f'"{folder}"; to upload it: wandb sync "{folder}"'
        self.place = offline if self._run.offline else str(self._run.url)
        return self._run.id

    def scalar(self, tag: str, value: float, step: int | None) -> None:
        """Write a number over the steps of its kind.

        Not over W&B's own steps: these may only grow, while tests count epochs and training counts
        batches.
        """
        if step is None:
            self._run.log({tag: value})
            return
        if tag not in self._axes:
            self._axes[tag] = f"{tag.rpartition('/')[0] or 'run'}/step"
            self._run.define_metric(self._axes[tag])
            self._run.define_metric(tag, step_metric=self._axes[tag])
        self._run.log({tag: value, self._axes[tag]: step})

    def result(self, content: Mapping[str, Any]) -> None:
        """Write the metrics to the run's summary, and the classes as a table."""
        import wandb

        for name, value in content["metrics"].items():
            self._run.summary[f"result/{name}"] = value
        rows = content["per_class"]
        if rows:
            data = [list(row.values()) for row in rows]
            self._run.log({"result/per_class": wandb.Table(columns=list(rows[0]), data=data)})

    def files(self, paths: Sequence[Path]) -> None:
        """Upload files."""
        for path in paths:
            self._run.save(str(path), base_path=str(self._folder), policy="now")

    def close(self, failed: bool) -> None:
        """End the run with its exit status."""
        self._run.finish(exit_code=int(failed))
