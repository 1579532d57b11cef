import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets import DATASET_REGISTRY
from datasets import features, rows, table
from datasets.base import SplitFileDataset, function_of
from datasets.folder import extend_cfg
from datasets.row import DatasetRow
from datasets.rows import ROWS

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"
# One line per published dataset: config, class, where images lie, split file, template, counts
# (DATASET_FACTS and METHODS of the project; written out again so that a slip in the table shows).
PUBLISHED = {
    "Caltech101": ("caltech101", "caltech-101/101_ObjectCategories", "A photo of a {}.",
                   100, (4128, 1649, 2465)),
    "OxfordPets": ("oxford_pets", "oxford_pets/images", "A photo of a {},",
                   37, (2944, 736, 3669)),
    "DescribableTextures": ("dtd", "dtd/images", "A photo of a {},",
                            47, (2820, 1128, 1692)),
    "EuroSAT": ("eurosat", "eurosat/2750", "A top-down view of {} arranged in a pattern,",
                10, (13500, 5400, 8100)),
    "StanfordCars": ("stanford_cars", "stanford_cars", "A photo of a {}, a type of car.",
                     196, (6509, 1635, 8041)),
    "OxfordFlowers": ("oxford_flowers", "oxford_flowers/jpg", "A photo of a {},",
                      102, (4093, 1633, 2463)),
    "Food101": ("food101", "food-101/images", "A photo of a {}, a type of food.",
                101, (50500, 20200, 30300)),
    "SUN397": ("sun397", "sun397/SUN397", "A photo of a {},",
               397, (15880, 3970, 19850)),
    "UCF101": ("ucf101", "ucf101/UCF-101-midframes", "A photo of a {},",
               101, (7639, 1898, 3783)),
}  # fmt: skip
# The same of those whose own files are the split.
OFFICIAL = {
    "ImageNet": ("imagenet", "imagenet/images", "A photo of a {},",
                 1000, (1281167, 0, 50000)),
    "FGVCAircraft": ("fgvc_aircraft", "fgvc_aircraft/images", "A photo of a {},",
                     100, (3334, 3333, 3333)),
    "ImageNetV2": ("imagenetv2", "imagenetv2/imagenetv2-matched-frequency-format-val",
                   "A photo of a {},", 1000, (0, 0, 10000)),
    "ImageNetSketch": ("imagenet_sketch", "imagenet-sketch/images", "A photo of a {},",
                       1000, (0, 0, 50889)),
    "ImageNetA": ("imagenet_a", "imagenet-adversarial/imagenet-a", "A photo of a {},",
                  200, (0, 0, 7500)),
    "ImageNetR": ("imagenet_r", "imagenet-rendition/imagenet-r", "A photo of a {},",
                  200, (0, 0, 30000)),
    "ObjectNet": ("objectnet", "objectnet-1.0/images", "A photo of a {},",
                  113, (0, 0, 18574)),
}  # fmt: skip
FACTS = {**PUBLISHED, **OFFICIAL}
published = pytest.mark.parametrize("name", PUBLISHED)
real = pytest.mark.parametrize("name", FACTS)
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.config)
FOLDERS = {"b": "second", "a": "first", "c_d": "third_one"}


@pytest.fixture
def tree(tmp_path: Path, write_split):
    """Write a small copy of a published dataset and return its root."""

    def make(name: str) -> Path:
        images = tmp_path / "data" / PUBLISHED[name][1]
        directory = tmp_path / "data" / PUBLISHED[name][1].split("/")[0]
        write_split(directory / f"split_zhou_{name}.json", images, FOLDERS, (3, 2, 4))
        return tmp_path / "data"

    return make


def test_every_row_of_real_data_is_checked() -> None:
    assert {row.name for row in ROWS if row.published} == FACTS.keys()


