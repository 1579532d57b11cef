"""A run's notes and its result: what its tests found, and when ``result.json`` is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dassl.config import config_hash, to_plain
from dassl.config.identity import IDENTITY_NAME, digest_of
from dassl.engine.previous_runs import leftovers, set_aside
from dassl.engine.result import peak_memory_mb, split_hash
from dassl.engine.resume import remove_resume
from dassl.engine.run_identity import RunIdentity
from dassl.evaluation.predictions import Predictions
from dassl.evaluation.record import Evaluation, numbers
from dassl.prediction_file import PREDICTIONS_NAME, PredictedImage, write_predictions
from dassl.results import RESULT_NAME, read_result, write_result
from dassl.tracking.tracking import Tracking
from dassl.utils import git_revision, package_versions
from dassl.utils.distributed import gather_objects, is_main, world_size
from dassl.utils.files import write_json

__all__ = ["Notes", "RunRecord"]


class Notes(list[str]):
    """Remarks on a run. Each is printed once, and all of them end up in the result."""

    def add(self, note: str) -> None:
        """Print a remark and keep it, unless it is there already."""
        if note not in self:
            self.append(note)
            print(f"Note: {note}")


class RunRecord:
    """Keeps what the tests of a run found, and writes ``result.json`` at the right moment.

    Args:
        identity: What the run is made from.
        notes: Remarks, including later ones.
        models: The trainer's, by name, for the number of parameters.
        extra: Gives the trainer's own entries when the result is written.
        has_val: Whether there are validation images.
        started: When the run began, in seconds since the epoch.

    Attributes:
        training: Whether ``train`` is running; a test meanwhile is not the run's result.
        trained: Whether ``train`` has ended.
        testing: Whether ``test`` is running.
        predictions: Of the images, made by the engine's loop in the test that is running.
        at_test_end: Called after every test, also one that fails.
        tests: The last test of every split, in the order of the tests.
        durations: Seconds by phase.
        tracking: Is told the result, too.
    """

    def __init__(
        self,
        identity: RunIdentity,
        notes: Notes,
        models: Mapping[str, nn.Module],
        extra: Callable[[], Mapping[str, Any]],
        has_val: bool,
        started: float,
    ) -> None:
        self.identity = identity
        self.cfg, self.dm = identity.cfg, identity.dm
        self.notes = notes
        self.models = models
        self.has_val = has_val
        self.started = started
        self.extra = extra
        self.training = self.trained = self.testing = False
        self.predictions: Predictions | None = None
        self.at_test_end: list[Callable[[], None]] = []
        self.tests: dict[str, Evaluation] = {}
        self.durations: dict[str, float] = {"train": 0.0, "test": 0.0}
        self.tracking = Tracking()
        self._written: Evaluation | None = None
        git_revision()  # cached now: the checkout may have changed by the end of the run

    # ------------------------------------------------------------------ tests

    def split_tested(self, split: str | None = None) -> str:
        """Return the split that ``test`` uses if called with this one; None stands for TEST.SPLIT.

        Without validation images, trainers' own tests use the test images, as Dassl's does.
        """
        split = split or self.cfg.TEST.SPLIT
        return "test" if split == "val" and not self.has_val else split

    def keep_predictions(self, loader: Any) -> Predictions:
        """Return what a test's loop over a loader adds its batches to."""
        # A loader of a trainer's own may not say which images it gives.
        items = getattr(getattr(loader, "dataset", None), "data_source", None)
        self.predictions = Predictions(items if self.cfg.TEST.SAVE_PREDICTIONS else None)
        return self.predictions

    def finish_test(
        self,
        name: str,
        split: str,
        returned: Any,
        evaluations: Sequence[Evaluation],
        seconds: float,
    ) -> None:
        """Find out what a test has measured, whatever its body does.

        Args:
            name: The method, for messages.
            split: test or val, or a word of the trainer's own.
            returned: What the test returned.
            evaluations: What evaluators found meanwhile: the one whose main result was returned
                counts, otherwise the last.
            seconds: How long the test took.
        """
        found, _ = numbers(returned)
        if not evaluations and not found:
            self.tests.pop(split, None)  # an earlier test's result would be taken for this one's
            self.notes.add(f"{name} has neither used an evaluator nor returned a number: no result")
            return
        if not evaluations:
            self.notes.add(f"{name} has not used an evaluator: the result is what it returned")
            self.add_test(split, found, [], seconds)
            return
        value = next(iter(found.values()), None)
        # A test may evaluate several times, such as with and without an ensemble: the evaluation
        # whose main number it returns is its result.
        same = [e for e in evaluations if next(iter(e.results.values())) == value]
        chosen = (same or evaluations)[-1]
        if len(evaluations) > 1:
            which = "the one it returned" if same else "the last"
            self.notes.add(f"{name} has evaluated {len(evaluations)} times: the result is {which}")
        if chosen.left_out:
            self.notes.add(f"no numbers, so not in the result: {', '.join(chosen.left_out)}")
        # Of several evaluations it is not known which one the engine's loop has made.
        predictions = self.predictions if len(evaluations) == 1 else None
        self.add_test(split, chosen.results, chosen.per_class, seconds, predictions)

    def add_test(
        self,
        split: str,
        results: Mapping[str, float],
        per_class: list[dict[str, Any]],
        seconds: float,
        predictions: Predictions | None = None,
    ) -> None:
        """Keep a test's results; outside of training they are the run's, and are written.

        ``results`` has the main number first; ``per_class`` is empty if the evaluator does not
        tell, and ``predictions`` None if it is not known what it has seen of each image.
        """
        self.durations["test"] = seconds
        self.tests.pop(split, None)  # so that the last test comes last
        self.tests[split] = Evaluation(dict(results), per_class, [], predictions)
        if not self.training and split == self.split_tested():
            self.write(split)

    def score(self, name: str, returned: Any) -> float:
        """Return the number that a test on validation images has given.

        Args:
            name: The method, for messages.
            returned: What the test returned; a trainer's own test may return something without a
                number.

        Raises:
            ValueError: It has given none.
        """
        found, _ = numbers(returned)
        if not found and "val" in self.tests:
            found = self.tests["val"].results
        if not found:
            raise ValueError(
                f"TEST.FINAL_MODEL is best_val, but {name} has neither used "
                "an evaluator nor returned a number; set last_step"
            )
        return next(iter(found.values()))

    def finish_train(self, name: str) -> None:
        """Write the result of a training, unless it was written at its end."""
        self.trained = True
        split = self.split_tested()
        others = [other for other in self.tests if other not in ("train", "val", "test")]
        if split not in self.tests and others:
            self.notes.add(f"{split} was not tested: the result is of {others[-1]}")
            split = others[-1]
        if split in self.tests:
            if self.tests[split] is not self._written:
                self.write(split)
        elif not self.cfg.TEST.NO_TEST:
            self.notes.add(
                f"{name} has trained, but no test of its own has given a result on "
                f"the {split} images, so there is no result.json"
            )

    # ------------------------------------------------------------------ result.json

    def write(self, split: str) -> None:
        """Write ``result.json`` from the last test of a split and remove the resume file."""
        test = self._written = self.tests[split]
        metrics, chance = self._metrics(test.results), 100.0 / self.dm.num_classes
        accuracy = test.results.get("accuracy")
        if accuracy is not None and self.dm.num_classes > 1 and accuracy <= chance:
            self.notes.add(f"accuracy {accuracy:.2f}% is not above chance ({chance:.2f}%)")
        own = self.dm.bad_images() if hasattr(self.dm, "bad_images") else {}
        # Before rank 0 goes on alone: every process has to take part in gathering.
        bad = {path for images in gather_objects(own) for path in images}
        if bad:
            self.notes.add(f"{len(bad)} unreadable images were skipped: {', '.join(sorted(bad))}")
        predicted = None
        if test.predictions is not None:
            predicted = test.predictions.images(self.cfg.DATASET.ROOT, self.dm.lab2cname)
        content = {**self._run(), **self.extra()}
        if not is_main():
            return
        eval_only = not self.trained
        if eval_only:  # training has made room at its start; an evaluation may follow a training
            self._keep_other_result()
        dataset, (directory, epoch) = self.dm.dataset, self.identity.loaded_from
        images = (dataset.val if split == "val" else dataset.test) or ()
        content |= {
            "identity": self.write_identity(),
            "split": split,
            "metrics": metrics,
            "per_class": test.per_class,
            "num_test": sum(row["total"] for row in test.per_class) or len(images),
            "num_classes": int(self.dm.num_classes),
            "chance": chance,
            "eval_only": eval_only,
            "model_dir": directory,
            "load_epoch": epoch,
            "durations": {**self.durations, "total": time.time() - self.started},
            "peak_memory_mb": peak_memory_mb(self.identity.device),
            "notes": [*getattr(dataset, "notes", []), *self.notes],
        }
        self._write_predictions(predicted)  # first: a complete result is a run that is done
        print(f'Result written to "{write_result(self.cfg.OUTPUT_DIR, content)}"')
        self.tracking.result(content)
        if not eval_only:  # only now: without a result, a killed run must be able to resume
            remove_resume(self.cfg.OUTPUT_DIR)

    def _write_predictions(self, images: Sequence[PredictedImage] | None) -> None:
        """Write what was predicted beside the result, or remove what an earlier test has left."""
        if images is None:
            (Path(self.cfg.OUTPUT_DIR) / PREDICTIONS_NAME).unlink(missing_ok=True)
        else:
            write_predictions(self.cfg.OUTPUT_DIR, images)

    def write_identity(self) -> str:
        """Write the identity beside the result, and return its digest."""
        content = self.identity.content()
        write_json(content, Path(self.cfg.OUTPUT_DIR) / IDENTITY_NAME)
        return digest_of(content)

    def _metrics(self, results: Mapping[str, float]) -> dict[str, float]:
        """Return the results with an accuracy among them, since all readers look for it."""
        if "accuracy" in results:
            return dict(results)
        name, value = next(iter(results.items()))
        self.notes.add(f"the evaluator gives no accuracy; what is called so is its {name}")
        return {"accuracy": value, **results}

    def _run(self) -> dict[str, Any]:
        """Return the entries that say what the run is and what it was made with."""
        cfg, dataset = self.cfg, self.dm.dataset
        # Each parameter once, by identity: a trainer may register a model and also a part of it.
        params = {id(p): p for m in self.models.values() for p in m.parameters()}
        return {
            "trainer": cfg.TRAINER.NAME,
            "dataset": cfg.DATASET.NAME,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "seed": self.identity.seed,
            "shots": cfg.DATASET.NUM_SHOTS,
            "subsample_classes": cfg.DATASET.SUBSAMPLE_CLASSES,
            "config": to_plain(cfg),
            "config_hash": config_hash(cfg),
            "split_hash": split_hash(cfg.DATASET.ROOT, dataset.train_x, dataset.test),
            "versions": package_versions(),
            "git": git_revision(),
            "device": str(self.identity.device),
            **({"processes": world_size()} if world_size() > 1 else {}),
            "precision": self.identity.precision,
            "trainable_parameters": sum(p.numel() for p in params.values() if p.requires_grad),
        }

    def _keep_other_result(self) -> None:
        """Move another run's result away, such as that of the training which is evaluated now."""
        directory = self.cfg.OUTPUT_DIR
        old = read_result(directory)
        if old is None or (old["config_hash"] == config_hash(self.cfg) and old.get("eval_only")):
            return
        names = (RESULT_NAME, PREDICTIONS_NAME, IDENTITY_NAME)
        target = set_aside(directory, [p for p in leftovers(directory) if p.name in names])
        print(f'The result of another run was here; it was moved to "{target}"')
