"""Images with labels, and what every dataset can do with lists of them."""

from __future__ import annotations

import os
import random
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dassl.data.datasets.build import DATASET_REGISTRY, build_dataset
from dassl.names import nearest
from dassl.utils.tools import download_url

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"]

_NAMED = 10  # classes that a note lists


@dataclass(frozen=True, eq=False, slots=True)
class Datum:
    """One image: path of its file, class index, domain index, class name. All are read-only."""

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.impath, str | os.PathLike):
            raise TypeError(f"impath must be a path, got {type(self.impath).__name__}")
        # The way around "frozen": datasets may give a Path, readers get a text.
        object.__setattr__(self, "impath", os.fspath(self.impath))


class DatasetBase:
    """A dataset: lists of `Datum` for training, validation and test, and its class names.

    Subclasses build the lists and pass them to ``super().__init__``.

    Attributes:
        dataset_dir: Directory under ``cfg.DATASET.ROOT``.
        domains: Names of all domains; empty for datasets without domains.
        notes: What a reader of the results must know, such as classes with fewer images than shots.
        border: Pixels to cut off each side of every image before anything else.
    """

    dataset_dir: str = ""
    border: int = 0
    domains: Sequence[str] = []
    notes: list[str]

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        """Keep the lists and read the class names off them.

        Args:
            train_x: Labelled training images.
            train_u: Unlabelled training images, optional.
            val: Validation images, optional.
            test: Test images. A dataset that is only tested on has no ``train_x``; then the classes
                are read off these.

        Raises:
            ValueError: Neither training nor test images.
        """
        source = train_x or test
        if not source:
            raise ValueError(f"{type(self).__name__} has neither training nor test images")
        # Not reset: a draw before this call may have left a note.
        self.__dict__.setdefault("notes", [])
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(source)
        self._lab2cname, self._classnames = self.get_lab2cname(source)

    @property
    def train_x(self) -> list[Datum] | None:
        """Labelled training images."""
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        """Unlabelled training images."""
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        """Validation images."""
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        """Test images."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name by label."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of the labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Number of classes, the largest label plus one."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum]) -> int:
        """Return the largest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return the class name by label, and the names in the order of the labels."""
        names = {item.label: item.classname for item in data_source}
        mapping = {label: names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(
        self, source_domains: Sequence[str], target_domains: Sequence[str]
    ) -> None:
        """Refuse source or target domains that the dataset does not have.

        Raises:
            ValueError: An unknown domain.
        """
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Refuse domain names that the dataset does not have.

        Raises:
            ValueError: An unknown domain.
        """
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(
                    f"unknown domain {domain!r}.{nearest(domain, self.domains)} "
                    f"{type(self).__name__} has: {', '.join(self.domains) or '(none)'}"
                )

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive and extract it beside itself.

        Args:
            url: Source.
            dst: Path of the archive; it must end in .zip, .tar, .tar.gz or .tgz.
            from_gdrive: The URL is on Google Drive and fetched by gdown.

        Raises:
            ValueError: Another ending, or the file is not an archive of that kind.
            ConnectionError: It cannot be fetched.
        """
        if not dst.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
            raise ValueError(f'"{dst}" must end in .zip, .tar, .tar.gz or .tgz')
        download_url(url, dst, from_gdrive=from_gdrive)
        directory = os.path.dirname(os.path.abspath(dst))
        print("Extracting file ...")
        try:
            if dst.endswith(".zip"):
                with zipfile.ZipFile(dst) as archive:
                    archive.extractall(directory)
            else:
                with tarfile.open(dst) as archive:
                    # Without the filter, members such as ../../file or links could write elsewhere.
                    archive.extractall(directory, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise ValueError(f'"{dst}" cannot be extracted: {error}') from error
        print(f"File extracted to {directory}")

    def generate_fewshot_dataset(
        self,
        *data_sources: list[Datum],
        num_shots: int = -1,
        repeat: bool = False,
        rng: random.Random | None = None,
    ) -> Any:
        """Draw a few images per class, as CoOp's published draws were made.

        For each label in the order of its first image, ``random.sample`` of its images. If Python's
        global generator was freshly seeded (the engine does so before the dataset is built), this
        is CoOp's draw for that seed.

        Args:
            *data_sources: Lists of images, drawn from one after the other.
            num_shots: Images per class; less than 1 returns everything.
            repeat: Fill up classes that have fewer images by drawing with replacement.
            rng: Generator to draw from instead of the global one; ``random.Random(seed)`` gives the
                same draw as seeding the global one.

        Returns:
            One list if one source was given, else a list of lists.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else list(data_sources)
        print(f"Creating a {num_shots}-shot dataset")
        drawn = [self._draw(source, num_shots, repeat, rng) for source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def _draw(
        self, source: list[Datum], num_shots: int, repeat: bool, rng: random.Random | None
    ) -> list[Datum]:
        generator: Any = random if rng is None else rng  # the module is the global generator
        result: list[Datum] = []
        short = []
        for items in self.split_dataset_by_label(source).values():
            if len(items) >= num_shots:
                result.extend(generator.sample(items, num_shots))
                continue
            short.append(f"{items[0].classname or items[0].label} ({len(items)})")
            result.extend(generator.choices(items, k=num_shots) if repeat else items)
        if short:
            how = "drawn with replacement" if repeat else "all of them are used"
            more = f" and {len(short) - _NAMED} more classes" if len(short) > _NAMED else ""
            text = f"Classes with fewer than {num_shots} images, {how}: {', '.join(short[:_NAMED])}"
            print(text + more)
            # Datasets draw before they call our constructor, which would make the list.
            self.__dict__.setdefault("notes", []).append(text + more)
        return result

    def split_dataset_by_label(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Group images by label, labels in the order of their first image."""
        groups: defaultdict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Group images by domain, domains in the order of their first image."""
        groups: defaultdict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
