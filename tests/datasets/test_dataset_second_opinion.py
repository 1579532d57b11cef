"""What torchvision's own readers make of the same trees: labels, class names, splits, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms as T
from torchvision import datasets as tv

from dassl.data import DataManager
from datasets import readers
from tests.datasets.trees import CARS, NAMES, SCENES, SHIFTS, V2, VARIANTS, everything, paint

MEAN = STD = (0.5, 0.4, 0.3)
TRANSFORM = T.Compose(
    [T.Resize(32, T.InterpolationMode.BICUBIC), T.CenterCrop(32), T.ToTensor(),
     T.Normalize(MEAN, STD)]
)  # fmt: skip


@dataclass
class Theirs:
    """One part as torchvision reads it: a name, the dataset, and its image paths and labels."""

    part: str
    dataset: Any
    paths: list[Path]
    labels: list[int]
    classes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, part: str, dataset: Any, paths: Iterable[Any], labels: Iterable[int]) -> Theirs:
        classes = list(getattr(dataset, "classes", ()))
        return cls(part, dataset, [Path(p).resolve() for p in paths], list(labels), classes)


def food101(root: Path, monkeypatch: Any) -> list[Theirs]:
    parts = [(p, tv.Food101(str(root), p, TRANSFORM)) for p in ("train", "test")]
    return [Theirs.of(p, d, d._image_files, d._labels) for p, d in parts]


def dtd(root: Path, monkeypatch: Any) -> list[Theirs]:
    parts = [(p, tv.DTD(str(root.parent), p, 1, TRANSFORM)) for p in ("train", "val", "test")]
    return [Theirs.of(p, d, d._image_files, d._labels) for p, d in parts]


def oxford_pets(root: Path, monkeypatch: Any) -> list[Theirs]:
    (root / "oxford-iiit-pet").symlink_to(root / "oxford_pets")
    found = []
    for part in ("trainval", "test"):
        # It does not know the comments that the full list of the archive begins with.
        path = root / "oxford_pets" / "annotations" / f"{part}.txt"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for line in lines if line[0] != "#"))
        d = tv.OxfordIIITPet(str(root), part, transform=TRANSFORM)
        found.append(Theirs.of(part, d, d._images, d._labels))
    return found


def oxford_flowers(root: Path, monkeypatch: Any) -> list[Theirs]:
    (root / "flowers-102").symlink_to(root / "oxford_flowers")
    # It knows the checksums of the real files.
    monkeypatch.setattr(tv.Flowers102, "_check_integrity", lambda self: True)
    parts = [(p, tv.Flowers102(str(root), p, TRANSFORM)) for p in ("train", "val", "test")]
    return [Theirs.of(p, d, d._image_files, d._labels) for p, d in parts]


def eurosat(root: Path, monkeypatch: Any) -> list[Theirs]:
    d = tv.EuroSAT(str(root), TRANSFORM)
    return [Theirs.of("all", d, *zip(*d.samples, strict=True))]


def caltech101(root: Path, monkeypatch: Any) -> list[Theirs]:
    (root / "caltech101").symlink_to(root / "caltech-101")
    d = tv.Caltech101(str(root), transform=TRANSFORM)
    images = root / "caltech101" / "101_ObjectCategories"
    paths = [
        images / d.categories[label] / f"image_{number:04d}.jpg"
        for label, number in zip(d.y, d.index, strict=True)
    ]
    return [Theirs("all", d, [path.resolve() for path in paths], d.y, d.categories)]


def fgvc_aircraft(root: Path, monkeypatch: Any) -> list[Theirs]:
    (root / "fgvc-aircraft-2013b").mkdir()
    (root / "fgvc-aircraft-2013b" / "data").symlink_to(root / "fgvc_aircraft")
    parts = [
        (p, tv.FGVCAircraft(str(root), p, "variant", TRANSFORM)) for p in ("train", "val", "test")
    ]
    return [Theirs.of(p, d, d._image_files, d._labels) for p, d in parts]


def sun397(root: Path, monkeypatch: Any) -> list[Theirs]:
    d = tv.SUN397(str(root / "sun397"), TRANSFORM)
    return [Theirs.of("all", d, d._image_files, d._labels)]


def stanford_cars(root: Path, monkeypatch: Any) -> list[Theirs]:
    parts = [(p, tv.StanfordCars(str(root), p, TRANSFORM)) for p in ("train", "test")]
    return [Theirs.of(p, d, *zip(*d._samples, strict=True)) for p, d in parts]


@dataclass(frozen=True)
class Case:
    """A dataset, how torchvision reads it, and how its class names become ours.

    ``same`` pairs parts that hold the same images: theirs, and which of ours.
    """

    name: str
    fixture: str
    read: Callable[[Path, Any], list[Theirs]]
    rename: Callable[[str], str] = str
    same: tuple[tuple[str, tuple[str, ...]], ...] = ()
    left_out: tuple[str, ...] = ()


def year_first(name: str) -> str:
    *words, year = name.split()
    return " ".join([year, *words])


# The parts of Food101, DTD and OxfordFlowers are other ones than this field's.
CASES = [
    Case("Food101", "food", food101),
    Case("DescribableTextures", "dtd", dtd),
    Case("OxfordPets", "pets", oxford_pets, lambda name: name.replace(" ", "_").lower(),
         (("trainval", ("train_x", "val")), ("test", ("test",)))),
    Case("OxfordFlowers", "flowers", oxford_flowers),
    Case("EuroSAT", "eurosat", eurosat, readers.EUROSAT_NEW_NAMES.__getitem__),
    Case("Caltech101", "caltech", caltech101,
         lambda name: readers.CALTECH_NEW_NAMES.get(name, name), left_out=("Faces_easy",)),
    Case("FGVCAircraft", "aircraft", fgvc_aircraft,
         same=(("train", ("train_x",)), ("val", ("val",)), ("test", ("test",)))),
    Case("SUN397", "scenes", sun397, lambda name: " ".join(reversed(name.split("/")))),
    Case("StanfordCars", "cars", stanford_cars, year_first,
         (("train", ("train_x", "val")), ("test", ("test",)))),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def root(case: Case, request) -> Path:
    path = request.getfixturevalue(case.fixture)
    paint(path)
    return path


def kept(case: Case, theirs: list[Theirs]) -> dict[Path, tuple[int, str | None]]:
    """Label and, where torchvision has one, class name by path, without classes we leave out.

    Older releases have no names for OxfordFlowers.
    """
    out = {}
    for part in theirs:
        for path, label in zip(part.paths, part.labels, strict=True):
            name = part.classes[label] if part.classes else None
            if name not in case.left_out:
                out[path] = (label, name)
    return out


def test_labels_and_class_names(case: Case, root: Path, build, monkeypatch) -> None:
    dataset = build(case.name, root, ALLOW_OWN_SPLIT=True)
    theirs = kept(case, case.read(root, monkeypatch))
    ours = {Path(d.impath).resolve(): d for d in everything(dataset)}
    assert theirs.keys() == ours.keys()
    renumbered: dict[int, int] = {}
    for path, (label, name) in theirs.items():
        item = ours[path]
        # The same number where they have the same classes; a number of its own in any case.
        assert renumbered.setdefault(label, item.label) == item.label
        if name is not None:
            assert case.rename(name) == item.classname
    assert sorted(renumbered.values()) == list(range(dataset.num_classes))
    if not case.left_out:
        assert all(theirs == ours for theirs, ours in renumbered.items())


@pytest.mark.parametrize("case", [case for case in CASES if case.same], ids=lambda case: case.name)
def test_splits_that_mean_the_same(case: Case, root: Path, build, monkeypatch) -> None:
    dataset = build(case.name, root, ALLOW_OWN_SPLIT=True)
    parts = {part.part: part for part in case.read(root, monkeypatch)}
    for name, of_ours in case.same:
        ours = [Path(d.impath).resolve() for part in of_ours for d in getattr(dataset, part)]
        assert sorted(ours) == sorted(parts[name].paths)
        if len(of_ours) == 1:
            assert ours == parts[name].paths


def test_pictures_come_with_their_labels(case: Case, root: Path, make_cfg, monkeypatch) -> None:
    """From file to tensor: the loader's pictures are those that torchvision shows of a path."""
    cfg = make_cfg(case.name, root, ALLOW_OWN_SPLIT=True)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (32, 32), "bicubic"
    cfg.INPUT.TRANSFORMS, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = ("normalize",), MEAN, STD
    manager = DataManager(cfg)
    place = {
        path: (part.dataset, row)
        for part in case.read(root, monkeypatch)
        for row, path in enumerate(part.paths)
    }
    seen = 0
    for batch in manager.test_loader:
        for image, label, path in zip(batch["img"], batch["label"], batch["impath"], strict=True):
            dataset, row = place[Path(path).resolve()]
            picture, theirs = dataset[row]
            assert torch.allclose(image, picture, atol=1e-6)
            if not case.left_out:
                assert int(label) == theirs
            seen += 1
    assert seen == len(manager.dataset.test)


