"""Small pictures of classes and of mistaken images, embedded in the page within a limit."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from dassl.config import user_path
from dassl.prediction_file import image_name

SIDE = 64  # pixels of the longer side
QUALITY = 70
MOST_BYTES = 1_000_000  # of all pictures of a page, as they stand in it


class Pictures:
    """Test images as data URLs: some of each class, and those that runs have mistaken.

    Args:
        per_class: Pictures of a class; 0 shows none.
        root: Folder of all datasets; "" takes the one each run recorded.

    Attributes:
        found: URLs by dataset and class.
        images: Path and URL of each mistaken image; the URL is "" where there is no picture.
        problems: A line for each dataset whose images are not there, and one if the limit is hit.
    """

    def __init__(self, per_class: int, root: str = "") -> None:
        self.per_class, self.root = per_class, root
        self.found: dict[str, dict[str, list[str]]] = {}
        self.images: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self._paths: dict[str, dict[str, list[str]]] = {}  # by dataset and class
        self._files: dict[str, dict[str, str]] = {}  # by dataset and path below the data's root
        self._numbers: dict[tuple[str, str], int] = {}  # of ``images``, by dataset and path
        self._bytes = 0

    def add(self, dataset: str, result: Mapping[str, Any], names: Iterable[str]) -> None:
        """Embed pictures of a run's classes, as far as there is room.

        Args:
            dataset: Name that the run's directory has.
            result: The run's result, whose config says where the images are.
            names: Of the classes.
        """
        if not self.per_class:
            return
        self._look_up(dataset, result)
        known = self.found.setdefault(dataset, {})
        for name in names:
            if name not in known and self._bytes < MOST_BYTES:
                paths = self._paths[dataset].get(name, [])[: self.per_class]
                known[name] = [url for path in paths if (url := thumbnail(path))]
                self._count(sum(map(len, known[name])))

    def number_of(self, dataset: str, result: Mapping[str, Any], image: str) -> int:
        """Return the place in ``images`` of a mistaken image; embed it, as far as there is room.

        Args:
            dataset: Name that the run's directory has.
            result: The run's result, whose config says where the images are.
            image: Path below the folder of all datasets. It has a picture only if it is one of the
                dataset's test images: a file from elsewhere may name any file of this machine.
        """
        if (dataset, image) not in self._numbers:
            url = ""
            if self.per_class and self._bytes < MOST_BYTES:
                self._look_up(dataset, result)
                path = self._files[dataset].get(image, "")
                url = thumbnail(path) if path else ""
                self._count(len(url))
            self._numbers[dataset, image] = len(self.images)
            self.images.append((image, url))
        return self._numbers[dataset, image]

    def _count(self, size: int) -> None:
        """Count the bytes of new pictures; say so when the limit is reached."""
        self._bytes += size
        if self._bytes >= MOST_BYTES > self._bytes - size:
            self.problems.append(
                f"Pictures are left out from {MOST_BYTES / 1e6:.0f} MB on: report fewer "
                "datasets (--datasets), or set --pictures 1 or 0."
            )

    def _look_up(self, dataset: str, result: Mapping[str, Any]) -> None:
        """Find a dataset's test images, once."""
        if dataset in self._paths:
            return
        self._paths[dataset] = self._read_paths(dataset, result)
        base = os.path.abspath(user_path(self.root or _recorded_root(result)))
        self._files[dataset] = {
            image_name(path, base): path
            for paths in self._paths[dataset].values()
            for path in paths
        }

    def _read_paths(self, dataset: str, result: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the paths of a dataset's test images by class; empty if it cannot be read."""
        try:
            return images_by_class(result, self.root)
        except Exception as error:  # data that is gone or changed must not cost the page
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.problems.append(
                f"No pictures of {dataset}: {why} (--data-root says where all datasets are)"
            )
            return {}


def _recorded_root(result: Mapping[str, Any]) -> str:
    """Return the folder of all datasets that a run recorded; "" if it did not."""
    dataset = dict(result.get("config") or {}).get("DATASET")
    return str(dataset.get("ROOT", "")) if isinstance(dataset, dict) else ""


def images_by_class(result: Mapping[str, Any], root: str = "") -> dict[str, list[str]]:
    """Return the paths of the test images that a run's config names, by class.

    Raises:
        FileNotFoundError: The folder of all datasets is not there.
        ValueError: The config does not fit this version, or the dataset its description.
    """
    # These import PyTorch and all methods, which pages without pictures need not wait for.
    from dassl.data.datasets import build_dataset
    from scripts.drawing.trained_run import config_of

    cfg = config_of(dict(result), Path("result.json"))
    cfg.DATASET.ROOT = root or cfg.DATASET.ROOT
    if not Path(cfg.DATASET.ROOT).is_dir():  # before the bundled suite would be rendered there
        raise FileNotFoundError(f"no folder {cfg.DATASET.ROOT}")
    # Names are looked up, so all classes serve the runs on base and on new ones.
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES, cfg.VERBOSE = -1, "all", False
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()):
        cfg.OUTPUT_DIR = scratch
        items = build_dataset(cfg).test or []
    paths: dict[str, list[str]] = {}
    for item in items:
        paths.setdefault(item.classname, []).append(item.impath)
    return paths


def thumbnail(path: str) -> str:
    """Return a small version of an image as a data URL; "" if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE))
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
