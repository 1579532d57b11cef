"""Collects what the results page shows, and writes it as one file that needs nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dassl.results import RESULT_FORMAT, RESULT_NAME, no_result, read_object
from dassl.utils.files import atomic_write
from scripts.jobs.protocols import PROTOCOLS, RunKey
from scripts.reporting.page import charts
from scripts.reporting.page.details import describe
from scripts.reporting.page.pictures import Pictures
from scripts.reporting.page.rows import PLACE_NAMES, curve_points, points, table_rows
from scripts.reporting.results import Selection, collect
from scripts.reporting.scores import MEAN
from scripts.reporting.sections import Section, build_sections

HERE = Path(__file__).parent
MOST_LINES = 50  # of warnings, notes or folders in one list
# Far enough apart to tell twenty methods from each other, on white and on black.
COLOURS = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#d4a72c", "#b279a2", "#ff9da6"),
    *("#9d755d", "#8b9dc3", "#1f9ed1", "#a05195", "#88b04b", "#d45087", "#2f8f83", "#c77f4d"),
    *("#7a7ad0", "#c2b280", "#6b8e23", "#e377c2"),
)


@dataclass
class Page:
    """The content of a results page.

    Attributes:
        sections: As `_section_content` makes them.
        runs: As `describe` makes them, with ``folder``, a link.
        pictures: Data URLs by dataset and class.
        images: Path and data URL of mistaken images, which ``runs`` count in.
        left_out: Folder and reason of every run that does not count.
        remarks: Lines about the page itself.
    """

    sections: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    pictures: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    images: Sequence[tuple[str, str]] = ()
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def build_page(selection: Selection, pictures: Pictures, links_from: Path | None) -> Page:
    """Collect the selected runs of one protocol, or of all for ``selection.protocol`` "".

    Args:
        selection: Which runs.
        pictures: Embeds examples of classes.
        links_from: Folder of the page, from which links lead to the runs; None where a server
            shows the page, which serves the runs' files below ``output/``.

    Raises:
        ValueError: A selected protocol, trainer or stem has no finished run.
    """
    page = Page()
    for name in [selection.protocol] if selection.protocol else PROTOCOLS:
        # With several protocols, a trainer that one of them lacks is no typing error.
        wanted = replace(selection, protocol=name, must_exist=bool(selection.protocol))
        try:
            runs = collect(wanted)
        except LookupError:
            runs = None
        counted = set() if runs is None else set(runs.directory)
        page.left_out += [(str(path), why_not(path)) for path in left_out(wanted, counted)]
        for section in [] if runs is None else build_sections(runs, wanted):
            number = len(page.sections)
            page.sections.append({"number": number, **_section_content(section)})
            for run in _run_contents(section, selection.output, pictures, links_from):
                page.runs.append({"section": number, **run})
    page.pictures, page.images = pictures.found, pictures.images
    page.remarks = [*pictures.problems, *_unusable([run["no_mistakes"] for run in page.runs])]
    return page


def _unusable(reasons: Sequence[str]) -> list[str]:
    """Return a line if there are runs whose file of predictions cannot be used."""
    found = [reason for reason in reasons if reason]
    more = f" (the first of {len(found)} runs)" if len(found) > 1 else ""
    return [f"No mistaken images: {found[0]}{more}"] if found else []


def _run_contents(
    section: Section, output: Path, pictures: Pictures, links_from: Path | None
) -> Iterator[dict[str, Any]]:
    for run in section.runs.itertuples():
        content = describe(run)
        pictures.add(run.dataset, run.result, [name for name, *_ in content["worst"]])
        content["mistaken"] = [
            [
                [name, percent, pictures.number_of(run.dataset, run.result, image)]
                for name, percent, image in images
            ]
            for images in content["mistaken"]
        ]
        below = run.directory.relative_to(output)
        way = Path("output") / below if links_from is None else _way(run.directory, links_from)
        yield {**content, "folder": quote(way.as_posix())}


def _way(directory: Path, start: Path) -> Path:
    """Return a path from the page's folder, so that both can be moved or copied together."""
    try:
        return Path(os.path.relpath(directory, start))
    except ValueError:  # another drive of Windows
        return directory


