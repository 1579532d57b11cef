#!/usr/bin/env python3
"""Print a protocol's tables from finished runs, and draw its figures.

    python scripts/report.py --protocol base2novel
    python scripts/report.py --protocol few_shot --trainer LightRA RAda --plot few_shot.png
    python scripts/report.py --protocol cross_dataset --format latex --save table.tex
    python scripts/report.py --save report.html         # all protocols on one page, with charts
    python scripts/report.py --serve                    # the same in a browser, while runs finish

Only runs whose ``result.json`` says they are complete are counted. Lines below a table name what
makes its numbers doubtful: missing seeds, collapsed seeds, seeds run with different configs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import file_flag, path_flag
from dassl.errors import plain_main
from dassl.names import check_availability
from dassl.utils.files import atomic_write
from scripts.jobs.protocols import (
    PROTOCOLS,
    read_integers,
    read_shots,
    split_words,
    work_folder,
)
from scripts.reporting.figures import check_plot_path, save_figure
from scripts.reporting.page.build import build_page, render, save_page
from scripts.reporting.page.charts import check_installed
from scripts.reporting.page.pictures import Pictures
from scripts.reporting.page.server import PORT, LivePage, serve
from scripts.reporting.results import Selection, collect
from scripts.reporting.sections import Section, Table, build_sections

PAGE = "html"
FORMATS = ("text", "markdown", "csv", "latex", PAGE)
_SUFFIX_FORMATS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": PAGE}
_TABULATE = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}
CSV_HEADER = (
    "protocol source demonstration dataset trainer cfg shots metric mean std n val_policy".split()
)


@dataclass(frozen=True)
class Report:
    """Sections of a protocol and how they are written."""

    sections: list[Section]

    def render(self, form: str) -> str:
        """Return the report as text, markdown, csv or latex.

        CSV has no place for warnings; ``warnings`` has them.
        """
        if form == "csv":
            return self._csv()
        return "\n\n".join(_render_section(section, form) for section in self.sections)

    def warnings(self) -> list[str]:
        """Return the warnings of all sections."""
        return [line for section in self.sections for line in section.warnings]

    def _csv(self) -> str:
        """Return one line per number at full precision; a missing deviation is empty."""
        import pandas as pd  # only where a table is made, see scripts.reporting.results

        frames = [
            section.scores.assign(
                protocol=section.protocol.name,
                source=section.source,
                demonstration=int(section.suite),
            )
            for section in self.sections
        ]
        text = pd.concat(frames).to_csv(columns=CSV_HEADER, index=False, lineterminator="\n")
        return text.rstrip("\n")


def _render_table(table: Table, form: str) -> str:
    align = ["left"] * table.labels + ["right"] * (len(table.header) - table.labels)
    text = tabulate(
        table.rows,
        headers=table.header,
        tablefmt=_TABULATE[form],
        colalign=align if table.rows else None,
        disable_numparse=True,
    )
    # Plain LaTeX has the sign only in math mode.
    return text.replace("±", r"$\pm$") if form == "latex" else text


def _render_section(section: Section, form: str) -> str:
    prefix = {"text": "", "markdown": "", "latex": "% "}[form]
    warning = {"text": "WARNING ", "markdown": "> **Warning** ", "latex": "% WARNING "}[form]
    title = f"### {section.title}" if form == "markdown" else f"{prefix}{section.title}"
    blocks = [title]
    gap = "\n\n" if form == "markdown" else "\n"  # Markdown joins lines without one between them
    for table in section.tables:
        heading = f"{prefix}{table.title}"
        blocks.append(f"{heading}{gap}{_render_table(table, form)}")
    blocks.append(gap.join(f"{prefix}{line}" for line in section.captions))
    if section.warnings:
        blocks.append(gap.join(f"{warning}{line}" for line in section.warnings))
    if section.notes:
        blocks.append(gap.join(f"{prefix}Note: {line}" for line in section.notes))
    return "\n\n".join(blocks)


def build(selection: Selection) -> Report:
    """Collect the selected runs into a report; a LookupError if none of them has finished."""
    return Report(build_sections(collect(selection), selection))


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="Print a protocol's tables from finished runs."
    )
    add = parser.add_argument
    add("--protocol", default="", help=f"{' | '.join(PROTOCOLS)}; default for html: all")
    add(
        "--output",
        type=file_flag,
        default=work_folder() / "output",
        help="default: output in the repository",
    )
    for flag in ("--trainer", "--datasets", "--cfg"):
        add(flag, nargs="+", default=[], metavar="NAME", help="default: all there are")
    for flag in ("--shots", "--seeds"):
        add(flag, nargs="+", default=[], metavar="N", help="default: all there are")
    add("--format", metavar="F", help=f"{' | '.join(FORMATS)}; default: by --save, else text")
    add("--save", type=file_flag, metavar="FILE", help="write the tables there too")
    add("--plot", type=file_flag, metavar="FILE.png", help="draw them there (.png, .pdf, .svg)")
    add(
        "--serve",
        nargs="?",
        const=PORT,
        metavar="PORT",
        help=f"show the html page to this machine's browsers, renewed while runs finish; {PORT}",
    )
    add("--pictures", default=2, metavar="N", help="html: examples of a bad class, default 2")
    add("--data-root", type=path_flag, default="", metavar="DIR", help="html: where images are now")
    return parser


def check_flags(args: argparse.Namespace, form: str) -> None:
    """Check that the flags fit each other; ValueError."""
    if form != PAGE:
        if args.serve is not None:
            raise ValueError(f"--serve shows the html page: leave out --format {form}")
        if not args.protocol:
            raise ValueError(f"--format {form} needs --protocol: {' | '.join(PROTOCOLS)}")
        if args.plot:
            check_plot_path(args.plot)
        return
    if args.protocol:
        check_availability(args.protocol, PROTOCOLS, "--protocol")
    if args.plot:
        raise ValueError("--plot: the html page has charts of its own; draw files without html")
    if (args.save is None) == (args.serve is None):
        raise ValueError("--format html needs either --save FILE.html or --serve")
    check_installed()


def write_page(args: argparse.Namespace, selection: Selection) -> int:
    """Write the results page to ``--save`` and return 0; LookupError if no run has finished."""
    pictures = Pictures(args.pictures, args.data_root)
    page = build_page(selection, pictures, args.save.absolute().parent)
    if not page.sections:
        for directory, why in page.left_out[:10]:
            print(f"not counted: {directory}: {why}", file=sys.stderr)
        raise LookupError(f"No finished run under {selection.output} is selected.")
    try:
        size = save_page(page, args.save)
    except OSError as error:
        return _not_written(error)
    for line in page.remarks:
        print(f"WARNING {line}", file=sys.stderr)
    counts = f"finished runs: {len(page.runs)}, not counted: {len(page.left_out)}"
    print(f"{args.save} written; {counts}; {size / 1e6:.1f} MB")
    return 0


def _not_written(error: OSError) -> int:
    print(f"--save or --plot: {error}", file=sys.stderr)
    return 1


def serve_page(args: argparse.Namespace, selection: Selection) -> int:
    """Show the results page to this machine's browsers until Ctrl-C; return 0."""
    # While a sweep runs, a name may not have a result yet.
    selection = replace(selection, must_exist=False)
    pictures = Pictures(args.pictures, args.data_root)  # one, since it remembers what it has read

    def make(version: str) -> str:
        return render(build_page(selection, pictures, None), version)

    serve(LivePage(selection.output, make), args.serve)
    return 0


