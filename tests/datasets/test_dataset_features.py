"""``DATASET.NAME: Features``: draws and halves as of images, and what is refused in a line."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import datasets.features
from dassl.data.datasets import Datum
from datasets.features import FeatureDatum
from datasets.sampling import draw_few_shot, subsample_classes
from datasets.splits import Splits

D, K = 4, 5
NAMES = ["ant", "bee", "cat", "dog", "eel"]
COUNTS = {"train": 40, "val": 20, "test": 25}  # rows


def rows(count: int, seed: int, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D)).astype(dtype)


def labels(count: int) -> np.ndarray:
    """Classes in an order of their own: 3, 0, 4, 1, 2, 3, ..."""
    return (3 + 2 * np.arange(count)) % K


def each(make: Callable[[int], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same change of train, val and test, from their numbers of rows."""
    return {part: make(count) for part, count in COUNTS.items()}


@pytest.fixture
def write(tmp_path):
    """Write npz files of arrays: the usual ones, with others in the place of some of theirs."""

    def usual() -> dict[str, dict[str, Any]]:
        files: dict[str, dict[str, Any]] = {
            part: {"features": rows(count, count), "labels": labels(count), "classnames": NAMES}
            for part, count in COUNTS.items()
        }
        files["text"] = {"text_features": rows(K, 1), "classnames": NAMES}
        return files

    def make(**changes: dict[str, Any]) -> None:
        for name, arrays in usual().items():
            kept = {**arrays, **changes.get(name, {})}
            content = {key: value for key, value in kept.items() if value is not None}
            np.savez(tmp_path / f"{name}.npz", **content)

    return make


@pytest.fixture
def build_features(make_cfg, tmp_path):
    """A dataset of the four files; upper-case keys are those of DATASET.FEATURES and DATASET."""

    def make(**values: Any):
        from dassl.data.datasets import build_dataset

        cfg = make_cfg("Features", tmp_path)
        datasets.features.extend_cfg(cfg)
        files = {"TRAIN": "train.npz", "VAL": "val.npz", "TEST": "test.npz", "TEXT": "text.npz"}
        for key, value in {**files, **values}.items():
            section = cfg.DATASET.FEATURES if key in cfg.DATASET.FEATURES else cfg.DATASET
            if key == "SEED":
                section = cfg
            assert key in section
            section[key] = value
        return build_dataset(cfg)

    return make


def places(items: list[Any]) -> list[tuple[int, int, str]]:
    return [(item.row, item.label, item.classname) for item in items]


@pytest.mark.parametrize("half", ["all", "base", "new"])
@pytest.mark.parametrize("seed", [1, 2])
def test_draws_are_those_of_images_in_the_same_order(write, build_features, half, seed):
    write()
    dataset = build_features(NUM_SHOTS=2, SEED=seed, SUBSAMPLE_CLASSES=half)
    images = [
        [Datum(f"{row}.jpg", int(k), 0, NAMES[k]) for row, k in enumerate(labels(count))]
        for count in COUNTS.values()
    ]
    drawn = subsample_classes(draw_few_shot(Splits(*images), 2, seed), half)
    for items, expected in zip((dataset.train_x, dataset.val, dataset.test), drawn, strict=True):
        assert places(items) == [(int(i.impath[:-4]), i.label, i.classname) for i in expected]
        assert all(isinstance(item, FeatureDatum) for item in items)
    assert dataset.classnames == {"all": NAMES, "base": NAMES[:3], "new": NAMES[3:]}[half]


def test_arrays_and_paths(write, build_features, tmp_path):
    write(test={"paths": [f"pictures/{n}.jpg" for n in range(25)]})
    dataset = build_features()
    assert np.array_equal(dataset.features["train"], rows(40, 40))
    assert dataset.train_x[7].impath == f"{tmp_path}/train.npz#7"
    assert dataset.test[7].impath == f"{tmp_path}/pictures/7.jpg"
    assert dataset.test[7].file == f"{tmp_path}/test.npz"
    assert dataset.notes == []


@pytest.mark.parametrize("half", ["all", "base", "new"])
@pytest.mark.parametrize("order", [None, [0, 1, 2, 3, 4], [4, 2, 0, 1, 3, 5]])
def test_texts_are_found_by_name_or_in_label_order(write, build_features, half, order):
    """Names in another order, one of them of no class; or no names at all."""
    names = None if order is None else [[*NAMES, "fox"][k] for k in order]
    text = rows(6, 1)[order] if order else rows(K, 1)
    write(text={"text_features": text, "classnames": names})
    found = build_features(SUBSAMPLE_CLASSES=half).class_texts
    kept = {"all": slice(0, 5), "base": slice(0, 3), "new": slice(3, 5)}[half]
    assert np.array_equal(np.concatenate(found.rows), rows(6, 1)[:K][kept] if order else text[kept])
    assert found.logit_scale == math.log(100)


