"""TensorBoard: scalars in the run's folder, opened when there is something to write."""

from __future__ import annotations

from typing import Any

__all__ = ["TensorBoard"]


class TensorBoard:
    """A TensorBoard writer that is opened when there is something to write.

    Importing TensorBoard takes longer than a short run, and a run without epochs needs none.
    Without a directory nothing is written. It is no `Tracker`: trainers written for Dassl choose
    the directory, replace the writer and close it themselves.
    """

    def __init__(self, log_dir: str | None = None) -> None:
        self._log_dir = log_dir
        self._opened: Any = None

    @property
    def writer(self) -> Any:
        """The writer; None if there is no directory or TensorBoard does not work."""
        if self._opened is None and self._log_dir is not None:
            # Cleared first: a failed import is reported once, not at every step.
            log_dir, self._log_dir = self._log_dir, None
            try:
                from torch.utils.tensorboard import SummaryWriter
            except Exception as error:  # a broken installation raises nearly anything
                reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
                print(f"TensorBoard is not installed{reason}: scalars are in the log only")
                return None
            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._opened = SummaryWriter(log_dir=log_dir)
        return self._opened

    @writer.setter
    def writer(self, writer: Any) -> None:
        self._opened = writer

    def scalar(self, tag: str, value: float, step: int | None) -> None:
        """Write a number, if there is a directory."""
        writer = self.writer
        if writer is not None:
            writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Close the writer, if there is one."""
        if self._opened is not None:
            self._opened.close()
        self._opened = self._log_dir = None
