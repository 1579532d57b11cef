"""Pictures of the mask that a run has trained, as Figures 3 to 5 of RAda have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts import visualize
from scripts.drawing.image_choice import by_lot, choose_images, select
from scripts.drawing.mask_values import collect_rows
from scripts.drawing.trained_run import load_run
from scripts.jobs.job import Job
from scripts.papers.runs import Request

POINTS = 1000  # images in the t-SNE and the histogram, at most
IMAGES = 4  # of the heat maps


def draw_mask(kind: str, job: Job, paths: Sequence[Path], request: Request) -> None:
    """Draw a trained run's mask.

    Args:
        kind: rows, a t-SNE of the predicted classes' rows of R and M * R; histogram, of the mask's
            values; or maps, heat maps of a few images.
        job: The training, which is done.
        paths: Files to write, .png or .pdf.
        request: The command line.
    """
    trainer = load_run(job.directory, root=str(request.root), device=request.device)
    chosen = select(trainer, "test", [], 0)
    if kind == "maps":
        visualize.draw_heat_maps(paths, trainer, choose_images([str(IMAGES)], chosen), chosen)
        return
    rows, counts = collect_rows(trainer, by_lot(chosen, POINTS), "predicted")
    if kind == "rows":
        visualize.save_embedding(paths, trainer, rows, chosen, "predicted", 0)
    elif counts is not None:
        visualize.save_values(paths, trainer, rows, counts, chosen)
