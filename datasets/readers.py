"""Readers of the datasets' own files: the official split, or a stand-in for the published file.

A row names its reader, which takes ``(dataset_dir, image_dir)`` and returns all images. Those of
ImageNet and its shifts are in ``datasets/imagenet.py`` and ``datasets/objectnet.py``.

The lists of FGVCAircraft are the split that everybody uses. All others here serve machines that
lack the published split file. Their rules are CoOp's (50/20/30 per class, or 80/20 of an official
train-and-val list), but CoOp drew its split unseeded and then published it: no rule can make that
one again. Ours has a fixed seed and sorted listings, so it is the same on every machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum
from dassl.utils import read_json
from dassl.utils.files import read_text
from datasets.sampling import by_label, split_off_val, split_three_ways
from datasets.splits import PARTS, Splits

OWN_SPLIT_SEED = 1
OWN_SPLIT_RATIO = (0.5, 0.2, 0.3)
OWN_VAL_SHARE = 0.2
# The suffixes that torchvision reads, in a list that must never grow: own splits depend on it.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip

# CoOp's names, which its split files have.
CALTECH_NEW_NAMES = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
EUROSAT_NEW_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def _item(path: Path, label: int, classname: str) -> Datum:
    return Datum(impath=str(path), label=label, classname=classname)


def list_directories(directory: Path) -> list[str]:
    """Names of the directories in a directory, sorted, without hidden ones."""
    with os.scandir(directory) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def list_images(directory: Path) -> list[str]:
    """Names of the image files in a directory, sorted, without hidden ones."""
    with os.scandir(directory) as entries:
        return sorted(
            e.name
            for e in entries
            if not e.name.startswith(".") and e.name.lower().endswith(IMAGE_SUFFIXES)
        )


def class_folders(
    dataset_dir: Path,
    image_dir: Path,
    *,
    ignored: tuple[str, ...] = (),
    new_names: Mapping[str, str] | None = None,
) -> Splits:
    """Split a tree of class folders 50/20/30 per class; labels follow the sorted folder names.

    Some folders may be ``ignored``, others have ``new_names``. ``dataset_dir`` is not read, not
    even for Food-101, whose own lists have no val.
    """
    names = new_names or {}
    folders = [name for name in list_directories(image_dir) if name not in ignored]
    if not folders:
        raise ValueError(f"{image_dir} holds no class folders; the layout is in DATASETS.md")
    groups = []
    for label, folder in enumerate(folders):
        directory = image_dir / folder
        files = list_images(directory)
        # Of one image train or test would have none.
        if len(files) < 2:
            raise ValueError(f"{directory} holds {len(files)} image(s); too few for a split")
        classname = names.get(folder, folder)
        groups.append([_item(directory / file, label, classname) for file in files])
    return Splits(*split_three_ways(groups, OWN_SPLIT_RATIO, OWN_SPLIT_SEED))


def eurosat(dataset_dir: Path, image_dir: Path) -> Splits:
    """EuroSAT: ten class folders whose CamelCase names get readable ones, 50/20/30."""
    return class_folders(dataset_dir, image_dir, new_names=EUROSAT_NEW_NAMES)


def caltech101(dataset_dir: Path, image_dir: Path) -> Splits:
    """Caltech101: class folders without the background and the second set of faces, 50/20/30."""
    ignored = ("BACKGROUND_Google", "Faces_easy")
    return class_folders(dataset_dir, image_dir, ignored=ignored, new_names=CALTECH_NEW_NAMES)


def read_lines(path: Path, hint: str) -> list[tuple[str, str]]:
    """Read the lines of a list that are not blank, each with "file:number" for error messages."""
    require_file(path, hint)
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(f"{path}:{number}", line.strip()) for number, line in lines if line.strip()]


def require_file(path: Path, hint: str) -> None:
    """Refuse a missing file of a dataset's own; ``hint`` says where it comes from."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {hint}")


