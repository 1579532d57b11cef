"""Official lists of images and classes."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.datasets.trees import (
    FLOWERS,
    PETS,
    VARIANTS,
    everything,
    sizes_per_class,
)


def test_oxford_pets(pets: Path, build) -> None:
    dataset = build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["abyssinian", "american_bulldog", "egyptian_mau"]
    assert sizes_per_class(dataset.train_x) == [9, 10, 10]
    assert sizes_per_class(dataset.val) == [2, 2, 3]


def test_official_test_list_of_pets_is_kept_in_order(pets: Path, build) -> None:
    dataset = build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    names = [Path(d.impath).stem for d in dataset.test]
    assert names == [f"{b}_{100 + i}" for b, label in PETS.items() for i in range(10 + label)]


@pytest.mark.parametrize(
    "line", ["Abyssinian_1 1 1", "Abyssinian_1 one 1 1", "Abyssinian_1 0 1 1", "a b c d e"]
)
def test_malformed_line_of_pets_is_named(pets: Path, build, line: str) -> None:
    path = pets / "oxford_pets" / "annotations" / "test.txt"
    path.write_text(f"Abyssinian_100 1 1 1\n\n{line}\n")
    with pytest.raises(ValueError, match=r"test\.txt:3: ") as error:
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    assert line in str(error.value)


def test_class_numbers_of_pets_without_images_are_refused(pets: Path, build) -> None:
    path = pets / "oxford_pets" / "annotations" / "trainval.txt"
    path.write_text(path.read_text() + "Abyssinian_100 5 1 1\n")
    with pytest.raises(ValueError, match="oxford_pets/images: labels must run .* no image has 3"):
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)


def test_missing_list_or_image_of_pets_is_named(pets: Path, build) -> None:
    (pets / "oxford_pets" / "images" / "Abyssinian_3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"Abyssinian_3\.jpg is missing.* 1 of the 72"):
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    (pets / "oxford_pets" / "annotations" / "trainval.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainval\.txt; unpack annotations\.tar\.gz"):
        build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)


def test_stanford_cars_puts_the_year_first(cars: Path, build) -> None:
    dataset = build("StanfordCars", cars, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == [
        "2001 Acura Integra Type R", "2012 Audi TTS Coupe", "2012 smart fortwo Convertible",
    ]  # fmt: skip
    assert sizes_per_class(dataset.train_x) == [8, 8, 8]
    assert sizes_per_class(dataset.val) == [2, 2, 2]


def test_oxford_flowers_take_their_names_by_number(flowers: Path, build) -> None:
    dataset = build("OxfordFlowers", flowers, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == list(FLOWERS.values())
    assert sizes_per_class(dataset.train_x) == [5, 5, 5]
    assert sizes_per_class(dataset.val) == [2, 2, 2]
    assert sizes_per_class(dataset.test) == [3, 3, 3]
    assert len({d.impath for d in everything(dataset)}) == 30


def test_sun397_puts_the_qualifier_first(scenes: Path, build) -> None:
    dataset = build("SUN397", scenes, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["abbey", "indoor wrestling_ring", "indoor apse"]
    assert sizes_per_class(dataset.train_x) == [4, 4, 4]
    assert sizes_per_class(dataset.val) == [1, 1, 1]
    assert [Path(d.impath).stem for d in dataset.test] == ["sun_a5", "sun_a6", "sun_a7"] * 3


def test_sun397_finds_its_classes_beside_the_images_too(scenes: Path, build) -> None:
    before = build("SUN397", scenes, ALLOW_OWN_SPLIT=True)
    root = scenes / "sun397"
    (root / "SUN397" / "ClassName.txt").rename(root / "ClassName.txt")
    after = build("SUN397", scenes, ALLOW_OWN_SPLIT=True)
    assert [d.impath for d in after.train_x] == [d.impath for d in before.train_x]


def test_ucf101_parts_the_words(actions: Path, build) -> None:
    dataset = build("UCF101", actions, ALLOW_OWN_SPLIT=True)
    assert dataset.classnames == ["Apply_Eye_Makeup", "Tai_Chi", "Yo_Yo"]
    assert sizes_per_class(dataset.train_x) == [4, 4, 4]
    assert sizes_per_class(dataset.val) == [1, 1, 1]
    assert sizes_per_class(dataset.test) == [3, 3, 3]
    assert dataset.relative_path(dataset.test[0]) == "Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c00.jpg"
    assert all("_g08_" in d.impath for d in dataset.train_x + dataset.val)


def test_fgvc_aircraft_is_the_official_split(aircraft: Path, build) -> None:
    dataset = build("FGVCAircraft", aircraft)
    assert dataset.classnames == VARIANTS
    assert dataset.dataset_dir == str(aircraft / "fgvc_aircraft")
    assert [d.classname for d in dataset.val[:4]] == VARIANTS[::-1]
    # Nothing is said of an own split; only the real counts are missed here.
    assert [note.split(",")[0] for note in dataset.notes] == [
        "FGVCAircraft: 4 classes", "FGVCAircraft: 12/12/12 train/val/test images",
    ]  # fmt: skip


def test_fgvc_aircraft_in_shots_and_halves(aircraft: Path, build) -> None:
    new = build("FGVCAircraft", aircraft, NUM_SHOTS=2, SUBSAMPLE_CLASSES="new")
    assert new.classnames == ["F-16A/B", "Falcon 2000"]
    assert (len(new.train_x), len(new.val), len(new.test)) == (4, 4, 6)


OWN = {"OxfordPets": "pets", "StanfordCars": "cars", "OxfordFlowers": "flowers",
       "SUN397": "scenes", "UCF101": "actions"}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_own_split_is_loud_and_the_same_every_time(name: str, build, request) -> None:
    root = request.getfixturevalue(OWN[name])
    with pytest.raises(FileNotFoundError, match="ALLOW_OWN_SPLIT True makes a deterministic"):
        build(name, root)
    runs = [build(name, root, ALLOW_OWN_SPLIT=True, SEED=seed) for seed in (1, 2)]
    assert "NOT COMPARABLE WITH PUBLISHED NUMBERS" in runs[0].notes[0]
    for part in ("train_x", "val", "test"):
        first, second = ([d.impath for d in getattr(run, part)] for run in runs)
        assert first == second
    paths = [d.impath for d in everything(runs[0])]
    assert len(paths) == len(set(paths))
    assert all(Path(path).is_file() for path in paths)


FILES = {
    "stanford_cars/devkit/cars_meta.mat": ("StanfordCars", "cars"),
    "stanford_cars/devkit/cars_train_annos.mat": ("StanfordCars", "cars"),
    "stanford_cars/cars_test_annos_withlabels.mat": ("StanfordCars", "cars"),
    "oxford_flowers/imagelabels.mat": ("OxfordFlowers", "flowers"),
    "oxford_flowers/cat_to_name.json": ("OxfordFlowers", "flowers"),
    "sun397/Training_01.txt": ("SUN397", "scenes"),
    "ucf101/ucfTrainTestlist/classInd.txt": ("UCF101", "actions"),
    "ucf101/ucfTrainTestlist/testlist01.txt": ("UCF101", "actions"),
    "fgvc_aircraft/variants.txt": ("FGVCAircraft", "aircraft"),
    "fgvc_aircraft/images_variant_val.txt": ("FGVCAircraft", "aircraft"),
}


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(file: str, build, request) -> None:
    name, fixture = FILES[file]
    root = request.getfixturevalue(fixture)
    (root / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"no file {root / file}; "):
        build(name, root, ALLOW_OWN_SPLIT=True)


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith((".mat", ".json"))])
def test_damaged_file_is_named(file: str, build, request) -> None:
    name, fixture = FILES[file]
    root = request.getfixturevalue(fixture)
    (root / file).write_bytes(b"<html>404 Not Found</html>" * 10)
    with pytest.raises(ValueError, match=file):
        build(name, root, ALLOW_OWN_SPLIT=True)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("sun397/Testing_01.txt", "/a/abbot/sun_1.jpg", "is in no class of"),
        ("ucf101/ucfTrainTestlist/testlist01.txt", "Yoga/v_1.avi", "has no action of classInd"),
        ("ucf101/ucfTrainTestlist/classInd.txt", "0 YoYo", "is not 'number action'"),
        ("ucf101/ucfTrainTestlist/classInd.txt", "YoYo", "is not 'number action'"),
        ("fgvc_aircraft/images_variant_test.txt", "0056978 A330", "names no variant"),
        ("fgvc_aircraft/images_variant_test.txt", "0056978", "names no variant"),
    ],
)
def test_malformed_line_is_named(file: str, line: str, message: str, build, request) -> None:
    name, fixture = next(value for key, value in FILES.items() if key.startswith(file[:6]))
    root = request.getfixturevalue(fixture)
    (root / file).write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=message) as error:
        build(name, root, ALLOW_OWN_SPLIT=True)
    assert str(error.value).startswith(f"{root / file}:2: '{line}'")


def test_mat_file_with_other_content_is_named(cars: Path, flowers: Path, build) -> None:
    path = cars / "stanford_cars" / "cars_test_annos_withlabels.mat"
    # The list of the first archive has no classes.
    savemat(path, {"annotations": np.array([("1.jpg",)], dtype=[("fname", object)])})
    with pytest.raises(ValueError, match=r"withlabels\.mat: annotations lack 'fname' or 'class'"):
        build("StanfordCars", cars, ALLOW_OWN_SPLIT=True)
    row = [("00001.jpg", 4), ("00002.jpg", 1)]
    dtype = [("fname", object), ("class", object)]
    savemat(path, {"annotations": np.array(row, dtype=dtype)})
    with pytest.raises(ValueError, match=r"withlabels\.mat: a class is not in 1\.\.3"):
        build("StanfordCars", cars, ALLOW_OWN_SPLIT=True)
    savemat(flowers / "oxford_flowers" / "imagelabels.mat", {"label": [1, 2]})
    with pytest.raises(ValueError, match=r"no variable 'labels'; it has \['label'\]"):
        build("OxfordFlowers", flowers, ALLOW_OWN_SPLIT=True)


def test_flower_without_a_name_is_refused(flowers: Path, build) -> None:
    (flowers / "oxford_flowers" / "cat_to_name.json").write_text('{"1": "a", "2": "b"}')
    with pytest.raises(ValueError, match=r"cat_to_name\.json must hold the names of all classes"):
        build("OxfordFlowers", flowers, ALLOW_OWN_SPLIT=True)
