"""What a report looks like: four formats, figures, published rows, command line."""

import csv
import struct

import pytest

from scripts.jobs.protocols import FEW_SHOT_DATASETS, IMAGENET_SHIFTS
from scripts.report import main
from scripts.reporting import published


@pytest.fixture
def two_trainers(write_run):
    for dataset in ("dtd", "oxford_pets"):
        for seed in (1, 2):
            for trainer, base in (("LightRA", 80.0), ("RAda", 75.0)):
                write_run("train_base", dataset, seed, base + seed, trainer=trainer)
                write_run("test_new", dataset, seed, 60.0, trainer=trainer)


def run(tmp_path, capsys, *words, protocol="base2novel"):
    status = main(["--protocol", protocol, "--output", str(tmp_path), *words])
    assert status == 0
    return capsys.readouterr().out


def everything(write_run, **changes):
    for dataset in FEW_SHOT_DATASETS:
        write_run("train_base", dataset, 1, 80.0, **changes)
        write_run("test_new", dataset, 1, 70.0, **changes)


@pytest.mark.usefixtures("two_trainers")
class TestFormats:
    def test_text(self, tmp_path, capsys):
        out = run(tmp_path, capsys)
        lines = out.splitlines()
        header = next(line for line in lines if line.startswith("dataset"))
        assert header.split() == ["dataset", "trainer", "base", "novel", "HM"]
        rows = [x for x in lines if x.startswith(("oxford_pets", "dtd"))]
        assert [row.split()[:2] for row in rows] == [
            ["oxford_pets", "LightRA"],
            ["oxford_pets", "RAda"],
            ["dtd", "LightRA"],
            ["dtd", "RAda"],
        ]
        assert rows[0].split()[2:] == "81.50 ± 0.71 60.00 ± 0.00 69.12 ± 0.25".split()
        assert rows[1].split()[2:] == "76.50 ± 0.71 60.00 ± 0.00 67.25 ± 0.27".split()
        assert "ddof = 1" in out

    def test_markdown(self, tmp_path, capsys):
        out = run(tmp_path, capsys, "--format", "markdown")
        assert "### base2novel" in out
        row = next(line for line in out.splitlines() if line.startswith("| RAda"))
        assert [cell.strip() for cell in row.strip("|").split("|")] == [
            "RAda",
            "76.50 ± 0.71",
            "60.00 ± 0.00",
            "67.25 ± 0.27",
        ]

    def test_latex(self, tmp_path, capsys):
        out = run(tmp_path, capsys, "--format", "latex")
        for word in (
            r"\toprule",
            r"\midrule",
            r"\bottomrule",
            r"oxford\_pets",
            r"81.50 $\pm$ 0.71",
        ):
            assert word in out
        body = [line for line in out.splitlines() if line and not line.startswith("%")]
        assert all(line.startswith(("\\", " ")) for line in body)

    def test_csv(self, tmp_path, capsys):
        rows = list(csv.DictReader(run(tmp_path, capsys, "--format", "csv").splitlines()))
        assert len(rows) == 2 * 3 * 3
        row = next(r for r in rows if (r["dataset"], r["metric"]) == ("dtd", "base"))
        assert float(row["std"]) == 2**-0.5
        assert (row["trainer"], row["shots"], row["mean"], row["n"], row["demonstration"]) == (
            "LightRA",
            "16",
            "81.5",
            "2",
            "0",
        )

    @pytest.mark.parametrize(
        ("suffix", "start"),
        [("txt", "base2novel"), ("md", "### "), ("csv", "protocol,"), ("tex", "% base2novel")],
    )
    def test_save_follows_the_suffix(self, tmp_path, capsys, suffix, start):
        file = tmp_path / "tables" / f"table.{suffix}"
        out = run(tmp_path, capsys, "--save", str(file))
        assert file.read_text() == out
        assert out.startswith(start)
        assert [path.name for path in file.parent.iterdir()] == [file.name]

    def test_selection(self, tmp_path, capsys):
        out = run(tmp_path, capsys, "--trainer", "RAda", "--datasets", "dtd", "--seeds", "0 1")
        assert "oxford_pets" not in out
        assert "LightRA" not in out
        assert next(x for x in out.splitlines() if x.startswith("dtd")).split() == [
            *("dtd", "RAda", "76.00", "60.00", "67.06")
        ]


