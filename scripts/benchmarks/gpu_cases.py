"""What ``bench.py gpu`` measures: steps against the release's form, and an epoch from pictures."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks import cases, released
from scripts.benchmarks.cases import Case
from scripts.benchmarks.gpu_timing import time_step, watch
from scripts.benchmarks.release_forms import contexts, deep, lightra, rada, tpt
from scripts.benchmarks.tools import begin_training, peak_mib, reset_peak, write_pictures

TOLERANCE = 1e-3  # GPUs add in another order than CPUs; differences of formulas are larger
EPOCH = "LightRA epoch from pictures"
EPOCH_CLASSES, EPOCH_SHOTS, EPOCH_SIDE = 100, 2, 432  # as many pixels as 500 x 375
EPOCH_WORKERS, EPOCH_BATCH = 8, 4


def _cases() -> list[Case]:
    """All cases; those that a number to reach belongs to come first, for want of time."""
    prompts: list[tuple[str, int, Any]] = [
        ("MaPLe", 4, deep.MaPLe),
        ("PromptSRC", 4, deep.PromptSRC),
        ("CoOp", 4, contexts.CoOp),
    ]
    given, views = "features", "views"
    return [
        Case("LightRA", 100, 4, "LightRA", lightra.LightRA, precision="amp"),
        Case("RAda-head", 50, 1, "RAda", rada.RAdaHead, given, graphs=True),
        Case("RAdaTTT", 200, 16, "RAdaTTT", rada.RAdaTTT, views, "bf16"),
        Case("LightRA", 1000, 4, "LightRA", lightra.LightRA, precision="amp"),
        *(Case("LightRA", k, 4, "LightRA", lightra.LightRA, precision="amp") for k in (24, 500)),
        *(
            Case("RAda-head", k, b, "RAda", rada.RAdaHead, given)
            for k, b in ((50, 1), (50, 32), (1000, 1), (1000, 32))
        ),
        *(
            Case("RAda", k, b, "RAda", rada.RAda, precision="amp")
            for k in (50, 1000)
            for b in (1, 32)
        ),
        *(Case(name, 100, b, name, form, precision="amp") for name, b, form in prompts),
        Case("RAdaFT", 100, 32, "RAdaFT:fft", rada.RAdaFT, precision="amp"),
        Case("TPT", 200, 1, "TPT", tpt.TPT, views, "amp"),
        Case("LightRA", 100, 4, "LightRA", lightra.LightRA),
        *(Case(name, 100, b, name, form) for name, b, form in prompts),
        Case("RAda", 50, 32, "RAda", rada.RAda),
        Case("RAdaFT", 100, 32, "RAdaFT:fft", rada.RAdaFT),
    ]


CASES = {case.name: case for case in _cases()}
# The epoch has a number to reach too.
NAMES = [*list(CASES)[:4], EPOCH, *list(CASES)[4:]]


class Bench:
    """Measures in this process, one name after the other.

    Args:
        root: Directory for pictures and texts.
        backbone: A name for ``clip.load``.
        device: auto, cpu, cuda...
        most: Most classes and pictures of a batch, to try the command out; None for the cases' own.
    """

    def __init__(self, root: Path, backbone: str, device: str, most: int | None = None) -> None:
        self.root, self.backbone, self.device, self.most = root, backbone, device, most
        self.head_towers = root / "head.pt"
        self._checked: set[tuple[str, str]] = set()
        self.inputs = cache(self._inputs)

    def measure(self, name: str) -> dict[str, Any]:
        """Return the row of a name in ``NAMES``; what failed of it is its ``error``."""
        try:
            return self._epoch() if name == EPOCH else self._case(CASES[name])
        finally:
            _free()

    def _case(self, case: Case) -> dict[str, Any]:
        if self.most is not None:
            least = {"views": 1}.get(case.input, self.most)
            classes, batch = min(case.classes, self.most), min(case.batch, least)
            case = case._replace(classes=classes, batch=batch)
        row: dict[str, Any] = {
            "method": case.label,
            "classes": case.classes,
            "batch": case.batch,
            "input": case.input,
            "precision": case.precision,
        }
        backbone = self._head() if case.input == "features" else self.backbone
        # Times are taken all the same: only the report has to say it.
        self._attempt(row, "check", partial(self._check, case, backbone))
        for way in ("ours", "release"):
            found = self._attempt(row, way, partial(self._timed, case, way, backbone))
            row |= {f"{way}_{key}": value for key, value in found.items()}
            _free()
        if "ours_seconds" in row:
            row["images_a_second"] = case.batch * row["ours_a_second"]
        if {"ours_seconds", "release_seconds"} <= row.keys():
            row["times"] = row["release_seconds"] / row["ours_seconds"]
        return row

    def _attempt(
        self, row: dict[str, Any], what: str, run: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what was measured, or note in the row why there is nothing."""
        try:
            return run()
        except Exception as error:  # one way must not hide the other's numbers
            said = str(error).splitlines() or [""]
            # That the release needs more memory than a card has is a finding, and no failure.
            expected = what == "release" and isinstance(error, torch.OutOfMemoryError)
            key = "note" if expected else "error"
            row.setdefault(key, f"{what}: {type(error).__name__}: {said[0]}")
            return {}

    def _timed(self, case: Case, way: str, backbone: str) -> dict[str, Any]:
        inputs = self.inputs(case.classes)
        step, device = released.prepared(case, way, inputs, backbone, self.device)
        return time_step(step, device)

    def _check(self, case: Case, backbone: str) -> dict[str, Any]:
        """Compare ours with the release, once for each label, as ``bench.py released`` does.

        Raises:
            ValueError: They do not compute the same, so that their times cannot be compared.
        """
        classes = min(case.classes, released.CHECKED_CLASSES)
        if (case.label, case.input) in self._checked:
            return {}
        self._checked.add((case.label, case.input))
        small = case._replace(batch=min(case.batch, 2) if case.input == "views" else case.batch)
        released.check(small, self.inputs(classes), backbone, self.device, TOLERANCE)
        _free()
        return {}

    def _epoch(self) -> dict[str, Any]:
        """An epoch of the engine's loop: loading, copying, steps; the second one counts."""
        classes = min(EPOCH_CLASSES, self.most or EPOCH_CLASSES)
        case = Case("LightRA", classes, EPOCH_BATCH, "LightRA", lightra.LightRA, precision="amp")
        root = self.root / "epoch"
        shutil.rmtree(root, ignore_errors=True)
        # Texts as for the cases, and pictures of a photograph's size in place of theirs.
        shutil.copytree(self.inputs(classes), root, ignore=shutil.ignore_patterns("pictures"))
        write_pictures(root, classes, EPOCH_SHOTS, 1, EPOCH_SIDE, cases.class_names(classes))
        more = ["DATALOADER.NUM_WORKERS", EPOCH_WORKERS, "DATASET.NUM_SHOTS", EPOCH_SHOTS]
        trainer = cases.build(case, root, self.backbone, self.device, more=more)
        begin_training(trainer)
        trainer.run_epoch()  # starts the workers
        reset_peak(trainer.device)
        trainer.epoch = 1
        seconds, busy = watch(trainer.run_epoch, trainer.device)
        images = len(trainer.train_loader_x) * EPOCH_BATCH
        return {
            "method": EPOCH,
            "classes": classes,
            "batch": EPOCH_BATCH,
            "input": f"JPEG, {EPOCH_WORKERS} workers",
            "precision": trainer.precision,
            "images_a_second": images / seconds,
            "ours_mib": peak_mib(trainer.device),
            "ours_busy": busy,
        }

    def _head(self) -> str:
        if not self.head_towers.exists():
            cases.write_head_towers(self.head_towers)
        return str(self.head_towers)

    def _inputs(self, classes: int) -> Path:
        """Return the directory of K classes, with pictures for the largest batch."""
        folder = self.root / f"{classes}_classes"
        if not folder.exists():  # another process may have made it, and have ended
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            cases.write_inputs(part, classes, max(case.batch for case in CASES.values()))
            part.rename(folder)
        return folder


def _free() -> None:
    """Give back what a case has taken, before the next one's peak is measured."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
