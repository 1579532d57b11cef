"""``predictions.csv.gz``: what a run took each test image for, and files that are none."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import pandas
import pytest
import torch

from dassl import prediction_file
from dassl.data.datasets import Datum
from dassl.engine import build_trainer
from dassl.evaluation import predictions
from dassl.evaluation.predictions import Predictions
from dassl.prediction_file import (
    PREDICTIONS_NAME,
    PredictedImage,
    read_predictions,
    write_predictions,
)
from dassl.results import read_result
from tests.dassl.toys import CLASSES, ToyCoOp, ToyMethod

SHORT = {"OPTIM__MAX_EPOCH": 1}
RIGHT = PredictedImage("a/0.png", 0, "red", 0, "red", 0.5)
WRONG = PredictedImage("a/1.png", 0, "red", 1, "blue", 0.9)


def run(make_cfg, trainer=ToyMethod, output="run", **changes):
    """Train one epoch; return the trainer and its folder."""
    cfg = make_cfg(output, **SHORT, **changes)
    built = trainer(cfg)
    built.train()
    return built, Path(cfg.OUTPUT_DIR)


def test_a_run_keeps_the_class_and_confidence_of_each_image(make_cfg):
    trainer, folder = run(make_cfg)
    found = read_predictions(folder)
    items = trainer.dm.dataset.test
    assert [(one.image, one.label, one.class_name) for one in found] == [
        (f"toy/images/{CLASSES[i.label]}/{Path(i.impath).name}", i.label, i.classname)
        for i in items
    ]
    with torch.no_grad():
        images = torch.stack([item["img"] for item in trainer.test_loader.dataset])
        confidence, predicted = trainer.model(images).softmax(1).max(1)
    assert [one.predicted for one in found] == predicted.tolist()
    assert [one.predicted_name for one in found] == [CLASSES[p] for p in predicted.tolist()]
    assert [one.confidence for one in found] == pytest.approx(confidence.tolist(), abs=6e-5)
    correct = Counter(one.label for one in found if not one.is_wrong)
    rows = read_result(folder)["per_class"]
    assert [row["correct"] for row in rows] == [correct[row["label"]] for row in rows]


def test_pandas_reads_it(make_cfg):
    _, folder = run(make_cfg)
    table = pandas.read_csv(folder / PREDICTIONS_NAME)
    accuracy = 100 * (table["label"] == table["predicted"]).mean()
    assert accuracy == pytest.approx(read_result(folder)["metrics"]["accuracy"])


def test_the_order_is_that_of_the_dataset_whatever_the_loader_does(make_cfg):
    changes = {"DATALOADER__TEST__SAMPLER": "RandomSampler"}
    _, plain = run(make_cfg)
    _, shuffled = run(make_cfg, output="shuffled", **changes)
    assert [one[:-1] for one in read_predictions(shuffled)] == [
        one[:-1] for one in read_predictions(plain)
    ]


def test_without_the_key_there_is_no_file_and_an_old_one_goes(make_cfg):
    trainer, folder = run(make_cfg)
    assert (folder / PREDICTIONS_NAME).is_file()
    off = build_trainer(make_cfg(**SHORT, TEST__SAVE_PREDICTIONS=False))
    off.train()
    assert read_result(folder) is not None
    assert not (folder / PREDICTIONS_NAME).exists()
    assert read_predictions(folder) == []


def test_an_evaluation_in_the_folder_sets_the_trainings_file_aside(make_cfg):
    trainer, folder = run(make_cfg)
    before = (folder / PREDICTIONS_NAME).read_bytes()
    evaluated = build_trainer(make_cfg(**SHORT))
    evaluated.load_model(str(folder))
    evaluated.test()
    assert (folder / "previous-1" / PREDICTIONS_NAME).read_bytes() == before
    assert (folder / PREDICTIONS_NAME).read_bytes() == before  # the same weights


class WithoutIndex(ToyCoOp):
    """Batches as other repositories' loaders give them."""

    def test(self, split=None):
        wrapped = self.test_loader

        class Loader:
            dataset = wrapped.dataset

            def __iter__(self):
                for batch in wrapped:
                    yield {"img": batch["img"], "label": batch["label"]}

            def __len__(self):
                return len(wrapped)

        self.test_loader = Loader()
        return super().test(split)


class OwnLoader(ToyCoOp):
    """A loader that is a list of batches."""

    def test(self, split=None):
        self.test_loader = list(self.test_loader)
        return super().test(split)


class OwnTest(ToyCoOp):
    """A test of its own."""

    def test(self, split=None):
        self.evaluator.reset()
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(image), label)
        return self.evaluator.evaluate()["accuracy"]


class Twice(ToyCoOp):
    """Two evaluations, of which the result is the first."""

    def test(self, split=None):
        first = super().test(split)
        usual, self.model_inference = self.model_inference, lambda image: -self.model(image)
        super().test(split)
        self.model_inference = usual
        return first


@pytest.mark.parametrize("trainer", [WithoutIndex, OwnLoader, OwnTest, Twice])
def test_what_is_not_known_of_each_image_is_not_written(make_cfg, trainer):
    _, folder = run(make_cfg, trainer)
    _, plain = run(make_cfg, ToyCoOp, "plain")
    assert read_result(folder)["metrics"] == read_result(plain)["metrics"]
    assert (plain / PREDICTIONS_NAME).is_file()
    assert not (folder / PREDICTIONS_NAME).exists()


