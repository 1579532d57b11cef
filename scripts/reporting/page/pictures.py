"""Small example pictures of classes, embedded in the page within a limit."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

SIDE = 64  # pixels of the longer side
QUALITY = 70
MOST_BYTES = 1_000_000  # of all pictures of a page, as they stand in it


class Pictures:
    """Test images of classes as data URLs, each class's once.

    Args:
        per_class: Pictures of a class; 0 shows none.
        root: Folder of all datasets; "" takes the one each run recorded.

    Attributes:
        found: URLs by dataset and class.
        problems: A line for each dataset whose images are not there, and one if the limit is hit.
    """

    def __init__(self, per_class: int, root: str = "") -> None:
        self.per_class, self.root = per_class, root
        self.found: dict[str, dict[str, list[str]]] = {}
        self.problems: list[str] = []
        self._paths: dict[str, dict[str, list[str]]] = {}  # by dataset and class
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
        if dataset not in self._paths:
            self._paths[dataset] = self._read_paths(dataset, result)
        known = self.found.setdefault(dataset, {})
        for name in names:
            if name not in known and self._bytes < MOST_BYTES:
                paths = self._paths[dataset].get(name, [])[: self.per_class]
                known[name] = [url for path in paths if (url := thumbnail(path))]
                self._bytes += sum(map(len, known[name]))
                if self._bytes >= MOST_BYTES:
                    self.problems.append(
                        f"Pictures are left out from {MOST_BYTES / 1e6:.0f} MB on: report fewer "
                        "datasets (--datasets), or set --pictures 1 or 0."
                    )

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