def test_rows_by_config(tmp_path, capsys, write_run):
    for cfg, base in (("base2novel", 80.0), ("table4_mlp", 70.0), ("table4_none", 60.0)):
        write_run("train_base", "dtd", 1, base, trainer="RAda", cfg=cfg)
        write_run("test_new", "dtd", 1, 60.0, trainer="RAda", cfg=cfg)

    def rows(*words):
        lines = run(tmp_path, capsys, *words).splitlines()
        return [line.split()[1:4] for line in lines if line.startswith("dtd")]

    assert rows("--cfg", "table4_none base2novel") == [
        ["RAda", "(table4_none)", "60.00"],
        ["RAda", "(base2novel)", "80.00"],
    ]
    assert rows("--cfg", "table4_mlp") == [["RAda", "(table4_mlp)", "70.00"]]
    assert rows("--cfg", "base2novel") == [["RAda", "80.00", "60.00"]]
    assert len(rows()) == 3


def test_warnings_stand_below_the_table_or_on_stderr(tmp_path, capsys, write_run):
    for seed, accuracy in ((1, 80.0), (2, 81.0), (3, 30.0)):
        bad = write_run("train", "dtd", seed, accuracy, protocol="few_shot")
    words = ["--protocol", "few_shot", "--output", str(tmp_path), "--format"]
    for form, mark in (
        ("text", "WARNING "),
        ("markdown", "> **Warning** "),
        ("latex", "% WARNING"),
    ):
        main([*words, form])
        out = capsys.readouterr().out.splitlines()
        assert out[-1].startswith(f"{mark}")
        assert out[-1].endswith(str(bad))
    main([*words, "csv"])
    printed = capsys.readouterr()
    assert "WARNING" not in printed.out
    assert str(bad) in printed.err


class TestPublished:
    def test_stands_beside_means_over_all_real_datasets(self, tmp_path, capsys, write_run):
        everything(write_run)
        out = run(tmp_path, capsys)
        row = next(line for line in out.splitlines() if line.startswith("LightRA *"))
        assert row.split() == ["LightRA", "*", "84.94", "78.51", "81.60"]
        assert next(x for x in out.splitlines() if x.startswith("LightRA  ")).split() == [
            *("LightRA", "80.00", "70.00", "74.67")
        ]
        assert published.FILE.name in out

    def test_eft_has_its_own_rows(self, tmp_path, capsys, write_run):
        everything(write_run, protocol="eft", trainer="RAda")
        lines = run(tmp_path, capsys, protocol="eft").splitlines()
        start = lines.index("means over datasets")
        rows = [line.split() for line in lines[start + 3 : start + 8]]
        assert rows == [
            ["RAda", "80.00", "70.00", "74.67"],
            ["CLIP", "*", "69.34", "74.22", "71.70"],
            ["RAda", "*", "82.16", "74.14", "77.94"],
            ["RAda", "+", "Prompt", "*", "84.18", "75.61", "79.67"],
            ["RAda", "+", "Adapter", "*", "84.32", "76.25", "80.08"],
        ]
        assert lines[start + 8] == ""

    def test_eft_has_rows_of_other_backbones(self, tmp_path, capsys, write_run):
        everything(write_run, protocol="eft", trainer="RAda", backbone="RN50")
        out = run(tmp_path, capsys, protocol="eft")
        rows = [line.split("  ")[0] for line in out.splitlines() if ") * " in line]
        assert rows == ["CLIP (RN50) *", "CoOp (RN50) *", "RAda (RN50) *"]

    @pytest.mark.parametrize("changes", [{"backbone": "RN50"}, {"shots": 4}])
    def test_not_for_other_backbones_or_shots(self, tmp_path, capsys, write_run, changes):
        everything(write_run, **changes)
        out = run(tmp_path, capsys)
        assert " * " not in out
        assert "Published means are not shown" in out

    def test_not_for_a_part_of_the_datasets(self, tmp_path, capsys, write_run):
        everything(write_run)
        out = run(tmp_path, capsys, "--datasets", *FEW_SHOT_DATASETS[1:])
        assert " * " not in out

    def test_not_with_a_dataset_of_ones_own(self, tmp_path, capsys, write_run):
        everything(write_run)
        write_run("train_base", "folder", 1, 80.0)
        write_run("test_new", "folder", 1, 80.0)
        out = run(tmp_path, capsys)
        assert " * " not in out
        assert "ublished" not in out

    def test_never_for_the_suite_which_has_its_own_section(self, tmp_path, capsys, write_run):
        everything(write_run)
        write_run("train_base", "shapes", 1, 99.0)
        write_run("test_new", "shapes", 1, 99.0)
        real, suite = run(tmp_path, capsys).split("base2novel (Shapes suite, demonstration)")
        assert "MaPLe *" in real
        assert "shapes" not in real
        assert "80.00" in next(x for x in real.splitlines() if x.startswith("mean "))
        assert "*" not in suite
        assert "not comparable to published" in suite
        assert "not comparable" not in real

    def test_few_shot_by_column(self, tmp_path, capsys, write_run):
        for dataset in FEW_SHOT_DATASETS:
            write_run("train", dataset, 1, 60.0, shots=1, protocol="few_shot")
        write_run("train", "dtd", 1, 70.0, shots=4, protocol="few_shot")
        out = run(tmp_path, capsys, protocol="few_shot")
        row = next(line for line in out.splitlines() if "CoOp *" in line)
        assert row.split() == ["mean", "CoOp", "*", "68.09", "-"]

    def test_cross_dataset_by_mean(self, tmp_path, capsys, write_run):
        source = write_run("train", "imagenet", 1, 70.0, protocol="cross_dataset")
        for name in ("dtd", *IMAGENET_SHIFTS):
            write_run("test", name, 1, 60.0, protocol="cross_dataset", model_dir=str(source))
        out = run(tmp_path, capsys, protocol="cross_dataset")
        targets, shifts = out.split("\nshifts\n")
        assert "CoOp *" not in targets
        row = next(line for line in shifts.splitlines() if line.startswith("CoOp *"))
        assert row.split()[2:] == ["71.51", "64.20", "47.99", "49.71", "75.21", "59.28"]

    def test_not_in_a_section_with_a_target_of_the_suite(self, tmp_path, capsys, write_run):
        source = write_run("train", "imagenet", 1, 70.0, protocol="cross_dataset")
        for name in ("shapes_colours", *IMAGENET_SHIFTS):
            write_run("test", name, 1, 60.0, protocol="cross_dataset", model_dir=str(source))
        out = run(tmp_path, capsys, protocol="cross_dataset")
        assert "*" not in out
        assert "not comparable to published" in out


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def ink(path):
    from matplotlib.image import imread

    return (imread(path)[..., :3].min(axis=2) < 0.9).mean()