def split_official(trainval: Sequence[Datum], test: list[Datum]) -> Splits:
    """Keep an official test list; train and val are 80/20 of the official training list."""
    train, val = split_off_val(_classes(trainval), OWN_VAL_SHARE, OWN_SPLIT_SEED)
    return Splits(train, val, test)


def _classes(items: Sequence[Datum]) -> list[list[Datum]]:
    """Images by class, in label order whatever the order of a list."""
    groups = by_label(items)
    return [groups[label] for label in sorted(groups)]


def load_mat(path: Path, key: str, hint: str) -> Any:
    """Read one variable of a MATLAB file (version 5, which holds no code)."""
    # Imported here: SciPy serves two datasets' own splits only.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    require_file(path, hint)
    try:
        content = loadmat(path, squeeze_me=True)
    except (ValueError, TypeError, NotImplementedError, OSError, MatReadError) as error:
        raise ValueError(f"{path} is no MATLAB file, or damaged: {error}") from error
    if key not in content:
        found = [name for name in content if not name.startswith("__")]
        raise ValueError(f"{path} has no variable {key!r}; it has {found}")
    return content[key]


def oxford_pets(dataset_dir: Path, image_dir: Path) -> Splits:
    """Oxford-IIIT Pets: the official test list; train and val are 80/20 of its trainval list."""
    trainval = _read_pets_list(dataset_dir / "annotations" / "trainval.txt", image_dir)
    test = _read_pets_list(dataset_dir / "annotations" / "test.txt", image_dir)
    return split_official(trainval, test)


def _read_pets_list(path: Path, image_dir: Path) -> list[Datum]:
    """Read lines "Abyssinian_100 1 1 1": image, class from 1, species, breed within species."""
    hint = f"unpack annotations.tar.gz of Oxford-IIIT Pets into {path.parents[1]}"
    items = []
    for where, line in read_lines(path, hint):
        if line.startswith("#"):
            continue
        fields = line.split()
        if len(fields) != 4 or not fields[1].isdecimal() or int(fields[1]) < 1:
            raise ValueError(
                f"{where}: {line!r} is not 'image class species breed' with class from 1"
            )
        # "saint_bernard" of saint_bernard_12, as CoOp's split file has it.
        breed = fields[0].rpartition("_")[0].lower()
        items.append(_item(image_dir / f"{fields[0]}.jpg", int(fields[1]) - 1, breed))
    return items


def oxford_flowers(dataset_dir: Path, image_dir: Path) -> Splits:
    """Oxford Flowers: labels of ``imagelabels.mat``, names of ``cat_to_name.json``; 50/20/30."""
    hint = "it is on www.robots.ox.ac.uk/~vgg/data/flowers/102"
    labels = load_mat(dataset_dir / "imagelabels.mat", "labels", hint).reshape(-1).tolist()
    path = dataset_dir / "cat_to_name.json"
    require_file(path, "CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) links it")
    names = read_json(path)
    if not isinstance(names, dict) or not all(
        isinstance(names.get(str(label)), str) for label in labels
    ):
        raise ValueError(f'{path} must hold the names of all classes, such as "21": "fire lily"')
    items = [
        _item(image_dir / f"image_{number:05d}.jpg", label - 1, names[str(label)])
        for number, label in enumerate(labels, start=1)
    ]
    return Splits(*split_three_ways(_classes(items), OWN_SPLIT_RATIO, OWN_SPLIT_SEED))


def stanford_cars(dataset_dir: Path, image_dir: Path) -> Splits:
    """Stanford Cars: the official test list; train and val are 80/20 of the official train list."""
    hint = "it belongs to car_devkit.tgz of Stanford Cars; DATASETS.md says which goes where"
    names = load_mat(dataset_dir / "devkit" / "cars_meta.mat", "class_names", hint).tolist()
    parts = []
    for part, path in (
        ("cars_train", dataset_dir / "devkit" / "cars_train_annos.mat"),
        ("cars_test", dataset_dir / "cars_test_annos_withlabels.mat"),
    ):
        table = load_mat(path, "annotations", hint).reshape(-1)
        # cars_test_annos.mat of the devkit has no classes: a likely file to be taken by mistake.
        if not {"fname", "class"} <= set(table.dtype.names or ()):
            raise ValueError(f"{path}: annotations lack 'fname' or 'class'; {hint}")
        if not all(1 <= row["class"] <= len(names) for row in table):
            raise ValueError(
                f"{path}: a class is not in 1..{len(names)}, which cars_meta.mat names"
            )
        labelled = [(row["fname"], int(row["class"]) - 1) for row in table]
        parts.append(
            [
                _item(image_dir / part / file, label, _year_first(names[label]))
                for file, label in labelled
            ]
        )
    return split_official(*parts)