IMAGENETS = {
    "ImageNet": "imagenet/images/val",
    **SHIFTS,
}


@pytest.mark.parametrize("name", IMAGENETS)
def test_wnid_folders_are_numbered_as_by_an_image_folder(name: str, imagenets, build) -> None:
    """torchvision's ImageNet is an ImageFolder too, whose ``classes`` are the sorted wnids."""
    dataset = build(name, imagenets)
    paint(imagenets / IMAGENETS[name])
    theirs = tv.ImageFolder(str(imagenets / IMAGENETS[name]))
    assert [(d.impath, d.label) for d in dataset.test] == theirs.samples
    assert [NAMES[wnid] for wnid in theirs.classes] == dataset.classnames


def test_an_image_folder_would_mix_up_imagenetv2(imagenets: Path, build) -> None:
    dataset = build("ImageNetV2", imagenets)
    theirs = tv.ImageFolder(str(imagenets / V2))
    ours = {d.impath: d.label for d in dataset.test}
    assert ours.keys() == dict(theirs.samples).keys()
    right = [label for label, folder in enumerate(theirs.classes) if str(label) == folder]
    assert right == [0, 1]
    assert {label: ours[path] for path, label in theirs.samples} == {
        label: int(folder) for label, folder in enumerate(theirs.classes)
    }


def test_trees_name_what_torchvision_names(cars, scenes, aircraft, monkeypatch) -> None:
    """The lists in trees.py are read, not assumed."""
    assert stanford_cars(cars, monkeypatch)[0].classes == CARS
    assert [f"/{name[0]}/{name}" for name in sun397(scenes, monkeypatch)[0].classes] == SCENES
    assert fgvc_aircraft(aircraft, monkeypatch)[2].classes == VARIANTS
