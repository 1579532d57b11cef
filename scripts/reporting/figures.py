"""Figures of a protocol for a paper: few-shot curves, or a dot plot with the methods in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dassl.utils.files import atomic_write
from scripts.jobs.protocols import ALL_IMAGES
from scripts.reporting.scores import MEAN, MEANS
from scripts.reporting.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
DPI = 120
PANEL = (3.6, 2.8)  # inches, of curves
DOTS_WIDTH = 2.4  # inches of a panel of dots
ROW = 0.22  # inches of a method in a panel of dots, or of a line of the legend
COLUMNS = 4
MARKERS = "osD^vPX<>h"  # the star is for zero-shot
PLACE_TITLES = {
    MEAN: "mean over datasets",
    "mean_targets": "mean over targets",
    "mean_shifts": "mean over shifts",
}


class Mark(NamedTuple):
    """How a metric looks in a panel of dots."""

    label: str
    colour: str
    marker: str
    shift: float  # in rows, so that marks of equal numbers do not hide each other


MARKS = {
    "base": Mark("base", "C0", "o", -0.22),
    "novel": Mark("novel", "C1", "s", 0.0),
    "hm": Mark("HM", "C2", "D", 0.22),
    "accuracy": Mark("accuracy", "C0", "o", 0.0),
}


def check_plot_path(path: Path) -> Path:
    """Return the path if its suffix names a format that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot: {path} must end in one of {', '.join(SUFFIXES)}.")
    return path


def save_figure(sections: Sequence[Section], path: Path) -> None:
    """Draw the sections of one protocol; the suffix chooses the format."""
    import matplotlib

    figure = draw_figure(sections)
    # Publishers refuse the bitmap-like fonts that are matplotlib's default in a PDF.
    with matplotlib.rc_context({"pdf.fonttype": 42}), atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=DPI)


def draw_figure(sections: Sequence[Section]) -> Figure:
    """Return the figure: curves by number of images for few-shot, dots for everything else."""
    few_shot = sections[0].protocol.name == "few_shot"
    return _curves(sections) if few_shot else _dots(sections)


# ---------------------------------------------------------------- curves


