"""ObjectNet: its archive's mappings, its red border, its classes of several ImageNet classes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from dassl.data import DataManager
from dassl.data.transforms import CropBorder, crop_border_first
from datasets.imagenet import logits_of_classes, standard_names
from tests.datasets.trees import NAMES, paint, write_mappings, write_names

FILES = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json",
         "imagenet_to_label_2012_v2", "pytorch_to_imagenet_2012_id.json")  # fmt: skip
# By sorted folder name; labels of ImageNet as its sorted wnids number them.
SHARED = {
    "Alarm clock": [409, 530],
    "Backpack": [414],
    "Banana": [954],
    "Helmet": [518, 560],
    "T-shirt": [610],
}


def mappings(root: Path) -> Path:
    return root / "objectnet-1.0" / "mappings"


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize("first", [0, 1])
def test_shared_classes_are_labelled_by_sorted_folder(objects: Path, build, first: int) -> None:
    write_mappings(mappings(objects), first)
    dataset = build("ObjectNet", objects)
    assert dataset.classnames == list(SHARED)
    assert dataset.imagenet_labels == list(SHARED.values())
    assert dataset.imagenet_names == list(standard_names().values())
    assert [d.label for d in dataset.test] == [label for label in range(5) for _ in range(3)]
    assert [Path(d.impath).parent.name for d in dataset.test[::3]] == [
        "alarm_clock", "backpack", "banana", "helmet", "t-shirt",
    ]  # fmt: skip
    assert not dataset.train_x
    assert not dataset.val
    assert dataset.notes == [
        "ObjectNet: 5 classes, known are 113",
        "ObjectNet: 0/0/15 train/val/test images, known are 0/0/18574; "
        "results may not be comparable",
    ]


def test_halves_keep_their_imagenet_classes(objects: Path, build) -> None:
    base, new = (build("ObjectNet", objects, SUBSAMPLE_CLASSES=h) for h in ("base", "new"))
    assert (base.classnames, new.classnames) == (list(SHARED)[:3], list(SHARED)[3:])
    assert base.imagenet_labels == [[409, 530], [414], [954]]
    assert new.imagenet_labels == [[518, 560], [610]]
    assert {d.label for d in new.test} == {0, 1}


def test_any_of_several_classes_makes_a_prediction_right(objects: Path, build) -> None:
    dataset = build("ObjectNet", objects)
    logits = torch.zeros(3, 1000)
    logits[0, [530, 954]] = torch.tensor([2.0, 1.0])  # a digital clock, rather than a banana
    logits[1, [0, 409, 560]] = torch.tensor([9.0, 1.0, 2.0])  # no class of ObjectNet leads
    logits[2, 610] = 0.5
    masked = logits_of_classes(logits, dataset.imagenet_labels)
    assert masked.argmax(1).tolist() == [0, 3, 4]
    assert masked[0].tolist() == [2.0, 0.0, 1.0, 0.0, 0.0]


def test_red_border_is_cut_off_first(objects: Path, make_cfg) -> None:
    paint(objects / "objectnet-1.0", frame=2)
    cfg = make_cfg("ObjectNet", objects)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE = (36, 36)
    manager = DataManager(cfg)
    batch = next(iter(manager.test_loader))
    image = Image.open(batch["impath"][0]).convert("RGB")
    assert image.size == (48, 40)
    assert image.getpixel((1, 1)) == (255, 0, 0)
    # 44 x 36 pixels are left, of which the middle 36 x 36 are seen.
    left = T.functional.to_tensor(image)[:, 2:38, 6:42]
    assert torch.equal(batch["img"][0], left)
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert not (batch["img"] == red).all(1).any()


def test_border_comes_off_before_every_kind_of_transform() -> None:
    image = Image.new("RGB", (10, 8))
    assert crop_border_first(None, 2)(image).size == (6, 4)
    assert [each(image).size for each in crop_border_first([T.Resize(2), T.Pad(1)], 3)] == [
        (4, 2), (6, 4),
    ]  # fmt: skip
    transform = T.Resize(2)
    assert crop_border_first(transform, 0) is transform
    # The feature cache tells transforms apart by their text.
    assert "CropBorder(2)" in repr(crop_border_first(transform, 2))
    assert repr(CropBorder(2)) == "CropBorder(2)"


def test_other_sets_have_no_border(pets: Path, build) -> None:
    assert build("OxfordPets", pets, ALLOW_OWN_SPLIT=True).border == 0


def test_a_part_of_imagenet_leaves_no_map(objects: Path, build) -> None:
    write_names(objects / "imagenet", NAMES)
    dataset = build("ObjectNet", objects)
    assert dataset.classnames == list(SHARED)
    assert dataset.imagenet_labels is None
    assert dataset.imagenet_names == []


def test_missing_folder_is_named(objects: Path, build) -> None:
    (objects / "objectnet-1.0" / "images" / "helmet").rename(objects / "helmet")
    with pytest.raises(ValueError, match=r"images lacks 1 of the 5 folders .* first 'helmet'"):
        build("ObjectNet", objects)


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(objects: Path, build, file: str) -> None:
    (mappings(objects) / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file}; it is in the mappings/ of objectnet"):
        build("ObjectNet", objects)


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".json")])
@pytest.mark.parametrize("content", ["[]", "{}", '{"0": null}'])
def test_malformed_file_is_named(objects: Path, build, file: str, content: str) -> None:
    (mappings(objects) / file).write_text(content)
    with pytest.raises(ValueError, match=f"{mappings(objects) / file} must "):
        build("ObjectNet", objects)


@pytest.mark.parametrize("number", [1000, 5.0, "5", True])
def test_impossible_number_is_refused(objects: Path, build, number: object) -> None:
    change(mappings(objects) / "pytorch_to_imagenet_2012_id.json", **{"0": number})
    with pytest.raises(ValueError, match=r"2012_id\.json must lead from each label 0 to 999"):
        build("ObjectNet", objects)


def test_unknown_names_are_named(objects: Path, build) -> None:
    path = mappings(objects) / "objectnet_to_imagenet_1k.json"
    whole = path.read_text()
    change(path, Bananna="banana")
    with pytest.raises(ValueError, match=r"'Bananna' is no class of .* 'Banana'"):
        build("ObjectNet", objects)
    path.write_text(whole)
    change(path, Banana="bananas")
    with pytest.raises(ValueError, match="'bananas' of 'Banana' is on 0 lines of imagenet_to_l"):
        build("ObjectNet", objects)
    path.write_text(whole)
    change(path, Banana="crane")  # ImageNet has a bird and a machine of that title
    with pytest.raises(ValueError, match="'crane' of 'Banana' is on 2 lines"):
        build("ObjectNet", objects)


def test_titles_in_another_order_are_called_out(objects: Path, build) -> None:
    """Each file is well formed, but a classifier's outputs would be those of other classes."""
    path = mappings(objects) / "imagenet_to_label_2012_v2"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[1:], lines[0]]))
    with pytest.raises(ValueError, match="do not belong together: 9[0-9]{2} of 1,000 classes"):
        build("ObjectNet", objects)
