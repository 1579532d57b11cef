"""Makes a paper's table or figure from finished jobs: what is printed and what is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dassl.utils.files import atomic_write
from scripts.jobs.job import Job
from scripts.jobs.protocols import SUITE
from scripts.papers.catalogue import PICTURES, Entry
from scripts.papers.cells import Filler, measure, printed_notes
from scripts.papers.costs import cost_grid
from scripts.papers.runs import BACKBONE, Request, Work, why_not
from scripts.papers.sheets import Sheet, latex, markdown, save_picture
from scripts.reporting.sections import HM_LINE, SEEDS_LINE

PICTURE_SUFFIXES = (".png", ".pdf")


def make(
    entry: Entry,
    datasets: Sequence[str],
    missing: Mapping[str, str],
    jobs: Sequence[Job],
    request: Request,
) -> Iterator[str]:
    """Write a table or figure below ``<output>/papers``; yield what is to be printed.

    Args:
        entry: What to make.
        datasets: Those asked for, in the table's order.
        missing: Why some of them cannot be read, by name.
        jobs: All jobs behind it, finished or not.
        request: The command line.

    Raises:
        FileNotFoundError: No job has finished.
    """
    work = Work(jobs)
    if not work.done():
        raise FileNotFoundError(
            f"{entry.name}: no finished run under {request.output}; {jobs[0]}: "
            f"{why_not(jobs[0])}. Without --report-only, this command runs what is missing"
        )
    folder = request.output / "papers" / entry.name
    sheet = fill(entry, datasets, missing, work, request)
    sheet.pictures = draw(entry, sheet, work, folder, request)
    written = write(entry, sheet, folder)
    yield markdown(sheet)
    yield from (f'Written: "{path}"' for path in written)


def fill(
    entry: Entry,
    datasets: Sequence[str],
    missing: Mapping[str, str],
    work: Work,
    request: Request,
) -> Sheet:
    """Return a table's or figure's numbers and what stands below them; see :func:`make`."""
    demonstration = datasets[0] in SUITE
    made_with = dict(zip(request.options[::2], request.options[1::2], strict=True))
    notes = [*entry.notes, *([] if demonstration else printed_notes(entry))]
    notes += [f"{reason}." for reason in missing.values()]
    comparable = BACKBONE not in made_with
    if not comparable:
        name = made_with.pop(BACKBONE)
        notes.append(f"Run with {name} in every row, so that nothing compares with the paper.")
    if made_with:
        given = ", ".join(f"{key} {value}" for key, value in made_with.items())
        notes.append(f"Run with {given}, in place of the recipe's.")
    if demonstration:
        notes.append("The suite's own tiny backbone stands in for the papers'.")
    if entry.kind in PICTURES:
        remarks = [f"{row.label}: {remark}." for row in entry.rows for remark in row.remarks]
        return Sheet(entry.title, [], [*notes, *remarks], demonstration)
    if entry.kind == "costs":
        return Sheet(entry.title, [cost_grid(entry, work, demonstration)], notes, demonstration)
    numbers = measure(entry, work, request.output)
    seeds = len({job.key.seed for job in work.jobs})
    filler = Filler(entry, datasets, missing, work, seeds, numbers, demonstration, comparable)
    captions = [SEEDS_LINE, *([HM_LINE] if entry.protocol.base_to_novel else [])]
    return Sheet(entry.title, filler.grids(), notes, demonstration, captions)


def draw(entry: Entry, sheet: Sheet, work: Work, folder: Path, request: Request) -> list[Path]:
    """Draw what is a figure in the paper; return the PNGs, beside which a PDF lies each."""
    if entry.kind == "sweep":
        from scripts.papers.sweep import save_sweep

        paths = [folder / f"{entry.name}{suffix}" for suffix in PICTURE_SUFFIXES]
        for path in paths:
            save_sweep(entry, sheet, path)
        return paths[:1]
    if entry.kind not in PICTURES:
        return []
    # PyTorch is loaded only where a trained mask is.
    from scripts.papers.masks import draw_mask

    found = []
    for job in work.done():
        if job.key.stage == entry.protocol.train_stage:
            stem = f"{entry.name}_{job.key.dataset}"
            paths = [folder / f"{stem}{suffix}" for suffix in PICTURE_SUFFIXES]
            draw_mask(entry.kind, job, paths, request)
            found.append(paths[0])
    return found


def write(entry: Entry, sheet: Sheet, folder: Path) -> list[Path]:
    """Write a sheet's files; return them and the pictures that lie beside them."""
    written = []
    texts = {".md": markdown(sheet), **({".tex": latex(sheet)} if sheet.grids else {})}
    for suffix, text in texts.items():
        written.append(folder / f"{entry.name}{suffix}")
        with atomic_write(written[-1]) as file:
            file.write(text)
    if sheet.grids and not sheet.pictures:
        written.append(folder / f"{entry.name}.png")
        save_picture(sheet, written[-1])
    pictures = [path.with_suffix(suffix) for path in sheet.pictures for suffix in PICTURE_SUFFIXES]
    return [*written, *pictures]