def test_several_texts_of_a_class(write, build_features):
    several = np.stack([rows(3, k) for k in range(K)])  # (K, P, D)
    write(text={"text_features": several})
    assert all(map(np.array_equal, build_features().class_texts.rows, several))
    owners = [0, 1, 1, 2, 3, 4, 4]
    write(text={"text_features": rows(7, 0), "text_labels": owners, "logit_scale": np.float32(3)})
    found = build_features().class_texts
    assert [len(own) for own in found.rows] == [1, 2, 1, 1, 2]
    assert np.array_equal(np.concatenate(found.rows), rows(7, 0))
    assert found.logit_scale == 3
    assert build_features(LOGIT_SCALE=50.0).class_texts.logit_scale == math.log(50)


def test_labels_may_be_names(write, build_features):
    as_names = each(lambda n: {"labels": [NAMES[k] for k in labels(n)]})
    write()
    expected = places(build_features().train_x)
    write(**as_names)
    assert places(build_features().train_x) == expected
    # Without a list of names they are sorted.
    for part in as_names.values():
        part["classnames"] = None
    write(**as_names)
    assert places(build_features().train_x) == expected


def test_where_class_names_come_from(write, build_features, tmp_path):
    nameless = each(lambda n: {"classnames": None})
    write(**nameless)
    assert build_features().classnames == NAMES  # of the text features
    write(**nameless, text={"classnames": None})
    assert build_features().classnames == [f"class {k}" for k in range(K)]
    (tmp_path / "names.txt").write_text("\n".join(name.upper() for name in NAMES))
    named = build_features(CLASSNAMES=str(tmp_path / "names.txt"), TEXT="")
    assert named.classnames == ["ANT", "BEE", "CAT", "DOG", "EEL"]
    assert named.class_texts is None
    with pytest.raises(ValueError, match=r"train\.npz has labels without class names: add an"):
        build_features(TEXT="")


def test_labels_in_files_of_their_own(write, build_features, tmp_path):
    write()
    for part, count in (("train", 40), ("test", 25)):
        np.save(tmp_path / f"{part}.npy", rows(count, count))
        np.save(tmp_path / f"{part}_labels.npy", labels(count))
    files = {"TRAIN": "train.npy", "TEST": "test.npy", "VAL": ""}
    with pytest.raises(ValueError, match=r"train\.npy has no array 'labels'.*TRAIN_LABELS names"):
        build_features(**files)
    dataset = build_features(
        **files, TRAIN_LABELS="train_labels.npy", TEST_LABELS="test_labels.npy"
    )
    assert np.array_equal(dataset.features["train"], rows(40, 40))
    assert [item.label for item in dataset.test] == labels(25).tolist()
    assert dataset.val == []


def test_arrays_of_other_names(write, build_features):
    none = {"features": None, "labels": None}
    changes = each(lambda n: {"x": rows(n, n), "y": labels(n), **none})
    write(**changes, text={"w": rows(K, 1), "text_features": None})
    dataset = build_features(KEY="x", LABEL_KEY="y", TEXT_KEY="w")
    assert np.array_equal(dataset.features["test"], rows(25, 25))
    assert np.array_equal(dataset.class_texts.rows[4][0], rows(K, 1)[4])
    with pytest.raises(
        ValueError, match=r"has no array 'X' \(DATASET.FEATURES.KEY\); it has .*'x', 'y'"
    ):
        build_features(KEY="X")


def test_half_precision_is_converted_and_said(write, build_features, capsys):
    write(train={"features": rows(40, 40, np.float16)})
    dataset = build_features()
    assert dataset.features["train"].dtype == np.float32
    assert np.array_equal(dataset.features["train"], rows(40, 40, np.float16).astype(np.float32))
    printed = capsys.readouterr().out
    assert "train.npz: features: float16 is converted to float32" in printed
    norms = np.linalg.norm(dataset.features["val"], axis=-1)
    assert f"norms {norms.min():.4g} to {norms.max():.4g}; methods scale them to 1" in printed


def test_prompts_beside_text_features_are_noted(write, build_features):
    write()
    notes = build_features(PROMPT_TEMPLATE="a drawing of a {}.").notes
    assert notes == [
        "DATASET.PROMPT_TEMPLATE 'a drawing of a {}.' has no effect: the classes' texts are "
        "features already, of DATASET.FEATURES.TEXT"
    ]
    assert build_features(PROMPT_TEMPLATE="a drawing of a {}.", TEXT="").notes == []


def changed(values: np.ndarray, place: Any, value: float) -> np.ndarray:
    values = values.copy()
    values[place] = value
    return values


