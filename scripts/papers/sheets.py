"""A paper's table as Markdown, LaTeX and a picture."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from dassl.utils.files import atomic_write
from scripts.papers.cells import Cell, Grid
from scripts.reporting.sections import SUITE_LINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPARED_LINE = "Cells are ours / the paper's / ours minus the paper's; - is what there is not."
MISSING = "-"
# What LaTeX reads as commands, and the signs that plain LaTeX fonts lack.
ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}
# Sizes of a picture, in inches: a character and a line of a table, and of the notes below it.
CHARACTER, LINE, NOTE_CHARACTER, NOTE_LINE = 0.075, 0.22, 0.058, 0.15
HEADING_CHARACTER = 0.11
LEAST_WIDTH = 7.0
GAP = 3  # characters between two columns


@dataclass
class Sheet:
    """A title, grids of cells, and what stands below them."""

    title: str
    grids: Sequence[Grid]
    notes: Sequence[str] = ()
    demonstration: bool = False
    captions: Sequence[str] = ()  # how the numbers were made
    pictures: Sequence[Path] = ()
    marks: list[str] = field(default_factory=list)  # footnotes, numbered in order of appearance

    def __post_init__(self) -> None:
        """Number the footnotes of all grids."""
        for grid in self.grids:
            for _, marks, cells in grid.rows:
                self._number(marks)
                for cell in cells:
                    self._number(cell.marks)

    def _number(self, marks: Iterable[str]) -> None:
        self.marks += [mark for mark in dict.fromkeys(marks) if mark not in self.marks]

    @property
    def heading(self) -> str:
        """The title; it says what is a demonstration."""
        return f"{self.title}{' (demonstration on Shapes)' if self.demonstration else ''}"

    def lines(self) -> list[str]:
        """What stands below the grids: how to read them, then the numbered footnotes."""
        first = [SUITE_LINE] if self.demonstration else [COMPARED_LINE] if self.grids else []
        lines = [*first, *self.captions, *self.notes]
        return [*lines, *(f"[{number}] {mark}" for number, mark in enumerate(self.marks, 1))]

    def signs(self, marks: Iterable[str]) -> str:
        """Return `` [1, 3]`` for footnotes; nothing for none."""
        numbers = sorted(self.marks.index(mark) + 1 for mark in dict.fromkeys(marks))
        return f" [{', '.join(map(str, numbers))}]" if numbers else ""

    def cell(self, cell: Cell) -> str:
        """Return ``75.19 ± 0.40 / 79.17 / -3.98 [2]``; only ours in a demonstration."""
        ours = MISSING
        if cell.ours is not None:
            deviation = "" if cell.ours.std is None else f" ± {cell.ours.std:.2f}"
            ours = f"{cell.ours.mean:.2f}{deviation}"
        if not self.demonstration:
            paper = MISSING if cell.paper is None else f"{cell.paper:.2f}"
            difference = MISSING if cell.difference is None else f"{cell.difference:+.2f}"
            ours = f"{ours} / {paper} / {difference}"
        return f"{ours}{self.signs(cell.marks)}"

    def texts(self, grid: Grid) -> list[list[str]]:
        """Return a grid's rows as printed, labels first."""
        return [
            [f"{label}{self.signs(marks)}", *map(self.cell, cells)]
            for label, marks, cells in grid.rows
        ]


def markdown(sheet: Sheet) -> str:
    """Return a sheet as Markdown."""
    blocks = [f"# {sheet.heading}"]
    for grid in sheet.grids:
        table = tabulate(
            sheet.texts(grid),
            headers=["", *grid.header],
            tablefmt="pipe",
            colalign=["left", *["right"] * len(grid.header)],
            disable_numparse=True,
        )
        blocks += [*([f"## {grid.title}"] if grid.title else []), table]
    blocks += [f"![{path.stem}]({path.name})" for path in sheet.pictures]
    return "\n\n".join([*blocks, *sheet.lines()]) + "\n"


