"""One row per dataset; every row becomes a registered class of this module.

To add a dataset: a row here, a YAML in ``configs/datasets``, a section in DATASETS.md and, if its
files are in a format of their own, a reader in ``datasets/readers.py``. Data of your own needs no
row: see ``datasets/folder.py``.
"""

from __future__ import annotations

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from datasets import readers
from datasets.base import DatasetRow, SplitFileDataset

SPLIT_FILES = (
    "The split_zhou_*.json files are linked in CoOp's DATASETS.md "
    "(github.com/KaiyangZhou/CoOp) and go into the dataset's directory."
)
PHOTO = "A photo of a {},"


def _render_shapes(root: Path) -> object:
    # Imported when a bundled set is read: nothing else needs the renderer.
    from datasets.shapes import ensure_rendered

    return ensure_rendered(root)


def _shapes_row(config: str, name: str, template: str = PHOTO) -> DatasetRow:
    """A set of the bundled suite: rendered below ``<root>/shapes`` when it is first asked for."""
    return DatasetRow(
        config=config,
        name=name,
        directory="shapes",
        images="",
        split_file=f"split_zhou_{name}.json",
        template=template,
        source="It is rendered there on first use; delete that directory to have it made again.",
        prepare=_render_shapes,
        published=False,
    )


ROWS = (
    DatasetRow(
        config="caltech101",
        name="Caltech101",
        directory="caltech-101",
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        template="A photo of a {}.",
        num_classes=100,
        counts=(4128, 1649, 2465),
        reader=readers.caltech101,
        source="Images: caltech-101.zip of data.caltech.edu/records/mzrjq-6wc02, then unpack the "
        f"101_ObjectCategories.tar.gz in it. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="oxford_pets",
        name="OxfordPets",
        directory="oxford_pets",
        images="images",
        split_file="split_zhou_OxfordPets.json",
        template=PHOTO,
        num_classes=37,
        counts=(2944, 736, 3669),
        reader=readers.oxford_pets,
        source="Images and lists: images.tar.gz and annotations.tar.gz of "
        f"www.robots.ox.ac.uk/~vgg/data/pets. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="dtd",
        name="DescribableTextures",
        directory="dtd",
        images="images",
        split_file="split_zhou_DescribableTextures.json",
        template=PHOTO,
        num_classes=47,
        counts=(2820, 1128, 1692),
        reader=readers.describable_textures,
        source="Images: dtd-r1.0.1.tar.gz of www.robots.ox.ac.uk/~vgg/data/dtd, which unpacks to "
        f"dtd/. {SPLIT_FILES}",
    ),
    DatasetRow(
        config="eurosat",
        name="EuroSAT",
        directory="eurosat",
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        template="A top-down view of {} arranged in a pattern,",
        num_classes=10,
        counts=(13500, 5400, 8100),
        reader=readers.eurosat,
        source="Images: EuroSAT_RGB.zip of zenodo.org/records/7711810, whose EuroSAT_RGB/ is to be "
        f"renamed 2750/. {SPLIT_FILES}",
    ),
    _shapes_row("shapes", "Shapes"),
    _shapes_row("shapes_v2", "ShapesV2"),
    _shapes_row("shapes_sketch", "ShapesSketch"),
    _shapes_row("shapes_r", "ShapesR"),
    _shapes_row("shapes_a", "ShapesA"),
    _shapes_row("shapes_colours", "ShapesColours"),
    _shapes_row("shapes_textures", "ShapesTextures"),
    _shapes_row("shapes_forms", "ShapesForms"),
    _shapes_row("shapes_counts", "ShapesCounts", "A photo of {},"),
)


def row_of(name: str) -> DatasetRow:
    """Find a row by class name or config stem.

    Raises:
        KeyError: No row has that name.
    """
    for row in ROWS:
        if name in (row.name, row.config):
            return row
    raise KeyError(f"no dataset {name!r} in the table; there are {[row.name for row in ROWS]}")


def register(row: DatasetRow) -> type[SplitFileDataset]:
    """Make the dataset class of a row and register it.

    The class becomes an attribute of this module, so that it can be imported and, for worker
    processes, pickled like one that is written out.
    """
    attributes = {
        "row": row,
        "default_template": row.template,
        "__doc__": f"{row.name}: {row.directory}, see DATASETS.md.",
    }
    dataset = type(row.name, (SplitFileDataset,), attributes)
    DATASET_REGISTRY.register()(dataset)
    globals()[row.name] = dataset
    return dataset


for _row in ROWS:
    register(_row)