def test_many_batches_become_one_tensor(monkeypatch):
    monkeypatch.setattr(predictions, "MOST_WAITING", 3)
    items = [Datum(f"{number}.png", 0, 0, "a") for number in range(20)]
    collected = Predictions(items)
    for number in reversed(range(20)):
        logits = torch.tensor([[0.0, float(number) - 9.5]])
        collected.add({"index": torch.tensor([number])}, logits)
        assert len(collected._waiting) < 3
    found = collected.images("", {0: "a", 1: "b"})
    assert [Path(one.image).name for one in found] == [f"{number}.png" for number in range(20)]
    assert [one.predicted_name for one in found] == ["a"] * 10 + ["b"] * 10
    assert found[0].confidence == pytest.approx(torch.tensor(9.5).sigmoid().item())


def test_logits_of_half_precision_and_infinite_ones():
    items = [Datum("0.png", 0, 0, "a"), Datum("1.png", 1, 0, "b")]
    collected = Predictions(items)
    infinite = float("inf")
    logits = torch.tensor([[1.0, -infinite], [infinite, 0.0]]).half()
    collected.add({"index": torch.tensor([0, 1])}, logits)
    found = collected.images("", {0: "a", 1: "b"})
    assert [(one.predicted, one.confidence) for one in found] == [(0, 1.0), (0, 0.0)]


@pytest.mark.parametrize("index", [[0, 2], [-1, 0], [0]])
def test_an_index_that_counts_in_another_list_is_no_error(index):
    collected = Predictions([Datum("0.png", 0, 0, "a"), Datum("1.png", 0, 0, "a")])
    collected.add({"index": torch.tensor(index)}, torch.zeros(2, 3))
    assert collected.images("", {}) is None


class TestFile:
    def test_odd_names_come_back(self, tmp_path):
        names = ('a, "b"\nc', "=1+1", "", "<b>", "caf\udce9.png")
        images = [PredictedImage(name, 0, name, 1, name, 0.25) for name in names]
        write_predictions(tmp_path, images)
        assert read_predictions(tmp_path) == images

    def test_equal_predictions_are_equal_files(self, tmp_path):
        paths = [write_predictions(tmp_path / name, [RIGHT, WRONG]) for name in "ab"]
        assert paths[0].read_bytes() == paths[1].read_bytes()

    def test_of_many_images_the_mistaken_ones_are_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prediction_file, "MOST_ROWS", 3)
        write_predictions(tmp_path, [RIGHT, WRONG, RIGHT])
        assert read_predictions(tmp_path) == [RIGHT, WRONG, RIGHT]
        write_predictions(tmp_path, [RIGHT, WRONG] * 3)
        assert read_predictions(tmp_path) == [WRONG] * 3
        write_predictions(tmp_path, [RIGHT, WRONG] * 4)
        assert read_predictions(tmp_path) == [WRONG] * 3

    def test_imagenet_takes_less_than_a_megabyte(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randint(1000, (2, 50_000), generator=generator).tolist()
        shares = torch.rand(50_000, generator=generator).tolist()
        folder = "imagenet/images/val/n{:08d}/ILSVRC2012_val_{:08d}.JPEG"
        images = [
            PredictedImage(
                folder.format(label * 7919, i), label, f"name {label}", p, f"name {p}", s
            )
            for i, (label, p, s) in enumerate(zip(*numbers, shares, strict=True))
        ]
        assert write_predictions(tmp_path, images).stat().st_size < 1_000_000

    def test_a_kill_while_writing_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = write_predictions(tmp_path, [RIGHT])

        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(prediction_file.gzip, "compress", stop)
        with pytest.raises(KeyboardInterrupt):
            write_predictions(tmp_path, [WRONG])
        monkeypatch.undo()
        assert read_predictions(tmp_path) == [RIGHT]
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda content: content[:-10], "ended before"),
            (lambda content: b"no gzip at all", "Not a gzipped file"),
            (lambda content: content[:30] + b"\0\0\0" + content[33:], ""),
            (lambda content: gzip.compress(b""), "not enough values"),
            (lambda content: gzip.compress(b"a,b\n1,2\n"), "its columns are not image, label,"),
            (lambda content: gzip.compress(b"\0" * 70_000_000), "it is larger than such files"),
            (lambda content: table("a.png,0,a,1,b"), "not enough values"),
            (lambda content: table("a.png,zero,a,1,b,0.5"), "invalid literal for int"),
            (lambda content: table("a.png,0,a,1,b,nan"), "the confidence nan is not between"),
            (lambda content: table("a.png,0,a,1,b,1.5"), "the confidence 1.5 is not between"),
        ],
    )
    def test_other_files_are_refused_in_one_line(self, tmp_path, change, reason):
        path = write_predictions(tmp_path, [RIGHT, WRONG] * 20)
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match="cannot be read") as error:
            read_predictions(tmp_path)
        line = str(error.value)
        assert line.startswith(f"{path} cannot be read (")
        assert reason in line
        assert "\n" not in line
        assert csv.field_size_limit() == 131_072  # as Python has it


def table(row):
    header = ",".join(PredictedImage._fields)
    return gzip.compress(f"{header}\n{row}\n".encode())
