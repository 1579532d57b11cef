"""The results page's content: numbers, names, runs that do not count, limits. No browser."""

import html
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dassl.engine import build_trainer
from dassl.results import read_result, write_result
from scripts.jobs.protocols import ALL_IMAGES, FEW_SHOT_DATASETS, IMAGENET_SHIFTS, RunKey
from scripts.report import main
from scripts.reporting.page import build, details, pictures
from scripts.reporting.page.build import build_page, render
from scripts.reporting.page.details import confusion, training_curve, worst_classes
from scripts.reporting.page.pictures import Pictures
from scripts.reporting.results import Selection
from tests.runs import SMALL
from tests.scripts.reporting.synthetic import LINE, SyntheticRuns, write_many

KEY = RunKey("base2novel", "train_base", "dtd", 16, "LightRA", "base2novel", 1)


@pytest.fixture
def page_of(tmp_path):
    """Return a function that builds the page of all runs below the test's folder."""

    def build(protocol="", **selection):
        return build_page(Selection(protocol, tmp_path, **selection), Pictures(0), tmp_path)

    return build


def content_of(text):
    """Read the values that a page's script gets."""
    found = re.search(r'<script id="content" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found[1])


def save(tmp_path, capsys, *words):
    file = tmp_path / "report.html"
    status = main(["--output", str(tmp_path), "--save", str(file), "--pictures", "0", *words])
    return status, file, capsys.readouterr()


def row_of(section, **wanted):
    (row,) = [r for r in section["table"] if all(r[key] == wanted[key] for key in wanted)]
    return row


class TestTable:
    def test_a_row_has_mean_deviation_and_seeds(self, page_of, write_run):
        for seed, accuracy in ((1, 80.0), (2, 82.0), (3, 87.0)):
            write_run("train_base", "dtd", seed, accuracy)
        (section,) = page_of().sections
        row = row_of(section, dataset="dtd", metric="base")
        assert (row["method"], row["shots"], row["seeds"]) == ("LightRA", "16", 3)
        assert (row["mean"], row["std"]) == (83.0, pytest.approx(3.6056, abs=1e-4))
        assert (row["published"], row["difference"]) == (None, None)

    def test_published_means_stand_beside_the_same_means(self, page_of, write_run):
        for dataset in FEW_SHOT_DATASETS:
            write_run("train_base", dataset, 1, 80.0)
            write_run("test_new", dataset, 1, 70.0)
        (section,) = page_of().sections
        row = row_of(section, dataset="mean of datasets", metric="base")
        assert (row["published"], row["difference"]) == (84.94, pytest.approx(-4.94))
        assert "LightRA" in row["source"]
        assert row_of(section, dataset="dtd", metric="base")["published"] is None
        (part,) = page_of(datasets=FEW_SHOT_DATASETS[1:]).sections
        assert row_of(part, dataset="mean of datasets", metric="base")["published"] is None

    def test_printed_names_find_our_trainers(self, page_of, write_run):
        changes = {"protocol": "eft", "trainable_parameters": 0, "trainer": "ZeroshotCLIP"}
        write_run("train_base", "dtd", 1, 55.24, **changes)
        changes = {"protocol": "eft", "trainer": "RAdaPrompt"}
        write_run("train_base", "dtd", 1, 80.0, **changes)
        (section,) = page_of().sections
        zero_shot = row_of(section, method="ZeroshotCLIP", dataset="dtd")
        assert (zero_shot["published"], zero_shot["difference"]) == (53.24, pytest.approx(2.0))
        assert row_of(section, method="RAdaPrompt", dataset="dtd")["published"] == 83.28

    @pytest.mark.parametrize("changes", [{"backbone": "RN50"}, {"cfg": "table4_mlp"}])
    def test_not_beside_another_backbone_or_config(self, page_of, write_run, changes):
        write_run("train_base", "dtd", 1, 80.0, protocol="eft", trainer="RAda", **changes)
        (section,) = page_of().sections
        assert {row["published"] for row in section["table"]} == {None}

    def test_shifts_of_imagenet(self, page_of, write_run):
        changes = {"protocol": "cross_dataset", "trainer": "CoOp"}
        source = write_run("train", "imagenet", 1, 70.0, **changes)
        for name in IMAGENET_SHIFTS:
            write_run("test", name, 1, 60.0, model_dir=str(source), **changes)
        (section,) = page_of().sections
        assert row_of(section, dataset="mean of shifts")["published"] == 59.28
        assert row_of(section, dataset="imagenet_r")["published"] == 75.21
        (point,) = section["points"]
        assert (point["source"], point["shifts"]) == (70.0, 60.0)

    def test_all_images_have_a_name(self, page_of, write_run):
        source = write_run("train", "imagenet", 1, 80.0, protocol="fft", shots=ALL_IMAGES)
        changes = {"protocol": "fft", "shots": ALL_IMAGES, "model_dir": str(source)}
        write_run("test", "imagenet_r", 1, 60.0, **changes)
        (section,) = page_of().sections
        assert {row["shots"] for row in section["table"]} == {"all"}


class TestCharts:
    def test_base_novel_has_a_point_for_each_method_and_place(self, page_of, write_run):
        for dataset in ("dtd", "eurosat"):
            write_run("train_base", dataset, 1, 80.0)
            write_run("test_new", dataset, 1, 60.0)
        (section,) = page_of().sections
        places = [one["dataset"] for one in section["charts"] if one["chart"] == "base_novel"]
        assert places == ["mean of datasets", "dtd", "eurosat"]
        assert {point["dataset"] for point in section["points"]} == set(places)
        assert section["points"][0]["hm"] == pytest.approx(68.571)

    def test_zero_shot_is_at_0_shots(self, page_of, write_run):
        for shots in (1, 4):
            changes = {"protocol": "few_shot", "shots": shots}
            write_run("train", "dtd", 1, 40.0 + shots, **changes)
            changes |= {"trainable_parameters": 0, "trainer": "ZeroshotCLIP"}
            write_run("train", "dtd", 1, 30.0, **changes)
        (section,) = page_of().sections
        found = [(row["method"], row["shots"], row["mean"]) for row in section["curves"]]
        assert found[0] == ("ZeroshotCLIP", "0", 30.0)
        assert found[1:] == [("LightRA", "1", 41.0), ("LightRA", "4", 44.0)]

    def test_every_chart_of_a_section_is_defined(self, tmp_path, page_of):
        write_many(tmp_path, 228, classes=3, epochs=2)  # all of one seed
        page = page_of()
        names = {one["chart"] for section in page.sections for one in section["charts"]}
        assert names == {
            *("curves", "base_novel", "source_targets", "source_shifts", "accuracies"),
            *("time", "memory"),
        }
        assert names <= content_of(render(page))["charts"].keys()


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


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_names_are_escaped(tmp_path, page_of):
    runs = SyntheticRuns(tmp_path, classes=3, name=lambda label: f"{EVIL}{label}")
    trainer, dataset = "<b>Method", '"><svg onload=alert(3)>'
    key = RunKey("base2novel", "train_base", dataset, 16, trainer, "base2novel", 1)
    runs.write(key, notes=[EVIL], backbone=EVIL)
    half = RunKey("base2novel", "train_base", "<i>half", 16, trainer, "base2novel", 1)
    half.directory(tmp_path).mkdir(parents=True)
    text = render(page_of())
    names = (EVIL, trainer, dataset, "<i>half", "<svg onload", "<img src=x")
    own = text.replace(build.charts.javascript(), "")
    assert not [name for name in names if name in own]
    (run,) = content_of(text)["runs"]
    assert (run["worst"][0][0][:-1], run["method"], run["dataset"]) == (EVIL, trainer, dataset)
    assert html.escape("<i>half") in text


class TestBadInput:
    def test_no_runs(self, tmp_path, capsys):
        status, file, printed = save(tmp_path, capsys)
        assert status == 1
        assert not file.exists()
        assert printed.err.splitlines() == [
            f"No finished run under {tmp_path} is selected. "
            "Run it first: python scripts/run.py --protocol ..."
        ]

    def test_runs_that_do_not_count_are_named(self, tmp_path, capsys):
        runs = SyntheticRuns(tmp_path, classes=3)
        runs.write(KEY)
        reasons = {}
        for seed, reason in enumerate(("no complete", "cut short", "changed after", "format 2"), 2):
            key = RunKey("base2novel", "train_base", "dtd", 16, "LightRA", "base2novel", seed)
            file = runs.write(key) / "result.json"
            reasons[str(file.parent)] = reason
            content = json.loads(file.read_text())
            if reason == "no complete":
                file.unlink()
            elif reason == "cut short":
                file.write_text(file.read_text()[:50])
            elif reason == "changed after":
                file.write_text(json.dumps({**content, "seed": 9}))
            else:
                write_result(file.parent, {**content, "format": 2})
        status, file, printed = save(tmp_path, capsys)
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        assert status == 0
        assert printed.out == f"{file} written; finished runs: 1, not counted: 4; {size}\n"
        page = build_page(Selection("", tmp_path), Pictures(0), tmp_path)
        assert [(folder, reasons[folder] in why) for folder, why in page.left_out] == [
            (folder, True) for folder in sorted(reasons)
        ]
        text = file.read_text()
        assert all(folder in text for folder in reasons)

    def test_ten_thousand_classes(self, tmp_path, capsys):
        directory = SyntheticRuns(tmp_path, classes=10_000).write(KEY)
        torch.save(torch.zeros(2, 2), directory / "cmat.pt")
        status, file, _ = save(tmp_path, capsys)
        assert status == 0
        assert file.stat().st_size < 1_500_000
        (run,) = content_of(file.read_text())["runs"]
        assert (run["classes"], len(run["worst"])) == (10_000, details.WORST)
        assert "more than 2000 classes" in run["no_confusion"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--format", "html"], "either --save FILE.html or --serve"),
            (["--format", "text"], "--format text needs --protocol"),
            (["--serve", "--save", "x.html"], "either --save FILE.html or --serve"),
            (["--serve", "--format", "csv", "--protocol", "eft"], "leave out --format csv"),
            (["--serve", "many"], "--serve: 'many' is no whole number"),
            (["--save", "x.html", "--plot", "x.png"], "--plot: the html page has charts"),
            (["--save", "x.html", "--pictures", "-1"], "--pictures: '-1' is no whole number"),
            (["--save", "x.html", "--protocol", "few_shots"], "Did you mean 'few_shot'"),
        ],
    )
    def test_flags(self, tmp_path, capsys, words, message):
        with pytest.raises(SystemExit) as stop:
            main(["--output", str(tmp_path), *words])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["altair", "vl_convert"])
    def test_a_library_that_is_not_there(self, tmp_path, capsys, monkeypatch, name):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SystemExit):
            main(["--output", str(tmp_path), "--save", str(tmp_path / "x.html")])
        assert f"needs {name}: pip install altair vl-convert-python" in capsys.readouterr().err

    def test_a_folder_that_cannot_be_written(self, tmp_path, capsys):
        SyntheticRuns(tmp_path, classes=2).write(KEY)
        (tmp_path / "file").touch()
        words = ["--output", str(tmp_path), "--save", str(tmp_path / "file" / "report.html")]
        assert main([*words, "--pictures", "0"]) == 1
        assert capsys.readouterr().err.startswith("--save or --plot: ")


def test_500_runs_are_at_most_5_megabytes(tmp_path, capsys):
    write_many(tmp_path, 500, classes=100, epochs=200)
    status, file, printed = save(tmp_path, capsys)
    assert status == 0
    assert "finished runs: 500" in printed.out
    # The pictures have a limit of their own, which comes on top.
    assert file.stat().st_size + pictures.MOST_BYTES < 5_000_000
    text = file.read_text()
    assert not re.search(r'(src|href)="(https?:)?//', text), "nothing is loaded from elsewhere"