WRONG = {
    "widths": (
        {"test": {"features": rows(25, 25)[:, :3]}},
        r"features of different width: .*train\.npz has 4, .*test\.npz has 3, .*from one",
    ),
    "width of texts": ({"text": {"text_features": rows(K, 1)[:, 1:]}}, r"text\.npz has 3"),
    "zero": (
        {"train": {"features": changed(rows(40, 40), 17, 0)}},
        r"train\.npz: features: row 17 is zero, and so has no direction; leave it out or compute",
    ),
    "NaN": (
        {"test": {"features": changed(rows(25, 25), (3, 1), np.nan)}},
        r"test\.npz: features: row 3 has NaN or infinite values",
    ),
    "infinite text": (
        {"text": {"text_features": changed(rows(K, 1), (4, 0), np.inf)}},
        r"text\.npz: text_features: row 4 has NaN or infinite values",
    ),
    "whole numbers": (
        {"train": {"features": np.ones((40, D), int)}},
        r"features must be floating-point numbers, got int64 \(40, 4\)",
    ),
    "one row": ({"train": {"features": np.ones(D)}}, r"\(rows, width\) or \(rows, views, width\)"),
    "views of test": (
        {"test": {"features": np.ones((25, 2, D))}},
        r"test\.npz: features must have the shape \(rows, width\), got \(25, 2, 4\)",
    ),
    "gap": (
        each(lambda n: {"labels": changed(labels(n), labels(n) == 2, 1)}),
        r"labels must run 0\.\.n-1, but 4 classes have labels up to 4; no image has 2",
    ),
    "no row of the last class": (
        each(lambda n: {"labels": changed(labels(n), labels(n) == 4, 1)}),
        r"5 class names, but no training features of \['eel'\]",
    ),
    "label that train lacks": (
        {"train": {"labels": changed(labels(40), labels(40) == 4, 1)}},
        r"test has labels that train lacks: 4|val has labels that train lacks: 4",
    ),
    "label above": ({"test": {"labels": labels(25) + 1}}, r"test\.npz has label 5, but of 5"),
    "label below": ({"test": {"labels": labels(25) - 1}}, r"test\.npz: labels: label -1 is below"),
    "name of no class": (
        {"train": {"labels": ["bea" if k == 1 else NAMES[k] for k in labels(40)]}},
        r"train\.npz has labels that are no class name: \['bea'\]\. Did you mean 'bee'\?",
    ),
    "one-hot": (
        {"train": {"labels": np.eye(K)[labels(40)]}},
        r"must be whole numbers or class names.*float64 \(40, 5\); of one-hot rows give the argmax",
    ),
    "fewer labels": ({"val": {"labels": labels(19)}}, r"val\.npz: labels: 19 labels for 20 rows"),
    "fewer paths": ({"val": {"paths": ["a.jpg"]}}, r"val\.npz: 1 paths for 20 rows"),
    "a name twice": (
        each(lambda n: {"classnames": ["ant", "bee", "ant", "dog", "eel"]}),
        r"train\.npz: class names stand there twice: \['ant'\]; rename one",
    ),
    "an empty name": (
        each(lambda n: {"classnames": ["ant", "bee", " ", "dog", "eel"]}),
        r"array 'classnames' must hold class names as texts",
    ),
    "other names": (
        {"test": {"classnames": [*NAMES[:4], "elk"]}},
        r"train\.npz.* state different class names; they must agree",
    ),
    "texts of other classes": (
        {"text": {"classnames": ["ant", "bee", "cow", "dog", "eel"]}},
        r"text features of other classes: none for 1 of 5, such as \['cat'\]\. .*It has 'ant'",
    ),
    "fewer texts": (
        {"text": {"text_features": rows(4, 1), "classnames": None}},
        r"of 4 classes without their names, but the dataset has 5 classes",
    ),
    "fewer names": ({"text": {"classnames": NAMES[:4]}}, r"4 class names for 5 classes of"),
    "no text of a class": (
        {"text": {"text_labels": [0, 1, 2, 4, 4]}},
        r"no text of class 3 among text_labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused_in_a_line(write, build_features, name):
    changes, message = WRONG[name]
    write(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        build_features()
    assert "\n" not in str(caught.value)


def test_missing_and_half_written_files(write, build_features, tmp_path):
    write()
    present = r"holds \['test\.npz', 'text\.npz', 'train\.npz', 'val\.npz'\]"
    asked = r"no file .*trian\.npz; DATASET\.FEATURES\.TRAIN "
    with pytest.raises(FileNotFoundError, match=f"{asked}.*{present}"):
        build_features(TRAIN="trian.npz")
    with pytest.raises(FileNotFoundError, match=r"DATASET\.FEATURES\.TEXT \('no/text\.npz'\)"):
        build_features(TEXT="no/text.npz")
    with pytest.raises(ValueError, match="needs DATASET.FEATURES.TRAIN or DATASET.FEATURES.TEST"):
        build_features(TRAIN="", TEST="", VAL="")
    whole = (tmp_path / "train.npz").read_bytes()
    (tmp_path / "train.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train\.npz cannot be read \(damaged, half written"):
        build_features()


def test_a_picture_in_train_and_test_is_refused(write, build_features):
    write(**each(lambda n: {"paths": [f"{row}.jpg" for row in range(n)]}))
    with pytest.raises(ValueError, match="a place in train and in test, first"):
        build_features()


def test_a_set_to_test_on_has_no_training_rows(write, build_features):
    write()
    dataset = build_features(TRAIN="", VAL="")
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (0, 0, 25)
    assert dataset.classnames == NAMES
