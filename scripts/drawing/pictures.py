"""Drawing of what `scripts.drawing.mask_values` collects; RAda (arXiv:2507.15480), appendix B."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from PIL import Image

from dassl.utils.files import atomic_write
from scripts.drawing.mask_values import ValueCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DPI = 150
DIVERGING = "RdBu_r"
MARKERS = "os^DvPX*"
LEGEND_ROWS = 28
TITLE_WIDTH = 34  # characters beside a picture
# Share of the values that a heat map's colours cover. CLIP's features are far larger in a few
# dimensions than in all others, which would look white if the colours covered every value.
COVERED = 0.995


class HeatMap(NamedTuple):
    """One row of :func:`save_heat_maps`."""

    picture: Image.Image  # RGB
    lines: Sequence[str]  # file name, true and predicted class
    names: Sequence[str]  # of the k classes shown
    own: int | None  # which of them is the true class; None if none is
    mask: np.ndarray  # M, (k, D)
    rational: np.ndarray  # R, (k, D)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix, whole or not at all."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=DPI)


def save_scatter(
    path: Path,
    panels: Sequence[tuple[str, np.ndarray]],
    label: np.ndarray,
    names: Sequence[str],
    title: str,
) -> None:
    """Draw points coloured by class, panels side by side.

    Args:
        path: File to write, .png or .pdf.
        panels: Title and points (N, 2) of each.
        label: Class of each point, (N,).
        names: Name of every class.
        title: Of the figure.
    """
    shown = sorted(set(label.tolist()))
    columns = -(-len(shown) // LEGEND_ROWS)
    figure = Figure(figsize=(5.2 * len(panels) + 2.0 * columns, 5.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (panel, points) in zip(axes, panels, strict=True):
        for number, one in enumerate(shown):
            mine = points[label == one]
            axis.scatter(mine[:, 0], mine[:, 1], s=16, label=names[one], **_style(number))
        axis.set_title(panel, fontsize="medium")
        axis.set_xlabel("t-SNE dimension 1 (arbitrary unit)")
        axis.set_ylabel("t-SNE dimension 2 (arbitrary unit)")
        axis.set_box_aspect(1)
        axis.grid(alpha=0.2)
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside right upper", ncols=columns, fontsize="small", title="class"
    )
    wrapped = textwrap.fill(title, 52 * len(panels))  # the legend is on the right
    figure.suptitle(wrapped, x=0.02, horizontalalignment="left")
    save(figure, path)


def _style(number: int) -> dict[str, object]:
    """Colour and marker of the class drawn as the ``number``-th; 160 of them differ."""
    colour = matplotlib.colormaps["tab20"](number % 20)
    # Neighbours of equal hue differ in shape too, for readers who cannot tell colours apart.
    return {"color": colour, "marker": MARKERS[(number // 20 + number) % len(MARKERS)]}


def save_histogram(path: Path, counts: ValueCounts, title: str) -> None:
    """Draw how often the mask takes which value, on a logarithmic axis."""
    edges, bars = counts.bars()
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.stairs(bars, edges, fill=True, color="C0", alpha=0.8)
    axis.axvline(1.0, color="black", linestyle="--", linewidth=1, label="M = 1: CLIP unchanged")
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.5)
    room = max(0.02 * (edges[-1] - edges[0]), 0.002)
    axis.set_xlim(min(edges[0], 1.0) - room, max(edges[-1], 1.0) + room)
    axis.set_xlabel("value of the mask, M[b, k, d] (a factor)")
    axis.set_ylabel(f"values per bin of {edges[1] - edges[0]:.2g} (log scale)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    facts = [f"{counts.total:,} values from {counts.low:.3g} to {counts.high:.3g}"]
    for value, number in ((0, counts.zeros), (1, counts.ones)):
        if number:
            facts.append(f"{100 * number / counts.total:.3g}% exactly {value}")
    axis.set_title(f"{title}\n{', '.join(facts)}", fontsize="medium")
    save(figure, path)


def save_heat_maps(path: Path, maps: Sequence[HeatMap], title: str) -> None:
    """Draw M, R and M * R of images, one row each, with common colours per column."""
    heights = [max(2.0, 0.14 * len(one.names) + 0.7) for one in maps]
    figure = Figure(figsize=(16, sum(heights) + 1.6), layout="constrained")
    axes = figure.subplots(
        len(maps),
        4,
        squeeze=False,
        gridspec_kw={"width_ratios": [1.25, 2.3, 2.3, 2.3], "height_ratios": heights},
    )
    masks = [one.mask for one in maps]
    rational = [one.rational for one in maps]
    product = [mask * plain for mask, plain in zip(masks, rational, strict=True)]
    extent = _half_range(rational + product, 0.0)  # the same for R and M * R, to compare them
    columns = (
        ("mask M", masks, 1.0, _half_range(masks, 1.0), "M (a factor)"),
        ("rational matrix R", rational, 0.0, extent, "R = f · h (a share of the cosine)"),
        ("masked, M * R", product, 0.0, extent, "M * R (a share of the cosine)"),
    )
    for row, one in enumerate(maps):
        _draw_picture(axes[row, 0], one)
    for column, (name, matrices, centre, half, label) in enumerate(columns, start=1):
        norm = CenteredNorm(centre, half)
        for axis, matrix in zip(axes[:, column], matrices, strict=True):
            image = _draw_map(axis, matrix, norm, name)
        bar = figure.colorbar(
            image, ax=axes[:, column], location="bottom", extend="both", aspect=40, shrink=0.8,
            pad=0.03,
        )  # fmt: skip
        bar.set_label(label)
        bar.ax.locator_params(nbins=5)
    for axis, one in zip(axes[:, 1], maps, strict=True):
        _name_rows(axis, one)
    figure.suptitle(title)
    save(figure, path)


def _half_range(matrices: Sequence[np.ndarray], centre: float) -> float:
    """How far from the centre the colours reach; never 0."""
    distance = np.abs(np.concatenate([one.ravel() for one in matrices]) - centre)
    return max(float(np.quantile(distance, COVERED)), 1e-6)


def _draw_picture(axis: Axes, one: HeatMap) -> None:
    axis.imshow(one.picture)
    wrapped = [part for line in one.lines for part in textwrap.wrap(line, TITLE_WIDTH)]
    axis.set_title("\n".join(wrapped), fontsize="small", loc="left")
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_map(axis: Axes, matrix: np.ndarray, norm: CenteredNorm, name: str) -> AxesImage:
    axis.set_title(name, fontsize="medium")
    axis.set_xlabel("embedding dimension d")
    axis.set_yticks([])
    return axis.imshow(matrix, cmap=DIVERGING, norm=norm, aspect="auto", interpolation="nearest")


def _name_rows(axis: Axes, one: HeatMap) -> None:
    axis.set_yticks(range(len(one.names)), one.names, fontsize="x-small")
    axis.set_ylabel("class k (bold: true)")
    if one.own is not None:
        axis.get_yticklabels()[one.own].set_fontweight("bold")