def _year_first(name: str) -> str:
    """``Audi TTS Coupe 2012`` is ``2012 Audi TTS Coupe`` in the published split."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}"


def sun397(dataset_dir: Path, image_dir: Path) -> Splits:
    """SUN397: the first of its official partitions; train and val are 80/20 of its training list.

    ``ClassName.txt`` is looked for in either directory: the archive has it among the images.
    """
    hint = "it is in SUN397.tar.gz or, for the lists, in Partitions.zip of the dataset's page"
    inside = image_dir / "ClassName.txt"
    class_file = inside if inside.is_file() else dataset_dir / "ClassName.txt"
    names = [line.lstrip("/") for _, line in read_lines(class_file, hint)]
    label_of = {name: label for label, name in enumerate(names)}
    parts = []
    for part in ("Training_01.txt", "Testing_01.txt"):
        items = []
        for where, line in read_lines(dataset_dir / part, hint):
            folder, _, _ = line.lstrip("/").rpartition("/")
            if folder not in label_of:
                raise ValueError(f"{where}: {line!r} is in no class of {class_file}")
            # a/wrestling_ring/indoor: no initial, and the qualifier first.
            name = " ".join(reversed(folder.split("/")[1:]))
            items.append(_item(image_dir / line.lstrip("/"), label_of[folder], name))
        parts.append(items)
    return split_official(*parts)


def ucf101(dataset_dir: Path, image_dir: Path) -> Splits:
    """UCF101's middle frames: the first official split; train and val are 80/20 of its train."""
    hint = "unpack UCF101TrainTestSplits-RecognitionTask.zip of www.crcv.ucf.edu/data/UCF101.php"
    lists = dataset_dir / "ucfTrainTestlist"
    label_of = {}
    for where, line in read_lines(lists / "classInd.txt", hint):
        number, _, action = line.partition(" ")
        if not number.isdecimal() or int(number) < 1 or not action:
            raise ValueError(f"{where}: {line!r} is not 'number action' with number from 1")
        label_of[action] = int(number) - 1
    parts = []
    for part in ("trainlist01.txt", "testlist01.txt"):
        items = []
        for where, line in read_lines(lists / part, hint):
            action, _, video = line.split()[0].partition("/")
            if action not in label_of:
                raise ValueError(f"{where}: {line!r} has no action of classInd.txt")
            # ApplyEyeMakeup: CoOp's folders and class names are Apply_Eye_Makeup.
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = f"{video.removesuffix('.avi')}.jpg"
            items.append(_item(image_dir / name / frame, label_of[action], name))
        parts.append(items)
    return split_official(*parts)


def fgvc_aircraft(dataset_dir: Path, image_dir: Path) -> Splits:
    """FGVC Aircraft: the official lists of its 100 variants, which are the published split."""
    hint = "it is in the data/ of fgvc-aircraft-2013b.tar.gz, which is to be the dataset directory"
    variants = [line for _, line in read_lines(dataset_dir / "variants.txt", hint)]
    label_of = {name: label for label, name in enumerate(variants)}
    parts = []
    for part in PARTS:
        items = []
        for where, line in read_lines(dataset_dir / f"images_variant_{part}.txt", hint):
            image, _, variant = line.partition(" ")
            if variant not in label_of:
                raise ValueError(f"{where}: {line!r} names no variant of variants.txt")
            items.append(_item(image_dir / f"{image}.jpg", label_of[variant], variant))
        parts.append(items)
    return Splits(*parts)
