"""Small trees in the official layouts of the published datasets, with their own lists.

Each fixture returns the data root. Images are empty files; ``paint`` makes pictures of them.
"""

import hashlib
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

EUROSAT_SIZES = {
    "AnnualCrop": 10, "Forest": 11, "HerbaceousVegetation": 12, "Highway": 13, "Industrial": 4,
    "Pasture": 5, "PermanentCrop": 6, "Residential": 7, "River": 8, "SeaLake": 9,
}  # fmt: skip
CALTECH_SIZES = {
    "BACKGROUND_Google": 5, "Faces": 10, "Faces_easy": 10, "Leopards": 6, "Motorbikes": 7,
    "airplanes": 8, "wild_cat": 9,
}  # fmt: skip
PETS = {"Abyssinian": 1, "american_bulldog": 2, "Egyptian_Mau": 3}
CARS = ["Acura Integra Type R 2001", "Audi TTS Coupe 2012", "smart fortwo Convertible 2012"]
FLOWERS = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells"}
SCENES = ["/a/abbey", "/w/wrestling_ring/indoor", "/a/apse/indoor"]
ACTIONS = {"ApplyEyeMakeup": 1, "TaiChi": 2, "YoYo": 3}
VARIANTS = ["707-320", "A330-200", "F-16A/B", "Falcon 2000"]
# Twelve classes: enough for 10 to come before 2 as text. Two share a name, as in the real list.
NAMES = {
    "n00000001": "tench", "n00000005": "goldfish", "n00000011": "missile", "n00000012": "cock",
    "n00000020": "missile", "n00000021": "hen", "n00000100": "ostrich", "n00000101": "brambling",
    "n01000000": "great grey owl", "n02000000": "kite (bird of prey)", "n03000000": "junco",
    "n10000000": "toilet paper",
}  # fmt: skip
WNIDS = list(NAMES)
SHIFTS = {
    "ImageNetSketch": "imagenet-sketch/images",
    "ImageNetA": "imagenet-adversarial/imagenet-a",
    "ImageNetR": "imagenet-rendition/imagenet-r",
}
V2 = "imagenetv2/imagenetv2-matched-frequency-format-val"


def everything(dataset: Any) -> list[Any]:
    return [*dataset.train_x, *dataset.val, *dataset.test]


def sizes_per_class(part: list[Any]) -> list[int]:
    counts = Counter(item.label for item in part)
    return [counts[label] for label in sorted(counts)]


def write_folders(touch: Any, directory: Path, sizes: dict[str, int], pattern: str) -> None:
    for folder, size in sizes.items():
        touch(directory / folder, [pattern.format(folder, i) for i in range(1, size + 1)])


@pytest.fixture
def eurosat(tmp_path: Path, touch) -> Path:
    write_folders(touch, tmp_path / "eurosat" / "2750", EUROSAT_SIZES, "{}_{}.jpg")
    return tmp_path


@pytest.fixture
def caltech(tmp_path: Path, touch) -> Path:
    images = tmp_path / "caltech-101" / "101_ObjectCategories"
    write_folders(touch, images, CALTECH_SIZES, "image_{1:04d}.jpg")
    (images / "BACKGROUND_Google" / "tmp").touch()
    return tmp_path


