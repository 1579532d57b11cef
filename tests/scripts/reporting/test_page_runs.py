"""What the page shows of single runs: worst classes, curves, confusions, pictures."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from dassl.engine import build_trainer
from dassl.prediction_file import PredictedImage, read_predictions, write_predictions
from dassl.results import read_result
from scripts.jobs.protocols import RunKey
from scripts.reporting.page import details, mistakes, pictures
from scripts.reporting.page.build import build_page
from scripts.reporting.page.details import confusion, training_curve, worst_classes
from scripts.reporting.page.mistakes import ClassRow, confusion_of, mistakes_of
from scripts.reporting.page.pictures import Pictures
from scripts.reporting.results import Selection
from tests.runs import SMALL
from tests.scripts.reporting.synthetic import LINE, SyntheticRuns

KEY = RunKey("base2novel", "train_base", "dtd", 16, "LightRA", "base2novel", 1)


class TestRuns:
    def test_what_a_real_run_leaves(self, tmp_path, make_config):
        key = RunKey("base2novel", "train_base", "shapes", 1, "RAda", "base2novel", 1)
        folder = key.directory(Path())
        options = (*SMALL, "TEST.COMPUTE_CMAT", "True")
        build_trainer(make_config("RAda/base2novel", *options, output=folder)).train()
        page = build_page(Selection("", tmp_path), Pictures(2), tmp_path)
        (run,) = page.runs
        assert run["folder"] == str(folder)
        # The log is train.py's.
        assert run["files"] == ["result.json", "identity.json", "predictions.csv.gz"]
        assert len(run["worst"]) == details.WORST
        assert len(run["confusion"]["cells"]) == details.CONFUSED
        assert all(len(page.pictures["shapes"][name]) == 2 for name, *_ in run["worst"])
        assert page.remarks == []
        self.check_mistakes(page, run, tmp_path / folder)
        # The runs of the other tests are in the same form.
        synthetic = read_result(SyntheticRuns(tmp_path / "synthetic").write(KEY))
        real = read_result(tmp_path / folder)
        assert synthetic.keys() == real.keys()
        assert synthetic["per_class"][0].keys() == real["per_class"][0].keys()
        assert synthetic["durations"].keys() == real["durations"].keys()

    def check_mistakes(self, page, run, folder):
        """Pictures of the images that the run was surest of; both ways to the matrix agree."""
        kept = read_predictions(folder)
        for (name, total, correct), images in zip(run["worst"], run["mistaken"], strict=True):
            wrong = [one for one in kept if one.class_name == name and one.is_wrong]
            assert len(wrong) == total - correct
            wrong.sort(key=lambda one: -one.confidence)
            assert [(label, percent) for label, percent, _ in images] == [
                (one.predicted_name, round(100 * one.confidence)) for one in wrong[: mistakes.SHOWN]
            ]
            shown = [page.images[number] for *_, number in images]
            assert [path for path, _ in shown] == [one.image for one in wrong[: mistakes.SHOWN]]
            assert all(url.startswith("data:image/jpeg;base64,") for _, url in shown)
        classes = details.read_classes(read_result(folder))
        assert run["confusion"] == confusion(folder, classes, len(classes))[0]

    def test_a_run_of_an_older_version_is_as_it_was(self, tmp_path):
        SyntheticRuns(tmp_path).write(KEY)
        page = build_page(Selection("", tmp_path), Pictures(0), tmp_path)
        (run,) = page.runs
        assert run["mistaken"] == [[]] * details.WORST
        assert (run["no_mistakes"], page.images, page.remarks) == ("", [], [])
        assert "TEST.COMPUTE_CMAT" in run["no_confusion"]

    def test_links_lead_from_the_page_to_the_run(self, tmp_path):
        directory = SyntheticRuns(tmp_path / "out put").write(KEY)
        folder = tmp_path / "pages"
        (run,) = build_page(Selection("", tmp_path / "out put"), Pictures(0), folder).runs
        assert run["folder"] == "../out%20put/" + str(directory.relative_to(tmp_path / "out put"))
        assert run["files"] == ["result.json", "log.txt"]

    def test_worst_classes_come_first(self):
        rows = [("a", 10, 9), ("b", 10, 1), ("unseen", 0, 0), ("c", 5, 1)]
        assert worst_classes(rows) == [["b", 10, 1], ["c", 5, 1], ["a", 10, 9]]

    def test_curve_is_the_means_of_the_epochs(self, tmp_path):
        log = tmp_path / "log.txt"
        first = "epoch [1/2] batch [5/9] time 0.1 (0.1) data 0.1 (0.1) loss 9.0 (8.0) acc 1.0 (2.0)"
        lines = [LINE.format(epoch=e, epochs=2, loss=4.0 / e, acc=50.0) for e in (1, 2)]
        log.write_text("".join([first + " lr 1e-3 eta 0\n", *lines, "epoch [3/3] batch [1/9] lo"]))
        curve = training_curve(log)
        assert curve["loss"][:2] == [4.0, 2.0]
        assert curve["acc"][:2] == [50.0, 50.0]
        assert training_curve(tmp_path / "none.txt") == {}

    def test_a_long_curve_is_thinned(self, tmp_path):
        log = tmp_path / "log.txt"
        values = {"epochs": 10_000, "loss": 1.0, "acc": 50.0}
        log.write_text("".join(LINE.format(epoch=e, **values) for e in range(1, 10_001)))
        epochs = training_curve(log)["epoch"]
        assert (len(epochs), epochs[0], epochs[-1]) == (details.EPOCHS, 1, 10_000)

    def test_confusions_by_hand(self, tmp_path):
        torch.save(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), tmp_path / "cmat.pt")
        found, why = confusion(tmp_path, [("a", 4, 2), ("b", 4, 3)], 2)
        assert (found, why) == ({"names": ["a", "b"], "cells": [[50, 50], [25, 75]]}, "")

    def test_of_many_classes_the_confused_ones_are_shown(self, tmp_path, monkeypatch):
        monkeypatch.setattr(details, "CONFUSED", 2)
        matrix = torch.eye(4)
        matrix[3, 1], matrix[3, 3] = 1.0, 0.0
        torch.save(matrix, tmp_path / "cmat.pt")
        found, _ = confusion(tmp_path, [(name, 1, 1) for name in "abcd"], 4)
        assert found == {"names": ["b", "d"], "cells": [[100, 0], [100, 0]]}

    def test_why_there_is_no_matrix(self, tmp_path):
        classes = [("a", 1, 1), ("b", 1, 1)]
        assert "TEST.COMPUTE_CMAT" in confusion(tmp_path, classes, 2)[1]
        torch.save(torch.eye(3), tmp_path / "cmat.pt")
        assert "shape (3, 3)" in confusion(tmp_path, classes, 3)[1]
        (tmp_path / "cmat.pt").write_bytes(b"half of a fi")
        assert "cannot be read" in confusion(tmp_path, classes, 2)[1]


class TestMistakes:
    ROWS = (ClassRow("ant", 4, 2, 0), ClassRow("bee", 4, 3, 1), ClassRow("cat", 4, 4, 2))
    IMAGES = (
        PredictedImage("a/0.png", 0, "ant", 1, "bee", 0.5),
        PredictedImage("a/1.png", 0, "ant", 3, "dog", 0.7),  # of which there are no images
        PredictedImage("a/2.png", 0, "ant", 0, "ant", 0.9),
        PredictedImage("b/0.png", 1, "bee", 2, "cat", 0.6),
    )

    def test_the_surest_come_first(self, tmp_path):
        write_predictions(tmp_path, self.IMAGES)
        found = mistakes_of(tmp_path, self.ROWS)
        assert details.mistaken_images(self.ROWS, found) == [
            [["dog", 70, "a/1.png"], ["bee", 50, "a/0.png"]],
            [["cat", 60, "b/0.png"]],
            [],
        ]

    def test_confusions_by_hand(self, tmp_path):
        write_predictions(tmp_path, self.IMAGES)
        found = mistakes_of(tmp_path, self.ROWS)
        assert confusion_of(found, self.ROWS, 3) == {
            "names": ["ant", "bee", "cat"],
            "cells": [[50, 25, 0], [0, 75, 25], [0, 0, 100]],
        }
        assert confusion_of(found, self.ROWS, 2)["names"] == ["ant", "bee"]

    def test_classes_of_one_name_are_two(self, tmp_path):
        rows = [ClassRow("missile", 1, 0, 0), ClassRow("missile", 1, 0, 1)]
        images = [PredictedImage(f"{n}.png", n, "missile", 1 - n, "missile", 0.5) for n in (0, 1)]
        write_predictions(tmp_path, images)
        found = details.mistaken_images(rows, mistakes_of(tmp_path, rows))
        assert found == [[["missile", 50, "0.png"]], [["missile", 50, "1.png"]]]

    def test_a_file_that_changes_is_read_again(self, tmp_path):
        assert mistakes_of(tmp_path, self.ROWS).counts == {}
        write_predictions(tmp_path, self.IMAGES)
        assert len(mistakes_of(tmp_path, self.ROWS).counts) == 3
        (tmp_path / "predictions.csv.gz").write_bytes(b"damaged")
        found = mistakes_of(tmp_path, self.ROWS)
        assert (found.counts, found.examples) == ({}, {})
        assert "Not a gzipped file" in found.why_not

    def test_files_that_cannot_be_used_cost_one_line(self, tmp_path):
        runs = SyntheticRuns(tmp_path)
        keys = [replace(KEY, seed=seed) for seed in (1, 2, 3)]
        folders = [runs.write(key, predictions=True) for key in keys]
        (folders[0] / "predictions.csv.gz").write_bytes(b"damaged")
        write_predictions(folders[1], self.IMAGES)
        page = build_page(Selection("", tmp_path), Pictures(0), tmp_path)
        file = folders[0] / "predictions.csv.gz"
        assert page.remarks == [
            f"No mistaken images: {file} cannot be read (Not a gzipped file (b'da')); evaluate the "
            "run again (the first of 2 runs)"
        ]
        assert [any(run["mistaken"]) for run in page.runs] == [False, False, True]
        assert "is not of this result" in page.runs[1]["no_mistakes"]
        assert "TEST.COMPUTE_CMAT" in page.runs[1]["no_confusion"]


class TestPictures:
    def test_data_that_is_gone_costs_a_line(self, tmp_path):
        found = Pictures(2, str(tmp_path / "nowhere"))
        SyntheticRuns(tmp_path).write(KEY)
        result = read_result(KEY.directory(tmp_path))
        found.add("dtd", {**result, "config": {"SEED": 1}}, ["a"])
        found.add("dtd", {**result, "config": {"SEED": 1}}, ["b"])
        assert found.problems == [
            f"No pictures of dtd: no folder {tmp_path / 'nowhere'} "
            "(--data-root says where all datasets are)"
        ]

    def test_the_limit_holds(self, tmp_path, monkeypatch):
        file = tmp_path / "picture.png"
        Image.effect_noise((300, 200), 90).save(file)
        url = pictures.thumbnail(str(file))
        assert url.startswith("data:image/jpeg;base64,")
        monkeypatch.setattr(pictures, "MOST_BYTES", 10 * len(url))
        names = [f"class {number}" for number in range(100)]
        monkeypatch.setattr(
            pictures, "images_by_class", lambda *_: {name: [str(file)] * 3 for name in names}
        )
        found = Pictures(2)
        found.add("dtd", {}, names)
        assert sum(map(len, found.found["dtd"].values())) == 10
        assert "left out" in found.problems[0]

    def test_mistaken_images_share_the_limit_and_stand_there_once(self, tmp_path, monkeypatch):
        files = [tmp_path / "dtd" / f"{number}.png" for number in range(4)]
        files[0].parent.mkdir()
        for file in files:
            Image.effect_noise((300, 200), 90).save(file)
        size = len(pictures.thumbnail(str(files[0])))
        monkeypatch.setattr(pictures, "MOST_BYTES", int(2.5 * size))
        paths = {"a": [str(file) for file in files]}
        monkeypatch.setattr(pictures, "images_by_class", lambda *_: paths)
        found = Pictures(1, str(tmp_path))
        found.add("dtd", {}, ["a"])
        names = ["dtd/0.png", "dtd/1.png", "dtd/0.png", "dtd/2.png"]
        assert [found.number_of("dtd", {}, name) for name in names] == [0, 1, 0, 2]
        assert [(path, bool(url)) for path, url in found.images] == [
            ("dtd/0.png", True),
            ("dtd/1.png", True),
            ("dtd/2.png", False),
        ]
        assert len(found.problems) == 1

    def test_only_images_of_the_dataset_are_read(self, tmp_path, monkeypatch):
        """A file of predictions may come from elsewhere."""
        Image.effect_noise((30, 20), 90).save(tmp_path / "private.png")
        monkeypatch.setattr(pictures, "images_by_class", lambda *_: {})
        found = Pictures(1, str(tmp_path / "data"))
        for name in ("../private.png", str(tmp_path / "private.png"), "test.npz#3"):
            found.number_of("dtd", {}, name)
        assert [url for _, url in found.images] == ["", "", ""]

    def test_a_damaged_picture_is_left_out(self, tmp_path):
        (tmp_path / "x.png").write_bytes(b"no picture")
        assert pictures.thumbnail(str(tmp_path / "x.png")) == ""
