"""What scripts/data.py prints: tables and instructions for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from datasets.downloads import GB, MB, Download, RemoteFile, download_of
from datasets.row import DatasetRow
from scripts.data_tools.check import ON_FIRST_USE, Finding, format_counts, known_counts
from scripts.jobs.protocols import work_folder

COMMAND = "python scripts/data.py"


def format_size(size: float) -> str:
    """Write bytes with a decimal unit: 137000000 -> ``137 MB``, 6.3e9 -> ``6.3 GB``."""
    for unit, factor in (("GB", GB), ("MB", MB), ("kB", 1000)):
        if size >= factor:
            digits = 1 if size < 10 * factor else 0
            return f"{size / factor:.{digits}f}".removesuffix(".0") + f" {unit}"
    return f"{size:.0f} B"


def size_of(row: DatasetRow, download: Download | None) -> str:
    """The size of a download, in words."""
    if row.prepare is not None:
        return "none"
    return f"about {format_size(download.size)}" if download and download.size else "unknown"


def way_of(row: DatasetRow, download: Download | None) -> str:
    """How a dataset is obtained, in a word or two."""
    if row.prepare is not None:
        return "drawn on first use"
    return "fetch" if download and download.automatic else "by hand"


def unverified(download: Download | None) -> bool:
    """Whether some required file has addresses, but none that a maintained source lists."""
    return download is not None and any(
        file.addresses and not file.optional and not any(a.listed_by for a in file.addresses)
        for file in download.files
    )


def list_table(rows: Sequence[DatasetRow], downloads: Sequence[Download]) -> str:
    """A table of all datasets: classes, images, size, licence, source."""
    lines = []
    for row in rows:
        download = download_of(row.config, downloads)
        classes, counts = known_counts(row)
        way = way_of(row, download)
        lines.append(
            (
                row.config,
                f"{classes:,}" if classes else "",
                format_counts(counts),
                size_of(row, download),
                f"{way} *" if way == "fetch" and unverified(download) else way,
                download.licence if download else "",
                download.page if download else "",
            )
        )
    header = ("dataset", "classes", "train/val/test", "download", "how", "licence", "source")
    align = ("left", "right", "right", "left", "left", "left", "left")
    return (
        tabulate(lines, header, colalign=align, disable_numparse=True)
        + "\n\n* an address of it is unverified: known by memory, listed by no maintained source. "
        "What comes is checked all the same."
    )


def list_json(rows: Sequence[DatasetRow], downloads: Sequence[Download]) -> list[dict[str, Any]]:
    """The datasets for programs, with every file and address."""
    return [_row_json(row, download_of(row.config, downloads)) for row in rows]


def _row_json(row: DatasetRow, download: Download | None) -> dict[str, Any]:
    classes, counts = known_counts(row)
    files = download.files if download else ()
    return {
        "config": row.config,
        "name": row.name,
        "directory": row.directory,
        "classes": classes,
        "counts": list(counts) if counts else None,
        "how": way_of(row, download),
        "bytes": download.size or None if download else None,
        "licence": download.licence if download else None,
        "page": download.page if download else None,
        "by_hand": (download.by_hand or None) if download else None,
        "files": [
            {
                "name": file.name,
                "bytes": file.size or None,
                "md5": file.md5 or None,
                "optional": file.optional,
                "addresses": [
                    {"url": address.url, "listed_by": address.listed_by or None}
                    for address in file.addresses
                ],
            }
            for file in files
        ],
    }


def plan(row: DatasetRow, download: Download, groups: Sequence[Sequence[RemoteFile]]) -> str:
    """What would be downloaded, from where and under which licence; a group lists alternatives."""
    lines = [f"{row.config} (licence: {download.licence}; {download.page})"]
    for group in groups:
        for number, file in enumerate(group):  # alternatives, joined by "or"
            checksum = "" if file.md5 else ", no known checksum"
            lines.append(f"  {'or ' if number else ''}{_name_and_size(file)}{checksum}")
            lines += [
                f"    {address.url}{'' if address.listed_by else ' (unverified)'}"
                for address in file.addresses
            ]
    return "\n".join(lines)


def instructions(row: DatasetRow, download: Download | None) -> str:
    """How a person obtains what cannot be downloaded by a program."""
    lines = [f"{row.config}: to be had by hand."]
    if download is None:
        return "\n".join([*lines, f"  {row.source}"])
    lines.append(f"  Licence: {download.licence}. Page: {download.page}")
    lines += [
        f"  {_name_and_size(file)}, MD5 {file.md5}" for file in download.files if not file.addresses
    ]
    lines += [f"  {line}" for line in (download.by_hand or row.source).splitlines()]
    return "\n".join([*lines, "  The layout is in DATASETS.md."])


def _name_and_size(file: RemoteFile) -> str:
    return file.name + (f", about {format_size(file.size)}" if file.size else "")


def remedy(finding: Finding, root: Path) -> str:
    """What to do about a missing, incomplete or damaged dataset; empty if nothing is known."""
    row, download = finding.target.row, finding.target.download
    if finding.usable or row is None:
        return ""
    # A run redraws the suite by itself; some readers' messages name the source already.
    if row.prepare is not None or (download is None and row.source in finding.problem):
        return ""
    if download is None:
        return row.source
    flag = "" if root == work_folder() / "data" else f" --root {root}"
    command = f"{COMMAND} fetch {row.config}{flag}"
    if not download.automatic:
        return f"by hand: {command} says how"
    if finding.absent:
        return command
    # Existing files are never overwritten: they may be the user's only copy.
    return f"complete it, or move what is wrong out of the way and run {command}"


def check_table(findings: Sequence[Finding], required: Collection[str]) -> str:
    """A table of the status and counts of each dataset."""
    header = ["dataset", "status", "classes", "train/val/test", "required"]
    lines = [
        [
            finding.target.config,
            finding.status,
            f"{finding.classes:,}" if finding.classes is not None else "",
            format_counts(finding.counts),
            "yes" if finding.target.config in required else "",
        ]
        for finding in findings
    ]
    columns = len(header) if required else len(header) - 1
    align = ["left", "left", "right", "right", "left"]
    return tabulate(
        [line[:columns] for line in lines],
        header[:columns],
        colalign=align[:columns] if lines else None,
        disable_numparse=True,
    )


def check_text(
    findings: Sequence[Finding], required: Collection[str], root: Path, free: int | None
) -> str:
    """The table, then a line per problem, its remedy, and the free space on the disk."""
    lines = [check_table(findings, required), ""]
    for finding in findings:
        name = finding.target.config
        if finding.problem:
            lines.append(f"{name}: {finding.status}: {' '.join(finding.problem.split())}")
            how = remedy(finding, root)
            lines += [f"  get it: {how}"] if how else []
        elif finding.usable:
            # A run would warn of these, so say them here too.
            lines += [f"{name}: note: {' '.join(note.split())}" for note in finding.notes]
    if any(finding.status == ON_FIRST_USE for finding in findings):
        lines.append("on first use: the bundled suite is drawn when a run asks for it, in seconds.")
    lines.append(
        f"{root} does not exist." if free is None else f"free disk at {root}: {format_size(free)}"
    )
    return "\n".join(lines)


def check_json(
    findings: Sequence[Finding], required: Collection[str], root: Path, free: int | None, ok: bool
) -> dict[str, Any]:
    """The findings for programs, ready for ``json.dumps``."""
    return {
        "root": str(root),
        "free_bytes": free,
        "ok": ok,
        "datasets": [
            {
                "config": finding.target.config,
                "name": finding.target.name,
                "directory": str(finding.target.directory),
                "status": finding.status,
                "required": finding.target.config in required,
                "problem": finding.problem or None,
                "remedy": remedy(finding, root) or None,
                "classes": finding.classes,
                "counts": finding.counts,
                "known_classes": known_counts(finding.target.row)[0],
                "known_counts": known_counts(finding.target.row)[1],
                "notes": finding.notes,
                "unreadable": finding.unreadable,
                "seconds": round(finding.seconds, 3),
            }
            for finding in findings
        ],
    }