def _curves(sections: Sequence[Section]) -> Figure:
    """One panel per dataset, of all sections, below each other."""
    from matplotlib.figure import Figure

    panels = [(section, place) for section in sections for place in section.places()]
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    labels = list(dict.fromkeys(name for one in sections for name in one.series))
    width = PANEL[0] * max(columns, 1.5)
    beside = _legend_columns(labels, width)
    # The first line of the legend is taken from the panels, more lines make the figure higher.
    more = math.ceil(len(labels) / beside) - 1
    figure = Figure(figsize=(width, PANEL[1] * rows + ROW * more), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # Set for all sections together, so that a method looks the same everywhere.
    styles = {name: _style(number) for number, name in enumerate(labels)}
    found: dict[str, Any] = {}
    for axis, (section, place) in zip(axes, panels, strict=False):
        _draw_curves(axis, section, place, styles)
        handles, names = axis.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.legend(
        [found[name] for name in labels], labels, loc="outside lower center", ncols=beside
    )
    figure.suptitle(sections[0].protocol.name)
    return figure


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return as many columns as fit, because a legend does not shrink with the figure."""
    entry = 0.7 + 0.085 * max(map(len, labels))  # inches of a line and its label
    return max(1, min(len(labels), int(width / entry)))


def _style(number: int) -> dict[str, Any]:
    """Return how the line of a method looks; twenty differ in colour, line or mark."""
    return {
        "color": f"C{number % 10}",
        "linestyle": "-" if number % 20 < 10 else "--",
        # One step further with each round of colours, so that a colour has another mark then.
        "marker": MARKERS[(number + number // 10) % len(MARKERS)],
    }


def _draw_curves(
    axis: Axes, section: Section, dataset: str, styles: dict[str, dict[str, Any]]
) -> None:
    zero_shot = section.zero_shot()
    place_of = _shot_places(section, bool(zero_shot))
    for series in section.series:
        found = section.scores.query("series == @series and dataset == @dataset")
        if found.empty:
            axis.plot([], [], label=series, **styles[series])  # for the legend
        elif series in zero_shot:
            # It needs no images: all its numbers are the same one.
            axis.plot(
                [place_of[0]],
                found["mean"].iloc[:1],
                label=series,
                **{**styles[series], "marker": "*", "linestyle": "none", "markersize": 11},
            )
        else:
            axis.errorbar(
                [place_of[shots] for shots in found["shots"]],
                found["mean"],
                yerr=found["std"],  # NaN draws no deviation, where 0 would claim one
                markersize=4,
                capsize=2,
                linewidth=1.2,
                elinewidth=0.8,
                label=series,
                **styles[series],
            )
    names = ["all" if shots == ALL_IMAGES else str(shots) for shots in place_of]
    axis.set_xticks(list(place_of.values()), names)
    title = PLACE_TITLES.get(dataset, dataset)
    axis.set_title(f"{title}{' (demonstration)' * section.suite}", fontsize="medium")
    axis.set_xlabel("images per class")
    axis.set_ylabel("accuracy (%)")
    axis.grid(alpha=0.3)


def _shot_places(section: Section, zero_shot: bool) -> dict[int, float]:
    """Return where numbers of images lie on the axis: one step per doubling, 0 one before 1."""
    counts = [shots for shots in section.shots() if shots != ALL_IMAGES]
    places = {0: 0.0} if zero_shot else {}
    places |= {shots: 1 + math.log2(shots) for shots in counts}
    if ALL_IMAGES in section.shots():
        places[ALL_IMAGES] = max(places.values(), default=0.0) + 1
    return places


# ---------------------------------------------------------------- dots


def _dots(sections: Sequence[Section]) -> Figure:
    """Per section one panel for each dataset and mean, the methods in rows."""
    from matplotlib.figure import Figure

    places = [_dot_places(section) for section in sections]
    columns = min(COLUMNS, max(map(len, places)))
    # Of each section: its rows of panels, and the inches of one of them.
    grids = [math.ceil(len(one) / columns) for one in places]
    heights = [0.75 + ROW * max(3, len(section.series)) for section in sections]
    names = max(len(name) for section in sections for name in section.series)
    width = max(DOTS_WIDTH * columns + 0.3 + 0.07 * names, 4.8)
    inches = [0.3 + rows * height for rows, height in zip(grids, heights, strict=True)]
    figure = Figure(figsize=(width, sum(inches) + 0.4), layout="constrained")
    # The legend has a part of its own: outside of a part, constrained layout knows no legend.
    parts = figure.subfigures(len(sections) + 1, 1, height_ratios=[*inches, 0.4], squeeze=False)
    for part, section, own, rows in zip(parts[:, 0], sections, places, grids, strict=False):
        part.suptitle(section.title, fontsize="medium")
        axes = part.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axis, place in zip(axes, own, strict=False):
            _draw_dots(axis, section, place)
        for axis in axes[len(own) :]:
            axis.set_visible(False)
    _dots_legend(parts[-1, 0], sections)
    return figure


def _dots_legend(part: Any, sections: Sequence[Section]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=mark.colour, marker=mark.marker, linestyle="none", label=mark.label)
        for mark in (MARKS[metric] for metric in _metrics(sections))
    ]
    for name in dict.fromkeys(name for one in sections for name in one.zero_shot()[:1]):
        handles.append(Line2D([], [], color="grey", linestyle="--", label=name))
    part.legend(handles=handles, loc="center", ncols=len(handles), fontsize="small", frameon=False)


def _metrics(sections: Sequence[Section]) -> list[str]:
    return [name for name in MARKS if any(name in set(one.scores.metric) for one in sections)]


def _dot_places(section: Section) -> list[str]:
    """Return what gets a panel: means first, then the datasets."""
    datasets = section.datasets()
    means = [name for name in section.scores.dataset.unique() if name in MEANS]
    return [*(means if len(datasets) > 1 else []), *datasets]


def _draw_dots(axis: Axes, section: Section, place: str) -> None:
    """Draw each metric as a mark with its deviation, zero-shot's also as a line across."""
    rows = {name: number for number, name in enumerate(section.series)}
    reference = section.zero_shot()[:1]
    here = section.scores[section.scores.dataset == place]
    for metric in _metrics([section]):
        mark, found = MARKS[metric], here[here.metric == metric]
        axis.errorbar(
            found["mean"],
            [rows[name] + mark.shift for name in found.series],
            xerr=found["std"],  # NaN draws no deviation, where 0 would claim one
            fmt=mark.marker,
            color=mark.colour,
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            label=mark.label,
        )
        for value in found["mean"][found.series.isin(reference)]:
            axis.axvline(value, color=mark.colour, linestyle="--", linewidth=0.8, alpha=0.7)
    axis.set_yticks(list(rows.values()), list(rows), fontsize="small")
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first method on top
    axis.set_title(PLACE_TITLES.get(place, place), fontsize="small")
    axis.set_xlabel("accuracy (%)", fontsize="small")
    axis.tick_params(axis="x", labelsize="small")
    axis.grid(axis="x", alpha=0.3)
    for number in range(1, len(rows), 2):  # every other row, to lead the eye to its name
        axis.axhspan(number - 0.5, number + 0.5, color="black", alpha=0.04, linewidth=0)