def test_few_shot_curves(tmp_path, capsys, write_run):
    for dataset in ("dtd", "eurosat"):
        for shots in (1, 4, 16):
            for seed in (1, 2):
                accuracy = 40.0 + shots + seed
                write_run("train", dataset, seed, accuracy, shots=shots, protocol="few_shot")
    file = tmp_path / "curves.png"
    run(tmp_path, capsys, "--plot", str(file), protocol="few_shot")
    # Two datasets and their mean side by side, 3.6 x 2.8 inches each at 120 dots per inch.
    assert png_size(file) == (3 * 432, 336)
    assert 0.01 < ink(file) < 0.5


def test_curves_say_what_they_show(tmp_path, write_run, monkeypatch):
    from matplotlib.figure import Figure

    from scripts import report
    from scripts.reporting.results import Selection

    trainers = ["ZeroshotCLIP", "LightRA", "RAda"]
    for shots in (1, 16):
        for trainer in trainers:
            write_run("train", "shapes", 1, 40.0, shots=shots, protocol="few_shot", trainer=trainer)
    drawn = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), original(self, *a, **k))
    )
    sections = report.build(Selection("few_shot", tmp_path)).sections
    report.save_figure(sections, tmp_path / "curves.svg")
    (figure,) = drawn
    (axis,) = figure.axes
    assert axis.get_title() == "shapes (demonstration)"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("images per class", "accuracy (%)")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "16"]
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(trainers)
    assert 0 <= legend.get_window_extent().x0
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    assert list(axis.lines[0].get_ydata()) == [40.0, 40.0]
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")


@pytest.mark.usefixtures("two_trainers")
def test_base2novel_dots(tmp_path, capsys):
    file = tmp_path / "dots.png"
    run(tmp_path, capsys, "--plot", str(file))
    # Two datasets and their mean side by side, 2.4 inches each, beside the methods' names.
    width, height = png_size(file)
    assert width == int(120 * (3 * 2.4 + 0.3 + 0.07 * len("LightRA")))
    assert 150 < height < 350
    assert 0.01 < ink(file) < 0.5


def test_nothing_to_report(tmp_path, capsys):
    assert main(["--protocol", "few_shot", "--output", str(tmp_path)]) == 1
    assert str(tmp_path / "few_shot") in capsys.readouterr().err


@pytest.mark.usefixtures("two_trainers")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "base2new"], "Did you mean 'base2novel'"),
        (["--protocol", "base2novel", "--format", "pdf"], "Available: text, markdown, csv, latex"),
        (["--protocol", "base2novel", "--trainer", "Lightra"], "Did you mean 'LightRA'"),
        (
            ["--protocol", "base2novel", "--cfg", "base2novel base2nvel"],
            "Did you mean 'base2novel'",
        ),
        (["--protocol", "base2novel", "--seeds", "one"], "--seeds: 'one'"),
        (["--protocol", "base2novel", "--plot", "x.jpeg"], "must end in one of .png"),
    ],
)
def test_bad_input(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--output", str(tmp_path)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
