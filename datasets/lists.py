"""Readers of datasets whose own files list images or classes.

The lists of FGVCAircraft are the split that everybody uses. The others serve machines that lack the
published split file, by the rules that ``datasets/readers.py`` states.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum
from dassl.utils import read_json
from dassl.utils.files import read_text
from datasets.readers import OWN_SPLIT_RATIO, OWN_SPLIT_SEED
from datasets.sampling import by_label, split_off_val, split_three_ways
from datasets.splits import PARTS, Splits

OWN_VAL_SHARE = 0.2


def read_lines(path: Path, hint: str) -> list[tuple[str, str]]:
    """Read the lines of a list that are not blank, each with "file:number" for error messages.

    Args:
        path: The list.
        hint: Where it comes from, for the error.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its encoding is neither UTF-8 nor marked.
    """
    require_file(path, hint)
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(f"{path}:{number}", line.strip()) for number, line in lines if line.strip()]


def require_file(path: Path, hint: str) -> None:
    """Check that one of a dataset's own files is there.

    Raises:
        FileNotFoundError: It is not; the message ends with ``hint``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {hint}")


def split_official(trainval: Sequence[Datum], test: list[Datum]) -> Splits:
    """Keep an official test list; train and val are 80/20 of the official training list."""
    groups = by_label(trainval)
    in_label_order = [groups[label] for label in sorted(groups)]
    train, val = split_off_val(in_label_order, OWN_VAL_SHARE, OWN_SPLIT_SEED)
    return Splits(train, val, test)


def load_mat(path: Path, key: str, hint: str) -> Any:
    """Read one variable of a MATLAB file (version 5, which holds no code).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or lacks the variable.
    """
    # Needed by two datasets' own splits only.
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
    """Oxford-IIIT Pets: the official test list; train and val are 80/20 of the official trainval.

    Raises:
        FileNotFoundError: ``annotations/trainval.txt`` or ``test.txt`` is missing.
        ValueError: A line of them is malformed.
    """
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
        breed = fields[0].rpartition("_")[0].lower()
        items.append(
            Datum(
                impath=str(image_dir / f"{fields[0]}.jpg"),
                label=int(fields[1]) - 1,
                classname=breed,
            )
        )
    return items


def oxford_flowers(dataset_dir: Path, image_dir: Path) -> Splits:
    """Oxford Flowers: labels of ``imagelabels.mat``, names of ``cat_to_name.json``; 50/20/30.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: One is malformed, or a class has no name.
    """
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
        Datum(
            impath=str(image_dir / f"image_{number:05d}.jpg"),
            label=label - 1,
            classname=names[str(label)],
        )
        for number, label in enumerate(labels, start=1)
    ]
    groups = by_label(items)
    in_label_order = [groups[label] for label in sorted(groups)]
    return Splits(*split_three_ways(in_label_order, OWN_SPLIT_RATIO, OWN_SPLIT_SEED))


def stanford_cars(dataset_dir: Path, image_dir: Path) -> Splits:
    """Stanford Cars: the official test list; train and val are 80/20 of the official train list.

    Raises:
        FileNotFoundError: A ``.mat`` file is missing.
        ValueError: One is malformed.
    """
    hint = "it belongs to car_devkit.tgz of Stanford Cars; DATASETS.md says which goes where"
    names = load_mat(dataset_dir / "devkit" / "cars_meta.mat", "class_names", hint).tolist()
    parts = []
    for part, path in (
        ("cars_train", dataset_dir / "devkit" / "cars_train_annos.mat"),
        ("cars_test", dataset_dir / "cars_test_annos_withlabels.mat"),
    ):
        table = load_mat(path, "annotations", hint).reshape(-1)
        if not {"fname", "class"} <= set(table.dtype.names or ()):
            raise ValueError(f"{path}: annotations lack 'fname' or 'class'; {hint}")
        if not all(1 <= row["class"] <= len(names) for row in table):
            raise ValueError(
                f"{path}: a class is not in 1..{len(names)}, which cars_meta.mat names"
            )
        parts.append(
            [
                Datum(
                    impath=str(image_dir / part / row["fname"]),
                    label=int(row["class"]) - 1,
                    classname=_year_first(names[int(row["class"]) - 1]),
                )
                for row in table
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

    Raises:
        FileNotFoundError: A list is missing.
        ValueError: A list names a class that ``ClassName.txt`` lacks.
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
            items.append(
                Datum(
                    impath=str(image_dir / line.lstrip("/")),
                    label=label_of[folder],
                    # a/wrestling_ring/indoor: no initial, and the qualifier first.
                    classname=" ".join(reversed(folder.split("/")[1:])),
                )
            )
        parts.append(items)
    return split_official(*parts)


def ucf101(dataset_dir: Path, image_dir: Path) -> Splits:
    """UCF101's middle frames: the first official split; train and val are 80/20 of its train list.

    Raises:
        FileNotFoundError: A list is missing.
        ValueError: A line is malformed or names an unknown action.
    """
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
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = f"{video.removesuffix('.avi')}.jpg"
            items.append(
                Datum(impath=str(image_dir / name / frame), label=label_of[action], classname=name)
            )
        parts.append(items)
    return split_official(*parts)


def fgvc_aircraft(dataset_dir: Path, image_dir: Path) -> Splits:
    """FGVC Aircraft: the official lists of its 100 variants, which are the published split.

    Raises:
        FileNotFoundError: A list is missing.
        ValueError: A line names no variant of ``variants.txt``.
    """
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
            items.append(
                Datum(
                    impath=str(image_dir / f"{image}.jpg"),
                    label=label_of[variant],
                    classname=variant,
                )
            )
        parts.append(items)
    return Splits(*parts)
