#!/usr/bin/env python3
"""Print a protocol's tables from finished runs, and draw its figures.

    python scripts/report.py --protocol base2novel
    python scripts/report.py --protocol few_shot --trainer LightRA RAda --plot few_shot.png
    python scripts/report.py --protocol cross_dataset --format latex --save table.tex

Only runs whose ``result.json`` says they are complete are counted. Lines below a table name what
makes its numbers doubtful: missing seeds, collapsed seeds, seeds run with different configs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.paths import file_flag
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
from scripts.reporting.results import Selection, collect
from scripts.reporting.sections import Section, Table, build_sections

FORMATS = ("text", "markdown", "csv", "latex")
_SUFFIX_FORMATS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
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
    add("--protocol", required=True, help=" | ".join(PROTOCOLS))
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
    return parser


@plain_main
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 when there is nothing to report."""
    parser = build_parser()
    args = parser.parse_args(argv)
    by_suffix = _SUFFIX_FORMATS.get(args.save.suffix.lower(), "text") if args.save else "text"
    try:
        form = check_availability(args.format or by_suffix, FORMATS, "--format")
        if args.plot:
            check_plot_path(args.plot)
        selection = Selection(
            protocol=args.protocol,
            output=args.output.absolute(),
            trainers=tuple(split_words(args.trainer)),
            datasets=tuple(split_words(args.datasets)),
            cfg=tuple(split_words(args.cfg)),
            shots=read_shots(args.shots),
            seeds=read_integers("--seeds", args.seeds, least=0),
        )
        report = build(selection)
    except ValueError as error:
        parser.error(str(error))
    except LookupError as error:
        print(f"{error} Run it first: python scripts/run.py --protocol ...", file=sys.stderr)
        return 1
    text = report.render(form)
    try:
        if args.save:
            with atomic_write(args.save) as file:
                file.write(f"{text}\n")
        if args.plot:
            save_figure(report.sections, args.plot)
    except OSError as error:
        print(f"--save or --plot: {error}", file=sys.stderr)
        return 1
    print(text)
    if form == "csv":
        for line in report.warnings():
            print(f"WARNING {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
