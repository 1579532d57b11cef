"""What one row of the table of datasets (``datasets/rows.py``) says.

Nothing here or in the rows loads torch: the job driver and the reports read them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from datasets.downloads import Download, RemoteFile

# LightRA's template for datasets that its release has no other for; also that of data of your own.
TEMPLATE = "A photo of a {},"
# CoOp's for datasets that it has no other for.
HAND_MADE = "a photo of a {}."


class Figure(NamedTuple):
    """A published zero-shot accuracy in percent, and the prompts it was reached with."""

    accuracy: float
    prompts: str


@dataclass(frozen=True)
class DatasetRow:
    """All that distinguishes one dataset from another.

    Attributes:
        config: Stem of its file in ``configs/datasets``.
        name: Class name, registry name and ``DATASET.NAME``.
        directory: Its directory below ``--root``.
        images: Image directory below ``directory``; paths of the split file start here.
        split_file: File in ``directory`` with the published split; None where ``reader`` reads the
            official one from the dataset's own files.
        source: Where the data can be had, for error messages.
        num_classes: Known number of classes; None if not checked.
        counts: Known (train, val, test) image counts; None if not checked.
        reader: ``module.function`` of this package, ``(dataset_dir, image_dir) -> Splits``, for the
            dataset's own files: the official split where ``split_file`` is None, else the stand-in
            of ``DATASET.ALLOW_OWN_SPLIT``.
        wnids: ``module.function`` likewise, which gives for each label the wnids of the ImageNet
            classes that it stands for; of ImageNet and its shifts.
        border: Pixels to cut off each side of every image.
        prepare: Called with the data root before anything is read; renders the bundled suite.
        published: Whether published results exist that a run here may be compared with.
        group: What it is in the protocols: "few_shot", one of the field's eleven, whose models are
            evaluated on the ten others; or, for models of ``trained_on``, one of its "targets",
            its "shifts" (classes of the same names in other images) or, as "extra", a shift that
            the published means leave out.
        trained_on: Config of the dataset whose models are evaluated on this one.
        template: LightRA's template, for descriptions and the ensemble.
        hand_made: CoOp's template, which zero-shot CLIP and several teachers read.
        kgcoop: KgCoOp's reference prompt where it is another; "" for ``hand_made``.
        hint_first: ProGrad's and ProVP's, which say first what the classes are; likewise.
        zero_shot: Published zero-shot accuracy over all its classes, by backbone.
        page: Its home page.
        licence: Its licence in a few words.
        files: What to download. Files of the same places are alternatives, the first is preferred.
        by_hand: What a person has to do to get it; for a dataset that can be fetched, should that
            fail.
    """

    config: str
    name: str
    directory: str
    images: str
    split_file: str | None
    source: str
    num_classes: int | None = None
    counts: tuple[int, int, int] | None = None
    reader: str = ""
    wnids: str = ""
    border: int = 0
    prepare: Callable[[Path], object] | None = None
    published: bool = True
    group: str = ""
    trained_on: str = ""
    template: str = TEMPLATE
    hand_made: str = HAND_MADE
    kgcoop: str = ""
    hint_first: str = ""
    zero_shot: Mapping[str, Figure] = field(default_factory=dict)
    page: str = ""
    licence: str = ""
    files: tuple[RemoteFile, ...] = ()
    by_hand: str = ""

    @property
    def bundled(self) -> bool:
        """Whether it belongs to the suite that is rendered rather than downloaded."""
        return self.prepare is not None

    @property
    def shifted(self) -> bool:
        """Whether its labels had to be brought into the order of another dataset's classes.

        Zero-shot accuracy is checked before such a set is used. The bundled suite is drawn with
        its labels.
        """
        return self.group in ("shifts", "extra") and not self.bundled

    @property
    def download(self) -> Download | None:
        """How it can be had; None if there is nothing to download."""
        if not self.page:
            return None
        return Download(self.config, self.page, self.licence, self.files, self.by_hand)