@real
def test_row_holds_the_published_facts(name: str) -> None:
    config, images, template, classes, counts = FACTS[name]
    row = rows.row_of(name)
    assert row is rows.row_of(config)
    assert f"{row.directory}/{row.images}".rstrip("/") == images
    assert row.split_file == (f"split_zhou_{name}.json" if name in PUBLISHED else None)
    assert (row.template, row.num_classes, row.counts) == (template, classes, counts)
    assert row.published
    assert row.prepare is None
    assert callable(function_of(row.reader))
    assert row.shifted == (counts[0] == 0)
    assert bool(row.wnids) == (row.shifted or name == "ImageNet")
    assert not row.wnids or callable(function_of(row.wnids))
    assert row.border == (2 if name == "ObjectNet" else 0)


@real
def test_documentation_has_the_facts_of_the_row(name: str) -> None:
    config, images, _, classes, counts = FACTS[name]
    line = (
        f"| `{config}` | `{name}` | `{images}` | {classes:,} | "
        + " / ".join(f"{count:,}" if count else "-" for count in counts)
        + " |"
    )
    text = (CONFIGS.parents[1] / "DATASETS.md").read_text()
    assert line in text.splitlines()
    assert f"### {name}\n" in text
    assert (f"    split_zhou_{name}.json" in text) == (name in PUBLISHED)


def test_rows_are_unique_and_unknown_ones_listed() -> None:
    for key in ("name", "config"):
        values = [getattr(row, key) for row in ROWS]
        assert len(set(values)) == len(values)
    with pytest.raises(KeyError, match="no dataset 'Petz' in the table"):
        rows.row_of("Petz")


@every_row
def test_the_protocols_place_of_a_row(row: DatasetRow) -> None:
    assert row.group in ("", "few_shot", "shifts", "extra", "targets")
    assert bool(row.trained_on) == (row.group in ("shifts", "extra", "targets"))
    if row.trained_on:
        source = rows.row_of(row.trained_on)
        assert (source.config, source.trained_on) == (row.trained_on, "")
        assert source.bundled == row.bundled
    if row.group == "shifts" and not row.bundled:
        assert row.num_classes <= source.num_classes


def test_shifts_read_the_texts_of_their_source() -> None:
    names = [*rows.ROW_OF, "Folder"]
    assert {name: rows.texts_of(name) for name in names if rows.texts_of(name) != name} == {
        **dict.fromkeys(("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"), "ImageNet"),
        **dict.fromkeys(("ShapesV2", "ShapesSketch", "ShapesR", "ShapesA"), "Shapes"),
    }


@published
def test_official_layout_is_read(name: str, tree, build) -> None:
    root = tree(name)
    dataset = build(name, root)
    image_dir = root / PUBLISHED[name][1]
    assert dataset.classnames == ["second", "first", "third_one"]
    assert dataset.lab2cname == {0: "second", 1: "first", 2: "third_one"}
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (9, 6, 12)
    assert dataset.num_classes == 3
    assert dataset.dataset_dir == str(root / PUBLISHED[name][1].split("/")[0])
    assert dataset.image_dir == str(image_dir)
    assert dataset.template == PUBLISHED[name][2]
    first = dataset.train_x[0]
    assert (first.impath, first.label) == (str(image_dir / "b" / "img_000.jpg"), 0)
    assert all(Path(d.impath).is_file() for d in dataset.train_x + dataset.val + dataset.test)


@published
def test_halves(name: str, tree, build) -> None:
    root = tree(name)
    base = build(name, root, SUBSAMPLE_CLASSES="base")
    new = build(name, root, SUBSAMPLE_CLASSES="new")
    assert base.classnames == ["second", "first"]
    assert new.classnames == ["third_one"]
    assert (len(base.test), len(new.test)) == (8, 4)
    assert {d.label for d in new.train_x + new.val + new.test} == {0}


