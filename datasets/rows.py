"""The table of datasets: one row each, with all that is known about it.

From it are made the dataset classes (``datasets/table.py``), the methods' templates, the protocols'
groups, the zero-shot check's figures, the downloads and the tables of DATASETS.md. To add a
dataset: a row in ``ROWS`` and a YAML in ``configs/datasets``; one whose files are in a format of
their own also needs a reader in ``datasets/readers.py``. Data of your own needs no row: see
``datasets/folder.py``.
"""

from __future__ import annotations

from datasets.row import DatasetRow
from datasets.rows_imagenet import IMAGENET, SHIFTS
from datasets.rows_photographs import PHOTOGRAPHS
from datasets.rows_shapes import SUITE

# In the order of the field's tables: ImageNet first, as in every paper of the CoOp family.
ROWS = (
    *IMAGENET,
    *PHOTOGRAPHS,
    *SHIFTS,
    *SUITE,
)
DOWNLOADS = tuple(row.download for row in ROWS if row.download is not None)
ROW_OF = {row.name: row for row in ROWS}  # by ``DATASET.NAME``; data of the user's own has none


def row_of(name: str) -> DatasetRow:
    """Find a row by class name or config stem; KeyError if there is none."""
    for row in ROWS:
        if name in (row.name, row.config):
            return row
    raise KeyError(f"no dataset {name!r} in the table; there are {[row.name for row in ROWS]}")


def texts_of(name: str) -> str:
    """``DATASET.NAME`` whose texts about classes serve this one: shifts read their source's."""
    row = ROW_OF.get(name)
    return row_of(row.trained_on).name if row and row.group == "shifts" else name