def write_tables(args: argparse.Namespace, selection: Selection, form: str) -> int:
    """Print the tables, and write them and the figure where that is asked for; return 0 or 1."""
    report = build(selection)
    text = report.render(form)
    try:
        if args.save:
            with atomic_write(args.save) as file:
                file.write(f"{text}\n")
        if args.plot:
            save_figure(report.sections, args.plot)
    except OSError as error:
        return _not_written(error)
    print(text)
    if form == "csv":
        for line in report.warnings():
            print(f"WARNING {line}", file=sys.stderr)
    return 0


def _number(flag: str, value: str | int) -> int:
    (number,) = read_integers(flag, [str(value)], least=0)
    return number


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 when there is nothing to report."""
    parser = build_parser()
    args = parser.parse_args(argv)
    suffix = args.save.suffix.lower() if args.save else ""
    usual = PAGE if args.serve is not None else _SUFFIX_FORMATS.get(suffix, "text")
    try:
        form = check_availability(args.format or usual, FORMATS, "--format")
        check_flags(args, form)
        args.pictures = _number("--pictures", args.pictures)
        args.serve = None if args.serve is None else _number("--serve", args.serve)
        selection = Selection(
            protocol=args.protocol,
            output=args.output.absolute(),
            trainers=tuple(split_words(args.trainer)),
            datasets=tuple(split_words(args.datasets)),
            cfg=tuple(split_words(args.cfg)),
            shots=read_shots(args.shots),
            seeds=read_integers("--seeds", args.seeds, least=0),
        )
        if args.serve is not None:
            return serve_page(args, selection)
        if form == PAGE:
            return write_page(args, selection)
        return write_tables(args, selection, form)
    except ValueError as error:
        parser.error(str(error))
    except LookupError as error:
        if isinstance(error, KeyError | IndexError):  # a mistake in the code keeps its traceback
            raise
        print(f"{error} Run it first: python scripts/run.py --protocol ...", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