def latex(sheet: Sheet) -> str:
    """Return a sheet as LaTeX for the package booktabs: a float for each grid."""
    blocks = []
    for number, grid in enumerate(sheet.grids):
        table = tabulate(
            [[_escaped(text) for text in row] for row in sheet.texts(grid)],
            headers=["", *map(_escaped, grid.header)],
            tablefmt="latex_raw",
            colalign=["left", *["right"] * len(grid.header)],
            disable_numparse=True,
        )
        # tabulate has no format that is both raw and booktabs: its three rules are these.
        for rule in ("toprule", "midrule", "bottomrule"):
            table = table.replace(r"\hline", f"\\{rule}", 1)
        part = f": {grid.title}" if grid.title else ""
        caption = _escaped(f"{sheet.heading}{part}")
        block = [r"\begin{table}[p]", r"\centering", rf"\caption{{{caption}}}", table]
        if number == len(sheet.grids) - 1:
            block += [r"\par\footnotesize", *(_escaped(line) + r"\par" for line in sheet.lines())]
        blocks.append("\n".join([*block, r"\end{table}"]))
    return "\n\n".join(blocks) + "\n"


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, ESCAPES)), lambda found: ESCAPES[found[0]], text)


def save_picture(sheet: Sheet, path: Path) -> None:
    """Draw a sheet's grids, one below the other, with the lines below them."""
    from matplotlib.figure import Figure  # takes longer than all that a table needs

    texts = [sheet.texts(grid) for grid in sheet.grids]
    sizes = [
        [max(map(len, column)) for column in zip(("", *grid.header), *rows, strict=True)]
        for grid, rows in zip(sheet.grids, texts, strict=True)
    ]
    longest = max(sum(one) + GAP * len(one) for one in sizes)
    width = max(LEAST_WIDTH, CHARACTER * longest, HEADING_CHARACTER * len(sheet.heading))
    most = int(0.96 * width / NOTE_CHARACTER)
    notes = [part for line in sheet.lines() for part in textwrap.wrap(line, most)]
    heights = [LINE * (len(rows) + 2.5) for rows in texts]
    total = 0.6 + sum(heights) + NOTE_LINE * len(notes) + 0.3  # inches
    figure = Figure(figsize=(width, total))
    figure.text(0.02, 1 - 0.35 / total, sheet.heading, fontsize=12, fontweight="bold")
    top = 0.6
    for grid, rows, columns, height in zip(sheet.grids, texts, sizes, heights, strict=True):
        axis = figure.add_axes((0.02, 1 - (top + height) / total, 0.96, height / total))
        _draw_grid(axis, grid, rows, columns)
        top += height
    figure.text(0.02, 0.15 / total, "\n".join(notes), fontsize=7, va="bottom", linespacing=1.35)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)


def _draw_grid(axis: Axes, grid: Grid, rows: Sequence[Sequence[str]], sizes: Sequence[int]) -> None:
    """Draw a grid as books print tables: labels left, numbers right, three rules."""
    axis.set_axis_off()
    length = len(rows) + 2.5  # lines: title, header, rows, half a line to the next grid
    axis.set_xlim(0, sum(sizes) + GAP * len(sizes))
    axis.set_ylim(length, 0)
    axis.text(0, 0.6, grid.title, fontsize=9, fontweight="bold", va="center")
    right = 0.0
    for column, size in enumerate(sizes):
        right += size + GAP
        side, x = ("right", right) if column else ("left", 0.0)
        words = [("", *grid.header)[column], *(row[column] for row in rows)]
        for line, word in enumerate(words):
            axis.text(x, line + 1.6, word, fontsize=8, ha=side, va="center")
    for level, weight in ((1.1, 1.0), (2.1, 0.6), (length - 0.4, 1.0)):
        axis.axhline(level, color="black", linewidth=weight)
