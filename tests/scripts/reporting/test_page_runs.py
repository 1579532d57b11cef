"""What the page shows of single runs: worst classes, curves, confusions, pictures."""

from pathlib import Path

import torch
from PIL import Image

from dassl.engine import build_trainer
from dassl.results import read_result
from scripts.jobs.protocols import RunKey
from scripts.reporting.page import details, pictures
from scripts.reporting.page.build import build_page
from scripts.reporting.page.details import confusion, training_curve, worst_classes
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
        assert run["files"] == ["result.json", "identity.json"]  # the log is train.py's
        assert len(run["worst"]) == details.WORST
        assert len(run["confusion"]["cells"]) == details.CONFUSED
        assert all(len(page.pictures["shapes"][name]) == 2 for name, *_ in run["worst"])
        assert page.remarks == []
        # The runs of the other tests are in the same form.
        synthetic = read_result(SyntheticRuns(tmp_path / "synthetic").write(KEY))
        real = read_result(tmp_path / folder)
        assert synthetic.keys() == real.keys()
        assert synthetic["per_class"][0].keys() == real["per_class"][0].keys()
        assert synthetic["durations"].keys() == real["durations"].keys()

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

    def test_a_damaged_picture_is_left_out(self, tmp_path):
        (tmp_path / "x.png").write_bytes(b"no picture")
        assert pictures.thumbnail(str(tmp_path / "x.png")) == ""
