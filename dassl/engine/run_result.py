"""The result at the end of a run, and what its checkpoints say about it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.config import config_hash, to_plain
from dassl.config.identity import IDENTITY_NAME, shown
from dassl.engine.distributed import own_test
from dassl.engine.overrides import wrap_overrides
from dassl.engine.previous_runs import leftovers, set_aside
from dassl.engine.result import peak_memory_mb, split_hash
from dassl.engine.resume import remove_resume
from dassl.engine.run_identity import recipe_changes, recipe_of
from dassl.engine.run_state import RunState
from dassl.evaluation.record import Evaluation, numbers
from dassl.results import RESULT_NAME, read_result, write_result
from dassl.utils import git_revision, package_versions
from dassl.utils.distributed import gather_objects, is_main, world_size

__all__ = ["RunResult"]


class RunResult(RunState):
    """Writes ``result.json``.

    Attributes:
        durations: Seconds by phase.
    """

    val_loader: Any
    _testing = False
    _gathered = False  # the last test has put together what all processes have seen

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have the run's result written whatever a trainer overrides."""
        super().__init_subclass__(**kwargs)
        wrap_overrides(cls)

    def __init__(self) -> None:
        """Start without results."""
        super().__init__()
        self.durations: dict[str, float] = {"train": 0.0, "test": 0.0}
        self._trained = False
        self._tests: dict[str, Evaluation] = {}  # the last of every split, in their order
        self._written: Evaluation | None = None
        git_revision()  # read now: the checkout may have changed by the end of the run

    def extra_result(self) -> dict[str, Any]:
        """Return further entries of ``result.json`` (plain data); none here."""
        return {}

    def checkpoint_meta(self) -> dict[str, Any]:
        """Return what a checkpoint says about its run."""
        return {
            "method": self.cfg.TRAINER.NAME,
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "config_hash": config_hash(self.cfg),
            "dataset": self.cfg.DATASET.NAME,
            "recipe": recipe_of(self.compared_config),
            "classnames": list(self.dm.lab2cname.values()),
            "num_classes": int(self.dm.num_classes),
            "config": to_plain(self.cfg),
        }

    def check_origin(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Refuse weights of another recipe than the config's, or of another backbone's content.

        On another data set than that of the training, a method file's PER_DATASET section may set
        the method's options otherwise: a note names these, and how it trains does not count.
        Neither does the number of epochs anywhere.

        Args:
            path: Of the checkpoint.
            meta: What it says about its run; empty if nothing.

        Raises:
            ValueError: They differ, and `any_config` is not set.
        """
        own = self.checkpoint_meta()
        harmless = ["OPTIM.MAX_EPOCH"]  # which epoch is loaded is in the log
        if meta.get("dataset") != own["dataset"]:
            harmless += ["TRAINER.", "OPTIM."]
        changes = recipe_changes(meta, own)
        grave = [line for line in changes if not line.startswith(tuple(harmless))]
        if grave and not self.any_config:
            raise ValueError(
                f'"{path}" was trained otherwise than the config says: {shown(grave)}. Give the '
                "options of its run, or another --model-dir; --any-config loads it all the same"
            )
        noted = changes if grave else [n for n in changes if not n.startswith("OPTIM.")]
        if noted:
            self.add_note(f"weights that were trained with other options: {shown(noted)}")

    def load_model(
        self, directory: str | os.PathLike[str] | None, epoch: int | None = None
    ) -> None:
        """Load the weights of every registered model, see `RegisteredModels.load_model`.

        Args:
            directory: Run directory; empty or None does nothing.
            epoch: Number of epochs; None takes the best on the validation images.
        """
        super().load_model(directory, epoch)
        if directory and not self._training:
            self.loaded_from = (os.fspath(directory), epoch)

    def tested_split(self, split: str | None = None) -> str:
        """Return the split that a test is about.

        Args:
            split: As passed to ``test``; None for TEST.SPLIT. Where there are no validation
                images, trainers' own tests take the test images, as Dassl's does.
        """
        split = split or self.cfg.TEST.SPLIT
        return "test" if split == "val" and getattr(self, "val_loader", None) is None else split

    def finish_test(
        self, split: str, returned: Any, evaluations: Sequence[Evaluation], seconds: float
    ) -> None:
        """Find out what a test has measured, whatever its body does.

        Args:
            split: test or val, or a word of the trainer's own.
            returned: By ``test``.
            evaluations: What evaluators gave meanwhile: the one whose main result was returned
                counts, else the last.
            seconds: How long it took.

        Raises:
            WorldSizeError: Each of several processes has seen its part of the images only.
        """
        name = f"{type(self).__name__}.test()"
        if world_size() > 1 and not self._gathered:
            raise own_test(self.cfg)
        self._gathered = False
        found, _ = numbers(returned)
        if not evaluations:
            if not found:
                self._tests.pop(split, None)
                self.add_note(
                    f"{name} has neither used an evaluator nor returned a number: no result"
                )
                return
            self.add_note(f"{name} has not used an evaluator: the result is what it returned")
            self.record_test(split, found, seconds, [])
            return
        value = next(iter(found.values()), None)
        same = [e for e in evaluations if next(iter(e.results.values())) == value]
        chosen = (same or evaluations)[-1]
        if len(evaluations) > 1:
            which = "the one it returned" if same else "the last"
            self.add_note(f"{name} has evaluated {len(evaluations)} times: the result is {which}")
        if chosen.left_out:
            self.add_note(f"no numbers, so not in the result: {', '.join(chosen.left_out)}")
        self.record_test(split, chosen.results, seconds, chosen.per_class)

    def record_test(
        self,
        split: str,
        results: Mapping[str, float],
        seconds: float,
        per_class: list[dict[str, Any]] | None = None,
    ) -> None:
        """Keep a test's results; outside of training they are the run's, and are written.

        Args:
            split: test or val.
            results: Numbers by name, the main one first.
            seconds: How long it took.
            per_class: The same by class; by default what the evaluator says now.
        """
        if per_class is None:
            per_class = self.evaluator.per_class() if hasattr(self.evaluator, "per_class") else []
        self.durations["test"] = seconds
        self._tests.pop(split, None)
        self._tests[split] = Evaluation(dict(results), per_class, [])
        if not self._training and split == self.tested_split():
            self.write_result(eval_only=not self._trained)

    def finish_train(self) -> None:
        """Write the result of a trainer whose own ``after_train`` or ``train`` has not."""
        split = self.tested_split()
        others = [name for name in self._tests if name not in ("train", "val", "test")]
        if split not in self._tests and others:
            self.add_note(f"{split} was not tested: the result is of {others[-1]}")
            split = others[-1]
        if split in self._tests:
            if self._tests[split] is not self._written:
                self.write_result(eval_only=False, split=split)
        elif not self.cfg.TEST.NO_TEST:
            self.add_note(
                f"{type(self).__name__} has trained, but no test of its own has given a result on "
                f"the {split} images, so there is no result.json"
            )

    def _metrics(self, results: Mapping[str, float]) -> dict[str, float]:
        """Return the results with an accuracy among them, which whatever reads them looks at."""
        if "accuracy" in results:
            return dict(results)
        name, value = next(iter(results.items()))
        self.add_note(f"the evaluator gives no accuracy; what is called so is its {name}")
        return {"accuracy": value, **results}

    def write_result(self, eval_only: bool, split: str | None = None) -> None:
        """Write ``result.json`` from the last test of a split and remove the resume file.

        Args:
            eval_only: The run did not train.
            split: By default the one that TEST.SPLIT means.

        Raises:
            ValueError: There was no test.
        """
        split = split or self.tested_split()
        if split not in self._tests:
            raise ValueError("write_result needs a test before it")
        test = self._written = self._tests[split]
        per_class, metrics = test.per_class, self._metrics(test.results)
        chance = 100.0 / self.dm.num_classes
        accuracy = test.results.get("accuracy")
        if accuracy is not None and self.dm.num_classes > 1 and accuracy <= chance:
            self.add_note(f"accuracy {accuracy:.2f}% is not above chance ({chance:.2f}%)")
        own = self.dm.bad_images() if hasattr(self.dm, "bad_images") else {}
        bad = {path for images in gather_objects(own) for path in images}
        if bad:
            self.add_note(f"{len(bad)} unreadable images were skipped: {', '.join(sorted(bad))}")
        identity = {**self._identity(), **self.extra_result()}
        if not is_main():
            return
        if eval_only:
            self._keep_other_result()
        path = write_result(
            self.output_dir,
            {
                **identity,
                "identity": self.write_identity(),
                "split": split,
                "metrics": metrics,
                "per_class": per_class,
                "num_test": sum(row["total"] for row in per_class) or self._num_images(split),
                "num_classes": int(self.dm.num_classes),
                "chance": chance,
                "eval_only": eval_only,
                "model_dir": self.loaded_from[0],
                "load_epoch": self.loaded_from[1],
                **({"any_config": True} if self.any_config else {}),
                "durations": {**self.durations, "total": time.time() - self._created},
                "peak_memory_mb": peak_memory_mb(self.device),
                "notes": [*getattr(self.dm.dataset, "notes", []), *self.notes],
            },
        )
        print(f'Result written to "{path}"')
        if not eval_only:
            remove_resume(self.output_dir)

    def _num_images(self, split: str) -> int:
        """Return how many images a split has, for an evaluator that does not count."""
        return len((self.dm.dataset.val if split == "val" else self.dm.dataset.test) or ())

    def _keep_other_result(self) -> None:
        """Move the result of another run away, such as that of the training that is evaluated."""
        old = read_result(self.output_dir)
        if old is None or (old["config_hash"] == config_hash(self.cfg) and old.get("eval_only")):
            return
        names = (RESULT_NAME, IDENTITY_NAME)
        found = [path for path in leftovers(self.output_dir) if path.name in names]
        target = set_aside(self.output_dir, found)
        print(f'The result of another run was here; it was moved to "{target}"')

    def _identity(self) -> dict[str, Any]:
        """Return what the run is and what it was made with."""
        cfg, data = self.cfg, self.dm.dataset
        params = {id(p): p for m in self._models.values() for p in m.parameters()}
        return {
            "trainer": cfg.TRAINER.NAME,
            "dataset": cfg.DATASET.NAME,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "seed": self.seed,
            "shots": cfg.DATASET.NUM_SHOTS,
            "subsample_classes": cfg.DATASET.SUBSAMPLE_CLASSES,
            "config": to_plain(cfg),
            "config_hash": config_hash(cfg),
            "split_hash": split_hash(cfg.DATASET.ROOT, data.train_x, data.test),
            "versions": package_versions(),
            "git": git_revision(),
            "device": str(self.device),
            **({"processes": world_size()} if world_size() > 1 else {}),
            "precision": self.stated_precision(),
            "trainable_parameters": sum(p.numel() for p in params.values() if p.requires_grad),
        }