@pytest.fixture
def dtd(tmp_path: Path, touch) -> Path:
    """The tree that dtd-r1.0.1.tar.gz unpacks to, with its own lists."""
    root = tmp_path / "dtd"
    sizes = {"zigzagged": 10, "banded": 10, "polka-dotted": 20}
    write_folders(touch, root / "dtd" / "images", sizes, "{}_{:04d}.jpg")
    (root / "dtd" / "images" / "waffled.orig").touch()
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for folder, size in sizes.items():
        for i in range(1, size + 1):
            lists[("train", "val", "test")[i % 3]].append(f"{folder}/{folder}_{i:04d}.jpg")
    touch(root / "dtd" / "labels", [])
    (root / "dtd" / "labels").mkdir()
    for part, names in lists.items():
        (root / "dtd" / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def food(tmp_path: Path, touch) -> Path:
    """The tree that food-101.tar.gz unpacks to; its own lists have no val."""
    root = tmp_path / "food-101"
    sizes = {"waffles": 8, "apple_pie": 12, "baby_back_ribs": 4}
    write_folders(touch, root / "images", sizes, "{1}.jpg")
    (root / "images" / ".DS_Store").touch()
    (root / "meta").mkdir()
    for part, first in (("train", 0), ("test", 1)):
        lists = {
            name: [f"{name}/{i}" for i in range(1, size + 1) if (i % 4 == 0) == first]
            for name, size in sizes.items()
        }
        (root / "meta" / f"{part}.json").write_text(json.dumps(lists))
    return tmp_path


@pytest.fixture
def pets(tmp_path: Path, touch) -> Path:
    """Lists like the official ones, which begin with comments and are sorted by name."""
    root = tmp_path / "oxford_pets"
    for part, first in (("trainval", 0), ("test", 100)):
        lines = ["#Image CLASS-ID SPECIES BREED ID"] if part == "trainval" else []
        for breed, label in PETS.items():
            names = [f"{breed}_{first + i}" for i in range(10 + label)]
            touch(root / "images", [f"{name}.jpg" for name in names])
            lines += [f"{name} {label} 1 1" for name in names]
        touch(root / "annotations", [f"{part}.txt"])
        (root / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    (root / "images" / "Abyssinian_0.mat").touch()
    return tmp_path


@pytest.fixture
def cars(tmp_path: Path, touch) -> Path:
    """Images and the devkit's lists, three classes with ten images to train and four to test."""
    root = tmp_path / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    names = np.array(CARS, dtype=object).reshape(1, -1)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    for part, path, size in (
        ("cars_train", root / "devkit" / "cars_train_annos.mat", 10),
        ("cars_test", root / "cars_test_annos_withlabels.mat", 4),
    ):
        rows = [(1, 2, 3, 4, i % 3 + 1, f"{i + 1:05d}.jpg") for i in range(3 * size)]
        fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")]
        dtype = [*fields, ("class", object), ("fname", object)]
        savemat(path, {"annotations": np.array([rows], dtype=dtype)})
        touch(root / part, [row[5] for row in rows])
    return tmp_path


@pytest.fixture
def flowers(tmp_path: Path, touch) -> Path:
    """Ten images of each of three classes, not in order of class."""
    root = tmp_path / "oxford_flowers"
    touch(root / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 31)])
    labels = np.array([[3 - i % 3 for i in range(30)]], dtype=np.uint8)
    savemat(root / "imagelabels.mat", {"labels": labels})
    ids = {key: [list(range(i, 31, 3))] for i, key in enumerate(("trnid", "valid", "tstid"), 1)}
    savemat(root / "setid.mat", ids)
    (root / "cat_to_name.json").write_text(json.dumps(dict(reversed(FLOWERS.items()))))
    return tmp_path


@pytest.fixture
def scenes(tmp_path: Path, touch) -> Path:
    """Five images of each class to train, three to test; ClassName.txt among the images."""
    root = tmp_path / "sun397"
    touch(root / "SUN397", ["ClassName.txt", "README.txt"])
    (root / "SUN397" / "ClassName.txt").write_text("\n".join(SCENES) + "\n")
    for part, first, size in (("Training", 0, 5), ("Testing", 5, 3)):
        names = [f"{c}/sun_a{i}.jpg" for c in SCENES for i in range(first, first + size)]
        touch(root / "SUN397", [name[1:] for name in names])
        (root / f"{part}_01.txt").write_text("\r\n".join(names) + "\r\n")
    return tmp_path


