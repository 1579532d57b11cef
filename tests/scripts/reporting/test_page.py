"""The results page's content: numbers, names, runs that do not count, limits. No browser."""

import html
import json
import re
import sys

import pytest
import torch

from dassl.results import write_result
from scripts.jobs.protocols import ALL_IMAGES, FEW_SHOT_DATASETS, IMAGENET_SHIFTS, RunKey
from scripts.report import main
from scripts.reporting.page import build, details, pictures
from scripts.reporting.page.build import build_page, render
from scripts.reporting.page.pictures import Pictures
from scripts.reporting.results import Selection
from tests.scripts.reporting.synthetic import SyntheticRuns, write_many

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


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_names_are_escaped(tmp_path, page_of):
    runs = SyntheticRuns(tmp_path, classes=3, name=lambda label: f"{EVIL}{label}")
    trainer, dataset = "<b>Method", '"><svg onload=alert(3)>'
    key = RunKey("base2novel", "train_base", dataset, 16, trainer, "base2novel", 1)
    runs.write(key, predictions=True, notes=[EVIL], backbone=EVIL)
    half = RunKey("base2novel", "train_base", "<i>half", 16, trainer, "base2novel", 1)
    half.directory(tmp_path).mkdir(parents=True)
    text = render(page_of())
    names = (EVIL, trainer, dataset, "<i>half", "<svg onload", "<img src=x")
    own = text.replace(build.charts.javascript(), "")
    assert not [name for name in names if name in own]
    (run,) = content_of(text)["runs"]
    assert (run["worst"][0][0][:-1], run["method"], run["dataset"]) == (EVIL, trainer, dataset)
    assert run["mistaken"][0][0][0][:-1] == EVIL
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
