"""The templates that methods read, by dataset: columns of ``datasets/rows.py``.

Each method falls back on ``DEFAULT`` for data of the user's own, which has no row, and takes
``DATASET.PROMPT_TEMPLATE`` instead where the user has set it (``PromptTexts.template``).
"""

from __future__ import annotations

from datasets.row import HAND_MADE as DEFAULT
from datasets.rows import ROW_OF

# CoOp's, which zero-shot CLIP and several teachers read.
HAND_MADE = {name: row.hand_made for name, row in ROW_OF.items()}
# KgCoOp's reference prompts (arXiv:2303.13283).
KGCOOP = {name: row.kgcoop or row.hand_made for name, row in ROW_OF.items()}
# ProGrad's and ProVP's (arXiv:2205.14865).
HINT_FIRST = {name: row.hint_first or row.hand_made for name, row in ROW_OF.items()}


def hand_made(dataset: str) -> str:
    """CoOp's template for a dataset (its registered name)."""
    return HAND_MADE.get(dataset, DEFAULT)


def own_template(dataset: str) -> str:
    """LightRA's template for a dataset, which descriptions and the ensemble go with."""
    return ROW_OF[dataset].template if dataset in ROW_OF else DEFAULT
