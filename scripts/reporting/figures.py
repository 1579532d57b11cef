"""Figures of a protocol: accuracy by shots as curves, everything else as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils.files import atomic_write
from scripts.reporting.scores import MEAN, MEANS
from scripts.reporting.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".pdf", ".svg")
DPI = 120
PANEL = (3.6, 2.8)  # inches
COLUMNS = 4
_METRICS = {"base": "base", "novel": "novel", "hm": "HM", "accuracy": "accuracy"}


def check_plot_path(path: Path) -> Path:
    """Return the path if its suffix names a format that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot: {path} must end in one of {', '.join(SUFFIXES)}.")
    return path


def save_figure(sections: Sequence[Section], path: Path) -> None:
    """Draw the sections of one protocol, one below the other; the suffix chooses the format."""
    # Imported only here, as it takes longer than everything a table needs.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    matplotlib.use("Agg")
    curves = sections[0].protocol.name == "few_shot"
    panels = [(section, name) for section in sections for name in _panels(section)]
    columns = min(COLUMNS, len(panels)) if curves else 1
    rows = math.ceil(len(panels) / columns)
    bars = max(len(section.datasets()) * len(section.series) for section in sections)
    width = PANEL[0] * max(columns, 1.5) if curves else max(2 * PANEL[0], 1.0 + 0.5 * bars)
    figure = Figure(figsize=(width, PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    labels = list(dict.fromkeys(name for one in sections for name in one.series))
    # Colours are set for all sections together, so that a trainer has the same one everywhere.
    colours = {name: f"C{number % 10}" for number, name in enumerate(labels)}
    for axis, (section, panel) in zip(axes, panels, strict=False):
        (_draw_curves if curves else _draw_bars)(axis, section, panel, colours)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    # As many columns as fit, because a legend does not shrink with the figure.
    entry = 0.6 + 0.085 * max(map(len, labels))  # inches of a patch and its label
    beside = max(1, min(len(handles), int(width / entry)))
    figure.legend(handles=handles, loc="outside lower center", ncols=beside)
    figure.suptitle(sections[0].protocol.name)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=DPI)


def _panels(section: Section) -> list[str]:
    """Return what gets a panel: the mean and each dataset, or each metric."""
    if section.protocol.name == "few_shot":
        return section.places()
    return [metric for metric in _METRICS if metric in set(section.scores.metric)]


def _draw_curves(axis: Axes, section: Section, dataset: str, colours: dict[str, str]) -> None:
    for series in section.series:
        found = section.scores.query("series == @series and dataset == @dataset")
        axis.errorbar(
            found["shots"],
            found["mean"],
            yerr=found["std"],  # NaN draws no deviation, where 0 would claim one
            marker="o",
            markersize=4,
            capsize=2,
            color=colours[series],
            label=series,
        )
    shots = section.shots()
    axis.set_xscale("log", base=2)
    axis.set_xticks(shots, [str(count) for count in shots])
    axis.minorticks_off()
    title = "mean over datasets" if dataset == MEAN else dataset
    axis.set_title(f"{title}{' (demonstration)' * section.suite}", fontsize="medium")
    axis.set_xlabel("images per class")
    axis.set_ylabel("accuracy (%)")
    axis.grid(alpha=0.3)


def _draw_bars(axis: Axes, section: Section, metric: str, colours: dict[str, str]) -> None:
    datasets = section.datasets()
    means = [name for name in section.scores.dataset.unique() if name in MEANS]
    places = datasets if len(datasets) == 1 else [*datasets, *means]
    step = 0.8 / len(section.series)
    for number, series in enumerate(section.series):
        found = section.scores.query("series == @series and metric == @metric")
        found = found[found.dataset.isin(places)]
        offset = (number - (len(section.series) - 1) / 2) * step
        axis.bar(
            [places.index(place) + offset for place in found.dataset],
            found["mean"],
            width=step,
            yerr=found["std"],
            capsize=2,
            color=colours[series],
            label=series,
        )
    axis.set_xticks(range(len(places)), places, rotation=30, ha="right", fontsize="small")
    axis.set_title(f"{section.title}: {_METRICS[metric]}", fontsize="medium")
    axis.set_xlabel("dataset")
    axis.set_ylabel("accuracy (%)" if metric != "hm" else "harmonic mean (%)")
    axis.grid(axis="y", alpha=0.3)