@published
def test_other_counts_than_known_are_noted(name: str, tree, build, capsys) -> None:
    dataset = build(name, tree(name))
    _, _, _, classes, counts = PUBLISHED[name]
    assert dataset.notes == [
        f"{name}: 3 classes, known are {classes}",
        f"{name}: 9/6/12 train/val/test images, known are {counts[0]}/{counts[1]}/{counts[2]}; "
        "results may not be comparable",
    ]
    assert capsys.readouterr().out.count("WARNING: ") == 2


@published
def test_missing_data_names_path_flag_and_source(name: str, tmp_path: Path, build) -> None:
    with pytest.raises(FileNotFoundError) as error:
        build(name, tmp_path / "nowhere")
    message = str(error.value)
    assert str(tmp_path / "nowhere" / PUBLISHED[name][1]) in message
    assert f"--root is {tmp_path / 'nowhere'}" in message
    assert rows.row_of(name).source in message


@published
def test_missing_split_names_path_source_and_the_way_on(name: str, tree, build) -> None:
    root = tree(name)
    split = root / PUBLISHED[name][1].split("/")[0] / f"split_zhou_{name}.json"
    split.unlink()
    with pytest.raises(FileNotFoundError) as error:
        build(name, root)
    message = str(error.value)
    assert str(split) in message
    assert "github.com/KaiyangZhou/CoOp" in message
    assert "DATASET.ALLOW_OWN_SPLIT True" in message
    assert "not comparable with published numbers" in message


@published
def test_missing_image_names_path_count_and_split(name: str, tree, build) -> None:
    root = tree(name)
    gone = root / PUBLISHED[name][1] / "a" / "img_001.jpg"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 27 images") as error:
        build(name, root)
    assert str(gone) in str(error.value)
    assert f"split_zhou_{name}.json" in str(error.value)
    assert rows.row_of(name).source in str(error.value)


@published
def test_published_split_goes_before_an_own_one(name: str, tree, build) -> None:
    root = tree(name)
    allowed, forbidden = (build(name, root, ALLOW_OWN_SPLIT=value) for value in (True, False))
    assert [d.impath for d in allowed.train_x] == [d.impath for d in forbidden.train_x]
    assert allowed.notes == forbidden.notes


@every_row
def test_class_is_importable_picklable_and_registered(row: DatasetRow) -> None:
    cls = getattr(table, row.name)
    assert DATASET_REGISTRY.get(row.name) is cls
    assert (cls.__module__, cls.__name__) == ("datasets.table", row.name)
    assert cls.__qualname__ == row.name
    assert row.name in cls.__doc__
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cls.row is row


def test_instances_are_picklable(tree, build) -> None:
    dataset = build("EuroSAT", tree("EuroSAT"))
    again = copy.deepcopy(dataset)
    assert type(again) is type(dataset)
    assert again.classnames == dataset.classnames


@every_row
def test_yaml_agrees_with_the_row(row: DatasetRow) -> None:
    path = CONFIGS / f"{row.config}.yaml"
    assert path.read_text().startswith("# ")
    cfg = get_cfg_default()
    merge_file(cfg, path)
    assert row.name == cfg.DATASET.NAME
    # A text here would be taken for the user's choice.
    assert cfg.DATASET.PROMPT_TEMPLATE == ""
    for text in (row.template, row.hand_made, row.kgcoop or "{}", row.hint_first or "{}"):
        assert text.count("{}") == 1
    assert cfg.MODEL.BACKBONE.NAME == ("" if row.published else "shapes")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file_belongs_to_a_dataset(path: Path) -> None:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    features.extend_cfg(cfg)
    merge_file(cfg, path)
    assert cfg.DATASET.NAME in DATASET_REGISTRY
    if path.stem == "folder":
        assert cfg.DATASET.NAME == "Folder"
        assert cfg.DATASET.SPLIT_RATIO == (0.5, 0.2, 0.3)
    elif path.stem == "split":
        assert (cfg.DATASET.NAME, cfg.DATASET.SPLIT_FILE) == ("Split", "split.json")
    elif path.stem == "features":
        assert (cfg.DATASET.NAME, cfg.DATASET.FEATURES.TEXT) == ("Features", "text.npz")
    else:
        assert rows.row_of(cfg.DATASET.NAME).config == path.stem
    # What belongs to a method or a protocol would be overruled, or overrule, by surprise.
    assert not {"TRAINER", "OPTIM", "TRAIN"} & set(yaml.safe_load(path.read_text()))


