"""Rows of the bundled suite: rendered below ``<root>/shapes`` when one is first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets.row import DatasetRow


def _render(root: Path) -> object:
    # Imported when a set is read: nothing else needs the renderer.
    from datasets.shapes import ensure_rendered

    return ensure_rendered(root)


def _row(config: str, name: str, group: str = "", **prompts: Any) -> DatasetRow:
    return DatasetRow(
        config=config,
        name=name,
        directory="shapes",
        images="",
        split_file=f"split_zhou_{name}.json",
        source="It is rendered there on first use; delete that directory to have it made again.",
        prepare=_render,
        published=False,
        group=group,
        trained_on="shapes" if group else "",
        **prompts,
    )


SUITE = (
    _row("shapes", "Shapes"),
    _row("shapes_colours", "ShapesColours", "targets"),
    _row("shapes_textures", "ShapesTextures", "targets"),
    _row("shapes_forms", "ShapesForms", "targets"),
    _row(
        "shapes_counts",
        "ShapesCounts",
        "targets",
        template="A photo of {},",  # its classes are "two shapes"
        hand_made="a photo of {}.",
    ),
    _row("shapes_v2", "ShapesV2", "shifts"),
    _row("shapes_sketch", "ShapesSketch", "shifts"),
    _row("shapes_r", "ShapesR", "shifts"),
    _row("shapes_a", "ShapesA", "shifts"),
)
