"""Write the tables and lists of DATASETS.md that follow from the rows of ``datasets/rows.py``.

    python -m scripts.data_tools.guide            # after a row was added or changed

A table is found by its heading, a list of files by the section of its dataset; the prose between
them is kept. A test fails when the guide and the rows disagree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from datasets.downloads import RemoteFile
from datasets.row import HAND_MADE, TEMPLATE, DatasetRow
from datasets.rows import ROWS
from scripts.data_tools.output import format_size
from scripts.jobs.protocols import REPO

GUIDE = REPO / "DATASETS.md"
PUBLISHED = tuple(row for row in ROWS if row.published)
# The last lines of the first table: datasets without known counts.
UNCOUNTED = (
    "| `shapes`, `shapes_*` | `Shapes`, `Shapes*` | `shapes` "
    "| see [below](#the-bundled-shapes-suite) | rendered, no download |",
    "| `folder`, `split` | `Folder`, `Split` | yours | yours "
    "| see [your own data](#your-own-data) |",
    "| `features` | `Features` | yours | yours "
    "| see [features instead of images](#features-instead-of-images) |",
)


def facts() -> list[str]:
    """The table of all datasets: names, place, known classes and images."""
    lines = table(
        ("config", "`DATASET.NAME`", "below `--root`", "classes", "train / val / test"),
        [
            (
                f"`{row.config}`",
                f"`{row.name}`",
                f"`{'/'.join(filter(None, (row.directory, row.images)))}`",
                f"{row.num_classes:,}",
                " / ".join(f"{count:,}" if count else "-" for count in row.counts or ()),
            )
            for row in PUBLISHED
        ],
    )
    return [*lines, *UNCOUNTED]


def templates() -> list[str]:
    """The prompt templates of each kind of method, for datasets that differ from the usual ones."""
    # A row for every dataset would hide the few that differ.
    texts = [("others", TEMPLATE, HAND_MADE, HAND_MADE, HAND_MADE)]
    for row in ROWS:
        coop = row.hand_made
        own = (row.template, coop, row.kgcoop or coop, row.hint_first or coop)
        if own != texts[0][1:]:
            texts.append((row.config, *own))
    return table(
        ("dataset", "LightRA", "CoOp", "KgCoOp", "ProGrad, ProVP"),
        [(f"`{name}`" if name != "others" else name, *map(quoted, own)) for name, *own in texts],
    )


def zero_shot() -> list[str]:
    """The published figures that the check before a run compares with."""
    return table(
        ("dataset", "backbone", "zero-shot accuracy", "prompts"),
        [
            (f"`{row.config}`", f"`{backbone}`", f"{figure.accuracy:.2f}", figure.prompts)
            for row in ROWS
            for backbone, figure in row.zero_shot.items()
        ],
    )


def quoted(text: str) -> str:
    """A template as code."""
    return f"`{text}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, *rows]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return [head, "|" + "---|" * len(header), *body]


def file_line(file: RemoteFile) -> str:
    """One line about a file to download: name, size, checksum, addresses."""
    size = format_size(file.size) if file.size else ""
    facts = ", ".join(filter(None, (size, f"MD5 `{file.md5}`" if file.md5 else "")))
    where = " or ".join(
        f"<{address.url}>" + ("" if address.listed_by else " (unverified)")
        for address in file.addresses
    )
    return "".join(
        (
            f"  - `{file.name}`",
            f" ({facts})" if facts else "",
            f": {where}" if where else "",
            "; for an own split only" if file.optional else "",
        )
    )


def updated(text: str) -> str:
    """Return the guide with its tables and lists written anew; each must have exactly one place."""
    # A table ends where its lines do, so that one that grew or shrank is replaced as a whole.
    for lines in (facts(), templates(), zero_shot()):
        text = replaced(text, rf"^{re.escape(lines[0])}\n(\|.*\n)*", lines, lines[0])
    for row in PUBLISHED:
        if row.files:
            lines = [file_line(file) for file in row.files]
            text = replaced(text, section_pattern(row), lines, f"files of {row.name}")
    return text


def section_pattern(row: DatasetRow) -> str:
    """A regular expression for the list of files in a dataset's section; the rest is kept."""
    return rf"(?<=^### {re.escape(row.name)}\n)(?P<kept>(?:(?!##).*\n)*?)(?:  - `.*\n)+"


def replaced(text: str, pattern: str, lines: Sequence[str], what: str) -> str:
    """Return the guide with the one match of a pattern replaced by lines."""

    def new(match: re.Match[str]) -> str:
        return match.groupdict().get("kept", "") + "\n".join(lines) + "\n"

    text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"DATASETS.md has {count} places for {what!r}, but must have one")
    return text


def main() -> None:
    """Write the guide anew."""
    GUIDE.write_text(updated(GUIDE.read_text()))


if __name__ == "__main__":
    main()
