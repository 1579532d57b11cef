"""The dataset classes: every row of ``datasets/rows.py`` becomes a registered class of this module.

Importing it registers all datasets, with those for data of the user's own.
"""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY
from datasets import features, folder  # noqa: F401 - registers Features, Folder and Split
from datasets.base import SplitFileDataset
from datasets.row import DatasetRow
from datasets.rows import ROWS


def register(row: DatasetRow) -> type[SplitFileDataset]:
    """Make the dataset class of a row and register it."""
    attributes = {
        "row": row,
        "default_template": row.template,
        "shifted": row.shifted,
        "border": row.border,
        "__doc__": f"{row.name}: {row.directory}, see DATASETS.md.",
    }
    dataset = type(row.name, (SplitFileDataset,), attributes)
    DATASET_REGISTRY.register()(dataset)
    # Worker processes unpickle a dataset by the name of its class in this module.
    globals()[row.name] = dataset
    return dataset


for _row in ROWS:
    register(_row)