@pytest.fixture
def actions(tmp_path: Path, touch) -> Path:
    """The lists of the videos, and the middle frames of CoOp's archive."""
    root = tmp_path / "ucf101"
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{n} {a}\r\n" for a, n in ACTIONS.items()))
    folders = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "TaiChi": "Tai_Chi", "YoYo": "Yo_Yo"}
    for part, group, size in (("trainlist", 8, 5), ("testlist", 1, 3)):
        lines = []
        for action, number in ACTIONS.items():
            videos = [f"v_{action}_g{group:02d}_c{i:02d}" for i in range(size)]
            touch(root / "UCF-101-midframes" / folders[action], [f"{v}.jpg" for v in videos])
            end = f" {number}" if part == "trainlist" else ""
            lines += [f"{action}/{video}.avi{end}\n" for video in videos]
        (lists / f"{part}01.txt").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def aircraft(tmp_path: Path, touch) -> Path:
    """The data/ of the archive: image numbers, and variants that hold spaces and slashes."""
    root = tmp_path / "fgvc_aircraft"
    root.mkdir()
    (root / "variants.txt").write_text("\n".join(VARIANTS) + "\n")
    for part, first in (("train", 1025794), ("val", 56978), ("test", 1514522)):
        lines = [f"{first + i:07d} {variant}" for i, variant in enumerate(VARIANTS[::-1] * 3)]
        touch(root / "images", [f"{line[:7]}.jpg" for line in lines])
        (root / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def write_names(directory: Path, names: dict[str, str]) -> None:
    """In another order than the sorted one, which must not matter."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [f"{wnid} {name}\n" for wnid, name in reversed(names.items())]
    (directory / "classnames.txt").write_text("".join(lines))


@pytest.fixture
def imagenets(tmp_path: Path, touch) -> Path:
    """All five sets of twelve classes; -A and -R have four of them."""
    write_names(tmp_path / "imagenet", NAMES)
    for index, wnid in enumerate(WNIDS):
        for part, size in (("train", 6), ("val", 2)):
            names = [f"{wnid}_{i}.JPEG" for i in range(size)]
            touch(tmp_path / "imagenet" / "images" / part / wnid, names)
        touch(tmp_path / SHIFTS["ImageNetSketch"] / wnid, [f"sketch_{i}.JPEG" for i in range(3)])
        touch(tmp_path / V2 / str(index), [f"{index}{i}.jpeg" for i in range(2)])
        if index % 3 == 2:
            for name in ("ImageNetA", "ImageNetR"):
                touch(tmp_path / SHIFTS[name] / wnid, ["b.jpg", "a.jpg"])
    for name in ("ImageNetA", "ImageNetR"):
        touch(tmp_path / SHIFTS[name], ["README.txt"])
    return tmp_path


# The ImageNet classes that some folders of ObjectNet stand for; the others stand for none.
OBJECTS = {
    "banana": ("Banana", ("banana",)),
    "t-shirt": ("T-shirt", ("jersey, T-shirt, tee shirt",)),
    "alarm_clock": ("Alarm clock", ("analog clock", "digital clock")),
    "air_freshener": ("Air freshener", ()),
    "helmet": ("Helmet", ("crash helmet", "football helmet")),
    "backpack": (
        "Backpack", ("backpack, back pack, knapsack, packsack, rucksack, haversack",)
    ),
    "zipper": ("Zipper", ()),
}  # fmt: skip


def write_mappings(directory: Path, first: int = 0) -> None:
    """The four files of ObjectNet's archive; ``first`` numbers ImageNet's classes from 0 or 1."""
    info = ImageNetInfo("imagenet-1k")
    wnids = sorted(info.label_names())
    # ILSVRC numbers classes in no order of ours.
    order = random.Random(0).sample(range(1000), 1000)
    lines = [""] * 1000
    for label, number in enumerate(order):
        lines[number] = info.label_name_to_description(wnids[label])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    for name, content in (
        ("folder_to_objectnet_label", {folder: name for folder, (name, _) in OBJECTS.items()}),
        ("objectnet_to_imagenet_1k", {n: "; ".join(t) for n, t in OBJECTS.values() if t}),
        ("pytorch_to_imagenet_2012_id", {str(k): n + first for k, n in enumerate(order)}),
    ):
        (directory / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def objects(tmp_path: Path, touch) -> Path:
    """Three pictures of each of seven kinds of things, five of which ImageNet has too."""
    root = tmp_path / "objectnet-1.0"
    write_mappings(root / "mappings")
    for folder in OBJECTS:
        touch(root / "images" / folder, [f"{folder}{i:02d}.png" for i in range(3)])
    touch(root / "images", [".DS_Store"])
    return tmp_path


def paint(root: Path, frame: int = 0) -> None:
    """Make a picture of every empty image file, another one for each, perhaps with a red frame."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory) / name
            if name.startswith(".") or not name.lower().endswith((".jpg", ".jpeg", ".png")):
                continue
            if path.stat().st_size:
                continue
            seed = hashlib.sha256(str(path.relative_to(root)).encode()).digest()
            generator = np.random.default_rng(list(seed))
            coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            picture = coarse.repeat(8, axis=0).repeat(8, axis=1)  # 40 x 48 pixels
            if frame:
                red = np.full_like(picture, (255, 0, 0))
                red[frame:-frame, frame:-frame] = picture[frame:-frame, frame:-frame]
                picture = red
            Image.fromarray(picture).save(path)


# Class name -> fixture of its tree.
TREES = {
    "ImageNet": "imagenets", "Caltech101": "caltech", "OxfordPets": "pets",
    "StanfordCars": "cars", "OxfordFlowers": "flowers", "Food101": "food",
    "FGVCAircraft": "aircraft", "SUN397": "scenes", "DescribableTextures": "dtd",
    "EuroSAT": "eurosat", "UCF101": "actions", "ImageNetV2": "imagenets",
    "ImageNetSketch": "imagenets", "ImageNetA": "imagenets", "ImageNetR": "imagenets",
    "ObjectNet": "objects",
}  # fmt: skip
