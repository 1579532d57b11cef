"""A small folder laid out as the public one, with what must come out of it."""

import gzip
import json
import random

import numpy as np
import pytest
import yaml

from scripts.real_data.arrays import EXPECTED

NAMES = ["banded", "blotchy", "braided", "bubbly", "bumpy"]  # base has three, novel two
RNG = np.random.default_rng(3)


def rows_of(centres, labels, noise=0.35):
    """Features (N, D), of any length, and int32 labels (N,)."""
    x = centres[labels] + noise * RNG.normal(size=(len(labels), centres.shape[1]))
    return x.astype(np.float32), np.asarray(labels, dtype=np.int32)


def plain_accuracy(scores, labels, classes):
    """Percent of the images of some classes that are told right among them, one by one."""
    told = []
    for row, label in zip(scores, labels, strict=True):
        if label in classes:
            told.append(max(classes, key=lambda k, row=row: row[k]) == label)
    return 100 * sum(told) / len(told) if told else None


def halves(scores, labels):
    count = scores.shape[1]
    base = range((count + 1) // 2)
    novel = range((count + 1) // 2, count)
    classes = {"all": range(count), "base": base, "novel": novel}
    return {name: plain_accuracy(scores, labels, own) for name, own in classes.items()}


def write_npz(folder, name, found, **arrays):
    np.savez(folder / name, **arrays)
    found[name] = arrays


def write_gz(path, content):
    with gzip.open(path, "wt") as file:
        json.dump(content, file)


def cosines(features, text):
    scores = features @ text.T
    norms = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(text, axis=1)
    return scores / norms


def write_features(folder):
    """All files of features and cosines; return the accuracies by file and array of images."""
    text = RNG.normal(size=(5, 8))
    text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)
    found, accuracy = {}, {}
    for name in ("eurosat", "pets", "dtd", "caltech"):
        x, label = rows_of(text, np.repeat(range(5), 6))
        scores = cosines(x, text)
        file = f"zero_shot_logits_{name}.npz"
        write_npz(folder, file, found, cosine=scores.astype(np.float32), label=label)
        accuracy[file, "cosine"] = halves(scores, label)
    train = rows_of(text, np.repeat(range(3), 4))
    base, novel = rows_of(text, np.repeat(range(3), 8)), rows_of(text, np.repeat([3, 4], 8))
    arrays = {"base_train": train, "base_test": base, "novel_test": (novel[0], novel[1] - 3)}
    parts = {name: x for name, (x, _) in arrays.items()}
    parts |= {f"{name}_label": label for name, (_, label) in arrays.items()}
    for file, own in (
        ("dtd_vit_b16.npz", ("base_train", "base_test", "novel_test")),
        ("caltech101_vit_b16_novel.npz", ("novel_test",)),
    ):
        chosen = {name: x for name, x in parts.items() if name.removesuffix("_label") in own}
        write_npz(folder, file, found, **chosen, text=text, classnames=np.array(NAMES))
        accuracy[file, "base_test"] = halves(cosines(base[0], text), base[1])
        accuracy[file, "novel_test"] = halves(cosines(novel[0], text), novel[1])
    shots = {k: rows_of(text, np.repeat(range(5), k)) for k in (1, 2, 4)}
    write_npz(
        *(folder, "imagenet_vit_b32.npz", found),
        **{f"train_{k}": x for k, (x, _) in shots.items()},
        text=text,
    )
    for k, (x, label) in shots.items():
        accuracy["imagenet_vit_b32.npz", f"train_{k}"] = halves(cosines(x, text), label)
    for file in ("caltech101_63_classes_vit_b32.npz", "oxford_pets_25_classes_vit_b32.npz"):
        x, label = rows_of(text, np.repeat(range(5), 4))
        y, test_label = rows_of(text, np.repeat(range(5), 10))
        write_npz(
            *(folder, file, found),
            **{"train": x, "train_label": label, "test": y, "test_label": test_label},
            **{"text": text, "classnames": np.array(NAMES), "text_source": np.array(NAMES)},
        )
        accuracy[file, "test"] = halves(cosines(y, text), test_label)
    return accuracy


def write_draws(folder):
    """Two split files and CoOp's draws from them, written out with the standard library."""
    (folder / "splits").mkdir()
    published = {}
    for dataset in ("Caltech101", "OxfordPets"):
        split = {
            part: [[f"{part}/{k}_{i}.jpg", k, NAMES[k]] for k in (1, 0, 2) for i in range(count)]
            for part, count in (("train", 6), ("val", 5), ("test", 2))
        }
        write_gz(folder / "splits" / f"split_zhou_{dataset}.json.gz", split)
        published[dataset] = {}
        for shots, seed in ((1, 1), (2, 3)):
            generator = random.Random(seed)
            published[dataset][f"{shots}-{seed}"] = {
                part: [
                    i
                    for k in (1, 0, 2)  # as they are first seen
                    for i in generator.sample(
                        [i for i, row in enumerate(split[part]) if row[1] == k], shots
                    )
                ]
                for part in ("train", "val")
            }
    write_gz(folder / "few_shot_draws.json.gz", published)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder and the file of what it must give, made once; tests copy what they change."""
    base = tmp_path_factory.mktemp("public")
    folder = base / "real"
    folder.mkdir()
    accuracy = write_features(folder)
    write_draws(folder)
    # The project's own list of files and arrays, with this folder's numbers.
    expected = yaml.safe_load(EXPECTED.read_text())
    for row in expected["zero_shot"]:
        own = accuracy[row["file"], row["images"]]
        row["accuracy"] = {half: round(float(own[half]), 2) for half in row["accuracy"]}
    (base / "expected.yaml").write_text(yaml.safe_dump(expected))
    return folder, base / "expected.yaml"
