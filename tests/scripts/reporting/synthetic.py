"""Writes folders of runs as the engine does, many and fast: results, logs, confusion matrices."""

import random
from collections.abc import Iterator
from pathlib import Path

import torch

from dassl.prediction_file import PredictedImage, write_predictions
from dassl.results import write_result
from scripts.jobs.protocols import ALL_SHOTS, FEW_SHOT_DATASETS, IMAGENET_SHIFTS, PROTOCOLS, RunKey

METHODS = ("ZeroshotCLIP", "CoOp", "LightRA", "RAda")
# As the engine prints an epoch, see `dassl.engine.progress.EpochProgress.line`.
LINE = (
    "epoch [{epoch}/{epochs}] batch [8/8] time 0.051 (0.062) data 0.001 (0.002) "
    "loss {loss:.4f} ({loss:.4f}) acc {acc:.4f} ({acc:.4f}) lr 2.0000e-03 eta 0:00:10\n"
)


class SyntheticRuns:
    """Writes runs with made-up numbers below a folder.

    Args:
        output: Folder of all runs.
        classes: Number of classes of every dataset.
        epochs: Lines of every log.
        name: Gives the name of a class.
    """

    def __init__(self, output: Path, classes: int = 20, epochs: int = 20, name="class {}".format):
        self.output, self.classes, self.epochs, self.name = output, classes, epochs, name
        self.rng = random.Random(0)

    def write(
        self, key: RunKey, *, matrix: bool = False, predictions: bool = False, **changes: object
    ) -> Path:
        """Write a run and return its folder; with cmat.pt and predictions.csv.gz if wanted."""
        directory = key.directory(self.output)
        directory.mkdir(parents=True)
        trains = key.trainer != "ZeroshotCLIP"
        skill = 45.0 + 4.0 * (sum(map(ord, key.trainer)) % 7) + max(key.shots, 0) ** 0.5 * trains
        # What is not trained gives the same numbers for all shots and seeds.
        rng = self.rng if trains else random.Random(f"{key.stage} {key.dataset}")
        per_class = self._per_class(skill, rng)
        result = self._result(key, per_class, trains)
        write_result(directory, {**result, **changes})
        trained_here = key.stage == PROTOCOLS[key.protocol].train_stage
        (directory / "log.txt").write_text(self._log() if trains and trained_here else "")
        if matrix:
            torch.save(torch.rand(self.classes, self.classes).softmax(1), directory / "cmat.pt")
        if predictions:
            write_predictions(directory, self._mistakes(key.dataset, per_class))
        return directory

    def _mistakes(self, dataset: str, per_class: list[dict]) -> Iterator[PredictedImage]:
        """Every wrong answer that the classes' accuracies count: other classes in turn."""
        for row in per_class:
            label = row["label"]
            for number in range(row["total"] - row["correct"]):
                other = (label + 1 + number % max(1, self.classes - 1)) % self.classes
                image = f"{dataset}/images/{label:04d}/{self.rng.randrange(10**6):06d}.jpg"
                names = (label, row["name"], other, self.name(other))
                yield PredictedImage(image, *names, 0.999 - 0.01 * number)

    def _per_class(self, skill: float, rng: random.Random) -> list[dict]:
        rows = []
        for label in range(self.classes):
            right = min(50, max(0, round(rng.gauss(skill, 12) / 2)))
            name = self.name(label)
            accuracy = 2.0 * right
            rows.append(
                {"label": label, "name": name, "total": 50, "correct": right, "accuracy": accuracy}
            )
        return rows

    def _result(self, key: RunKey, per_class: list[dict], trains: bool) -> dict:
        accuracy = sum(row["accuracy"] for row in per_class) / len(per_class)
        train = self.rng.uniform(20, 90) * trains
        return {
            "trainer": key.trainer,
            "dataset": key.dataset,
            "backbone": "ViT-B/16",
            "seed": key.seed,
            "shots": key.shots,
            "subsample_classes": PROTOCOLS[key.protocol].classes_of(key.stage),
            "config": {"SEED": key.seed, "DATASET": {"NAME": key.dataset, "ROOT": "data"}},
            "config_hash": "0",
            "split_hash": f"{key.dataset}{key.shots}{key.seed}",
            "versions": {"torch": "2.6"},
            "git": "0",
            "device": "cuda:0",
            "precision": "amp",
            "trainable_parameters": 122880 * trains,
            "zero_shot_check": None,
            "identity": "0",
            "split": "test",
            "metrics": {"accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": accuracy},
            "per_class": per_class,
            "num_test": 50 * len(per_class),
            "num_classes": len(per_class),
            "chance": 100 / len(per_class),
            "eval_only": not trains,
            "model_dir": "",
            "load_epoch": None,
            "durations": {"train": train, "test": 4.0, "total": train + 9.0},
            "peak_memory_mb": 1000 + 400 * trains + self.rng.uniform(0, 50),
            "notes": [],
        }

    def _log(self) -> str:
        lines = ["Building model\n"]
        for epoch in range(1, self.epochs + 1):
            loss = 3.0 / epoch + self.rng.uniform(0, 0.2)
            values = {"loss": loss, "acc": 100 - 20 * loss}
            lines.append(LINE.format(epoch=epoch, epochs=self.epochs, **values))
        return "".join(lines)


def write_many(output: Path, count: int = 500, **settings) -> SyntheticRuns:
    """Write at least that many runs of base2novel, few_shot and cross_dataset, as a sweep does."""
    runs = SyntheticRuns(output, **settings)
    keys = []
    for seed in (1, 2, 3):
        for trainer in METHODS:
            for dataset in FEW_SHOT_DATASETS:
                for stage in ("train_base", "test_new"):
                    keys.append(("base2novel", stage, dataset, 16, trainer, "base2novel", seed))
            keys.append(("cross_dataset", "train", "imagenet", 16, trainer, "cross_dataset", seed))
            for name in (*FEW_SHOT_DATASETS[1:], *IMAGENET_SHIFTS):
                keys.append(("cross_dataset", "test", name, 16, trainer, "cross_dataset", seed))
            for dataset in FEW_SHOT_DATASETS[:4]:
                for shots in ALL_SHOTS:
                    keys.append(("few_shot", "train", dataset, shots, trainer, "few_shot", seed))
    assert len(keys) >= count
    for number, key in enumerate(keys[:count]):
        source = RunKey("cross_dataset", "train", "imagenet", 16, key[4], "cross_dataset", key[6])
        crossed = key[:2] == ("cross_dataset", "test")
        changes = {"model_dir": str(source.directory(output))} if crossed else {}
        runs.write(RunKey(*key), matrix=number % 5 == 0, predictions=True, **changes)
    return runs
