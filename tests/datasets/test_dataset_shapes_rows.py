"""The bundled suite through the same classes as every other dataset, in a few small pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from datasets import shapes
from datasets.row import DatasetRow
from datasets.rows import ROWS
from tests.conftest import REPOSITORY

BUNDLED = [row.name for row in ROWS if not row.published]
SIZES = {name: (len(entry.classes), entry.per_class) for name, entry in shapes.SUITE.items()}
SIBLINGS = ["ShapesV2", "ShapesSketch", "ShapesR", "ShapesA"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two pictures where the suite has dozens: the sizes are the suite's own tests' business."""
    small = {
        name: replace(entry, per_class=tuple(min(2, size) for size in entry.per_class))
        for name, entry in shapes.SUITE.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in small.items():
            patch.setitem(shapes.SUITE, name, entry)
        yield tmp_path_factory.mktemp("data") / "new"


def test_every_set_of_the_suite_has_a_row() -> None:
    assert sorted(BUNDLED) == sorted(shapes.SUITE)


@pytest.mark.parametrize("row", [row for row in ROWS if row.bundled], ids=lambda row: row.config)
def test_documentation_has_the_sizes_of_the_suite(row: DatasetRow) -> None:
    guide = (REPOSITORY / "DATASETS.md").read_text()
    (line,) = (line for line in guide.splitlines() if line.startswith(f"| `{row.config}` | ")
               and line.count("|") == 6 and " / " in line)  # fmt: skip
    number, per_class = SIZES[row.name]
    per_class_cell, images_cell = (
        " / ".join(f"{count * times:,}" for count in per_class) for times in (1, number)
    )
    assert line.split(" | ")[2:4] == [per_class_cell, images_cell]
    assert f"{number}" in line.split(" | ")[1] or "the same" in line.split(" | ")[1]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_set_is_rendered_and_read(name: str, root: Path, build) -> None:
    dataset = build(name, root, NUM_SHOTS=1)
    suite_set = shapes.SUITE[name]
    classes = list(suite_set.classes)
    assert dataset.classnames == classes
    assert dataset.dataset_dir == str(root / "shapes")
    assert [d.classname for d in dataset.test] == [c for c in classes for _ in range(2)]
    assert len(dataset.train_x) == (len(classes) if name not in SIBLINGS else 0)
    assert all(classes[d.label] == d.classname for d in dataset.train_x + dataset.test)
    assert dataset.notes == []
    with Image.open(dataset.test[0].impath) as picture:
        assert picture.size == (48, 48)


@pytest.mark.parametrize("name", SIBLINGS)
def test_shifted_siblings_share_the_label_order_of_shapes(name: str, root: Path, build) -> None:
    assert build(name, root).classnames == build("Shapes", root).classnames


def test_halves_of_the_forty_classes(root: Path, build) -> None:
    base, new = (build("Shapes", root, SUBSAMPLE_CLASSES=half) for half in ("base", "new"))
    assert (base.num_classes, new.num_classes) == (20, 20)
    assert base.classnames + new.classnames == list(shapes.SUITE["Shapes"].classes)


def test_missing_picture_is_made_again(root: Path, build, capsys) -> None:
    picture = Path(build("ShapesForms", root).test[0].impath)
    content = picture.read_bytes()
    picture.unlink()
    build("ShapesForms", root)
    assert "they are drawn again" in capsys.readouterr().out
    assert picture.read_bytes() == content
