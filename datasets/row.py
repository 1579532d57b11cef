"""The columns of the table of datasets (``datasets/rows.py``).

Nothing here or in the rows loads torch: the job driver and the reports read them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from datasets.downloads import Download, RemoteFile

# LightRA's default template; also that of data of your own.
TEMPLATE = "A photo of a {},"
# CoOp's default template.
HAND_MADE = "a photo of a {}."


class Figure(NamedTuple):
    """A published zero-shot accuracy in percent, and the prompts it was reached with."""

    accuracy: float
    prompts: str


@dataclass(frozen=True)
class DatasetRow:
    """All that distinguishes one dataset from another."""

    config: str  # stem of its file in ``configs/datasets``
    name: str  # class name, registry name and ``DATASET.NAME``
    directory: str  # below ``--root``
    images: str  # below ``directory``; paths of the split file start here
    # In ``directory``, with the published split; None where ``reader`` reads the official one.
    split_file: str | None
    source: str  # where to get the data, for error messages
    num_classes: int | None = None  # None if not checked
    counts: tuple[int, int, int] | None = None  # images in train, val, test; None if not checked
    # ``module.function`` of this package, (dataset_dir, image_dir) -> Splits, for the dataset's own
    # files: the official split where ``split_file`` is None, else what replaces it under
    # ``DATASET.ALLOW_OWN_SPLIT``.
    reader: str = ""
    # Likewise, for ImageNet and its shifts: gives each label's wnids of ImageNet's classes.
    wnids: str = ""
    border: int = 0  # pixels to cut off each side of every image
    # Called with the data root before anything is read; renders the bundled suite.
    prepare: Callable[[Path], object] | None = None
    published: bool = True  # whether published results exist that a run may be compared with
    # Its part in the protocols: "few_shot", one of the field's eleven, whose models are evaluated
    # on the ten others; or, for models of ``trained_on``, one of its "targets", its "shifts"
    # (classes of the same names in other images) or, as "extra", a shift that the published means
    # leave out.
    group: str = ""
    trained_on: str = ""  # config of the dataset whose models are evaluated on this one
    template: str = TEMPLATE  # LightRA's, for descriptions and the ensemble
    hand_made: str = HAND_MADE  # CoOp's, which zero-shot CLIP and several teachers read
    kgcoop: str = ""  # KgCoOp's reference prompt, if it differs from ``hand_made``
    hint_first: str = ""  # ProGrad's and ProVP's, which first say what the classes are; likewise
    # Published zero-shot accuracy over all its classes, by backbone.
    zero_shot: Mapping[str, Figure] = field(default_factory=dict)
    page: str = ""  # its home page
    licence: str = ""  # in a few words
    files: tuple[RemoteFile, ...] = ()  # same places: alternatives, the first is preferred
    # What a person has to do to get it; for one that can be fetched, if that fails.
    by_hand: str = ""

    @property
    def bundled(self) -> bool:
        """Whether it belongs to the suite that is rendered rather than downloaded."""
        return self.prepare is not None

    @property
    def shifted(self) -> bool:
        """Whether its labels had to be brought into the order of another dataset's classes.

        Zero-shot accuracy is checked before such a dataset is used. The bundled suite is drawn with
        its labels.
        """
        return self.group in ("shifts", "extra") and not self.bundled

    @property
    def download(self) -> Download | None:
        """How to get it; None if there is nothing to download."""
        if not self.page:
            return None
        return Download(self.config, self.page, self.licence, self.files, self.by_hand)
