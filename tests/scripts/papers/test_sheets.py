"""Sheets as Markdown, LaTeX and pictures."""

import re

import pytest
from matplotlib.figure import Figure

from scripts.papers import sweep
from scripts.papers.catalogue import read_catalogue
from scripts.papers.cells import Cell, Grid
from scripts.papers.sheets import Sheet, latex, markdown, save_picture
from scripts.reporting.scores import Stat

CELLS = (
    Cell(Stat(75.186, 0.404, 3), 79.17),
    Cell(Stat(56.89, None, 1), 58.7, ("a misprint of 5% & more_",), compared=False),
    Cell(None, 67.42, ("no data",)),
)
GRIDS = [
    Grid("dtd", ("base", "novel", "HM"), (("RAda", ("one seed",), CELLS),)),
    Grid("euro_sat", ("base", "novel", "HM"), (("RAda", (), CELLS), ("C {x}^2", (), CELLS))),
]


@pytest.fixture
def sheet():
    return Sheet("Table 2", GRIDS, ["A note."])


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that draws and gives the figure instead of writing it."""

    def caught(draw, *args):
        found = []
        monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: found.append(self))
        draw(*args, tmp_path / "x.png")
        return found[0]

    return caught


def test_cells_and_footnotes(sheet):
    assert sheet.texts(GRIDS[0]) == [
        ["RAda [1]", "75.19 ± 0.40 / 79.17 / -3.98", "56.89 / 58.70 / - [2]", "- / 67.42 / - [3]"]
    ]
    assert sheet.lines()[-4:] == [
        "A note.",
        "[1] one seed",
        "[2] a misprint of 5% & more_",
        "[3] no data",
    ]


def test_markdown(sheet):
    lines = markdown(sheet).splitlines()
    assert lines[0] == "# Table 2"
    assert [line for line in lines if line.startswith("## ")] == ["## dtd", "## euro_sat"]
    rows = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}
    assert len(rows) == 2 * 2 + 3
    assert "Cells are ours / the paper's / ours minus the paper's" in markdown(sheet)


def test_demonstration_prints_ours_alone():
    sheet = Sheet("Table 2", GRIDS, demonstration=True)
    assert sheet.texts(GRIDS[0])[0][1:] == ["75.19 ± 0.40", "56.89 [2]", "- [3]"]
    text = markdown(sheet)
    assert text.startswith("# Table 2 (demonstration on Shapes)")
    assert "not comparable to published ones" in text
    assert "79.17" not in text


def test_latex_has_balanced_columns_and_escapes(sheet):
    text = latex(sheet)
    tables = re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tables) == 2
    for columns, body in tables:
        assert columns == "lrrr"
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 2
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1] * 3
        assert r"\hline" not in body
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    assert r"75.19 $\pm$ 0.40 / 79.17 / -3.98" in text
    assert r"[2] a misprint of 5\% \& more\_" in text
    assert r"euro\_sat" in text
    assert r"C \{x\}\textasciicircum{}2" in text
    assert text.isascii()
    # The footnotes stand once, below the last grid.
    assert text.count("[3] no data") == 1
    assert text.index("[3] no data") > text.rindex(r"\end{tabular}")


def test_picture_holds_every_text(sheet, drawn):
    figure = drawn(save_picture, sheet)
    assert len(figure.axes) == 2
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[0] == "dtd"
    assert {"base", "novel", "HM", *sheet.texts(GRIDS[0])[0]} <= set(words)
    below = figure.texts[-1].get_text()
    assert "[3] no data" in below
    assert figure.texts[0].get_text() == "Table 2"
    rights = {text.get_position()[0] for text in figure.axes[0].texts if text.get_ha() == "right"}
    assert len(rights) == 3, "columns end flush right"
    assert all(len(axis.get_lines()) == 3 for axis in figure.axes)


def test_picture_is_written(sheet, tmp_path):
    save_picture(sheet, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_sweep(fill, drawn):
    values = {f"alpha {alpha:g}": (80 + alpha, 70 - alpha, 75.0) for alpha in (0, 0.5, 1.5, 4)}
    numbers = {name: {"mean": each, "dtd": each} for name, each in values.items()}
    numbers["CLIP"] = dict.fromkeys(("mean", "dtd"), (53.24, 59.9, 56.37))
    entry = read_catalogue()["figure6"]
    labels = [row.label for row in entry.rows]
    sheet = Sheet(entry.title, fill("figure6", ["dtd"], numbers, *labels))
    figure = drawn(sweep.save_sweep, entry, sheet)
    (axis,) = figure.axes
    assert axis.get_xlabel() == "weight alpha of the regulariser"
    assert axis.get_ylabel() == "accuracy (%)"
    assert axis.get_xticks().tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    base, novel, hm = (container[0] for container in axis.containers)
    assert base.get_xdata().tolist() == [0, 0.5, 1.5, 4], "what has not run is left out"
    assert base.get_ydata().tolist() == [80, 80.5, 81.5, 84]
    assert novel.get_ydata().tolist() == [70, 69.5, 68.5, 66]
    assert hm.get_ydata().tolist() == [75] * 4
    levels = [line.get_ydata()[0] for line in axis.get_lines() if line.get_linestyle() == ":"]
    assert levels == [53.24, 59.9, 56.37]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == sorted(
        f"{a}, {m}" for a in ("CLIP", "RAda") for m in ("base", "novel", "HM")
    )