def test_sets_with_descriptions_of_ours() -> None:
    with_prompts = {
        path.stem
        for path in CONFIGS.glob("*.yaml")
        if yaml.safe_load(path.read_text())["DATASET"].get("PROMPT_PATH")
    }
    shapes = {"shapes", "shapes_v2", "shapes_sketch", "shapes_r", "shapes_a"}
    assert with_prompts == {*shapes, "eurosat", "dtd"}


def dataset_of(row: DatasetRow) -> type[SplitFileDataset]:
    return type(row.name, (SplitFileDataset,), {"row": row, "default_template": row.template})


def row(**values: Any) -> DatasetRow:
    return DatasetRow(
        **{"config": "toy", "name": "Toy", "directory": "toy", "images": "", "split_file": "s.json",
           "template": "a {}", "source": "Ask the baker.", **values}
    )  # fmt: skip


def test_prepare_runs_before_reading_and_gets_the_root(tmp_path, make_cfg, write_split) -> None:
    roots = []

    def render(root: Path) -> None:
        roots.append(root)
        content = write_split(root / "toy/s.json", root / "toy", {"x": "x", "y": "y"}, (2, 0, 1))
        assert content["val"] == []

    cls = dataset_of(row(prepare=render, num_classes=2, counts=(4, 0, 2), published=False))
    dataset = cls(make_cfg("Toy", tmp_path / "new"))
    assert roots == [tmp_path / "new"]
    assert dataset.notes == []
    assert dataset.template == "a {}"
    assert (len(dataset.train_x), len(dataset.test)) == (4, 2)
    assert not dataset.val


def test_test_only_set_has_classes_and_no_draw(tmp_path, make_cfg, write_split) -> None:
    write_split(tmp_path / "toy/s.json", tmp_path / "toy", {"x": "x", "y": "y"}, (0, 0, 3))
    cfg = make_cfg("Toy", NUM_SHOTS=16, OUTPUT_DIR=tmp_path / "out", SUBSAMPLE_CLASSES="new")
    dataset = dataset_of(row())(cfg)
    assert dataset.classnames == ["y"]
    assert len(dataset.test) == 3
    assert not dataset.train_x
    assert not (tmp_path / "out").exists()


def test_row_without_reader_has_no_own_split(tmp_path, make_cfg, touch) -> None:
    touch(tmp_path / "toy", ["x/1.jpg"])
    with pytest.raises(FileNotFoundError, match=r"no split file .*s\.json\. Ask the baker\."):
        dataset_of(row())(make_cfg("Toy", ALLOW_OWN_SPLIT=True))
    with pytest.raises(ValueError, match="Toy has neither a split file nor a reader"):
        dataset_of(row(split_file=None))(make_cfg("Toy"))


def test_official_reader_needs_no_permission_and_no_note(tmp_path, make_cfg, touch) -> None:
    touch(tmp_path / "toy", [f"{c}/{i}.jpg" for c in "xy" for i in range(4)])
    cls = dataset_of(row(split_file=None, reader="readers.class_folders"))
    dataset = cls(make_cfg("Toy"))
    assert dataset.notes == []
    assert dataset.classnames == ["x", "y"]


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'EuroSAT' is already registered"):
        table.register(row(name="EuroSAT"))
    assert DATASET_REGISTRY.get("EuroSAT") is getattr(table, "EuroSAT")  # noqa: B009