def left_out(selection: Selection, counted: set[Path]) -> Iterator[Path]:
    """Yield the folder of every selected run that is not among those that count."""
    base = selection.output / selection.protocol
    for directory in sorted(base.glob("*/*/shots_*/*/*/seed*")):
        key = RunKey.parse(directory)
        if key is None or key.stage not in PROTOCOLS[key.protocol].stages:
            continue
        if selection.accepts(key) and directory not in counted and directory.is_dir():
            yield directory


def why_not(directory: Path) -> str:
    """Say why the result of a run does not count."""
    content = read_object(directory / RESULT_NAME)
    if content is None:
        return no_result(directory)
    form = content.get("format")
    if form != RESULT_FORMAT:
        return f"{RESULT_NAME} is of another version: format {form}, read is {RESULT_FORMAT}"
    if content.get("status") != "complete":
        return f"not finished (status {content.get('status')})"
    return no_result(directory)


def _section_content(section: Section) -> dict[str, Any]:
    """Return a section's tables, charts and lines as plain values."""
    zero_shot = section.zero_shot()
    return {
        "title": section.title,
        "protocol": section.protocol.name,
        "suite": section.suite,
        "methods": [
            {
                "name": name,
                "colour": COLOURS[number % len(COLOURS)],
                "zero_shot": name in zero_shot,
            }
            for number, name in enumerate(section.series)
        ],
        "table": table_rows(section),
        "points": points(section),
        "curves": curve_points(section) if section.protocol.name == "few_shot" else [],
        "charts": _charts(section),
        "captions": section.captions,
        "warnings": section.warnings,
        "notes": section.notes,
    }


def _charts(section: Section) -> list[dict[str, Any]]:
    """Return the charts that a section can fill: the overview above its table, the rest below.

    Each has the name of its specification, which rows of the section it draws (of one dataset, if
    that is named), a title, and whether it belongs to the overview.
    """
    protocol = section.protocol
    by_place = {"few_shot": "curves"}.get(protocol.name) or "base_novel" * protocol.base_to_novel
    found = []
    if by_place:
        rows = "curves" if by_place == "curves" else "points"
        found = [(by_place, rows, place, place) for place in _places(section)]
    elif protocol.crosses:
        axes = {axis for point in points(section) for axis in point}
        if "source" in axes:
            found = [
                (f"source_{axis}", "points", f"Source against {axis}", "")
                for axis in ("targets", "shifts")
                if axis in axes
            ]
    if not by_place:
        found.append(("accuracies", "table", "Accuracy by dataset", ""))
    costs = [("time", "runs", "Time", ""), ("memory", "runs", "Memory", "")]
    overview = [*found[:1], *costs] if by_place else [*found, *costs]
    rest = found[1:] if by_place else []
    keys = ("chart", "rows", "title", "dataset")
    return [
        {**dict(zip(keys, one, strict=True)), "overview": place < len(overview)}
        for place, one in enumerate([*overview, *rest])
    ]


def _places(section: Section) -> list[str]:
    """Return the mean first, which most readers want, then the datasets."""
    datasets = section.datasets()
    return [*([PLACE_NAMES[MEAN]] if len(datasets) > 1 else []), *datasets]


def render(page: Page, version: str = "") -> str:
    """Return the page as HTML; every name in it is escaped.

    With a version, it asks its server whether there is a newer one.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(HERE / "template"), autoescape=True, trim_blocks=True
    )
    content = {
        "sections": [{k: v for k, v in s.items() if k not in _WRITTEN} for s in page.sections],
        "runs": page.runs,
        "pictures": page.pictures,
        "images": page.images,
        "charts": charts.specifications() if page.sections else {},
        "version": version,
    }
    return environment.get_template("page.html").render(
        page=page,
        content=content,
        vega=charts.javascript(),
        made=time.strftime("%Y-%m-%d %H:%M"),
        most=MOST_LINES,
        live=bool(version),
    )


# What the template writes as text, and the script need not have.
_WRITTEN = ("captions", "warnings", "notes")


def save_page(page: Page, path: Path) -> int:
    """Write the page; return its size in bytes."""
    text = render(page)
    with atomic_write(path) as file:
        file.write(text)
    return path.stat().st_size
