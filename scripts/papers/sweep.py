"""Accuracy against one number of the method, as Figure 6 of RAda has it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from scripts.drawing.pictures import save
from scripts.papers.catalogue import Entry
from scripts.papers.sheets import Sheet

COLOURS = {"base": "C0", "novel": "C1", "HM": "C2"}


def save_sweep(entry: Entry, sheet: Sheet, path: Path) -> None:
    """Draw a sweep's means: curves of what has a value, dotted lines of what has none."""
    (grid,) = sheet.grids
    values = {row.label: row.value for row in entry.rows}
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for column, metric in enumerate(grid.header):
        points = []
        for label, _, cells in grid.rows:
            ours, value = cells[column].ours, values[label]
            if ours is not None and value is None:
                name = f"{label}, {metric}"
                axis.axhline(ours.mean, color=COLOURS[metric], linestyle=":", label=name)
            elif ours is not None:
                # NaN draws no deviation, where 0 would claim one.
                points.append((value, ours.mean, float("nan") if ours.std is None else ours.std))
        if points:
            x, y, deviation = zip(*points, strict=True)
            axis.errorbar(
                x, y, yerr=deviation, marker="o", markersize=4, capsize=2, color=COLOURS[metric],
                label=f"RAda, {metric}",
            )  # fmt: skip
    axis.set_xlabel(entry.axis)
    axis.set_ylabel("accuracy (%)")
    axis.set_xticks(sorted(value for value in values.values() if value is not None))
    axis.set_title(f"{sheet.heading}\n{grid.title}", fontsize="medium")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    save(figure, path)
