"""Small file trees in the official layouts, and configs that point at them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from datasets.folder import extend_cfg
from tests.datasets.trees import (  # noqa: F401 - fixtures
    actions,
    aircraft,
    caltech,
    cars,
    dtd,
    eurosat,
    flowers,
    food,
    imagenets,
    objects,
    pets,
    scenes,
)

# Without a deadline, which a busy machine misses; with the same examples on every run.
settings.register_profile("datasets", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("datasets")


@pytest.fixture
def make_cfg(tmp_path: Path) -> Callable[..., Any]:
    """``make_cfg("DTD", SEED=1, NUM_SHOTS=2)``: upper-case keys of DATASET, SEED and OUTPUT_DIR."""

    def make(name: str, root: Path | str = tmp_path, **values: Any) -> Any:
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.DATASET.NAME = name
        cfg.DATASET.ROOT = str(root)
        cfg.SEED = values.pop("SEED", 1)
        cfg.OUTPUT_DIR = str(values.pop("OUTPUT_DIR", ""))
        for key, value in values.items():
            assert key in cfg.DATASET
            cfg.DATASET[key] = value
        return cfg

    return make


@pytest.fixture
def build(make_cfg: Callable[..., Any]) -> Callable[..., Any]:
    def make(name: str, *args: Any, **values: Any) -> Any:
        return build_dataset(make_cfg(name, *args, **values))

    return make


@pytest.fixture
def touch() -> Callable[[Path, Iterable[str]], None]:
    """Create empty files; readers list images, the engine opens them."""

    def make(directory: Path, names: Iterable[str]) -> None:
        for name in names:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


@pytest.fixture
def write_split(touch: Callable[..., None]) -> Callable[..., dict[str, list[list[Any]]]]:
    """Write a split file over ``folders`` (class name per folder) and the images it lists."""

    def make(
        split_file: Path, image_dir: Path, folders: dict[str, str], sizes: tuple[int, int, int]
    ) -> dict[str, list[list[Any]]]:
        content: dict[str, list[list[Any]]] = {"train": [], "val": [], "test": []}
        for label, (folder, name) in enumerate(folders.items()):
            number = 0
            for part, size in zip(content, sizes, strict=True):
                for _ in range(size):
                    content[part].append([f"{folder}/img_{number:03d}.jpg", label, name])
                    number += 1
        touch(image_dir, [entry[0] for part in content.values() for entry in part])
        split_file.parent.mkdir(parents=True, exist_ok=True)
        split_file.write_text(json.dumps(content))
        return content

    return make
