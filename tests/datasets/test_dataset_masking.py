"""Classifiers over all classes of ImageNet on its shifts and halves."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets.imagenet import imagenet_labels, logits_of_classes, misnamed, standard_names
from datasets.rows import ROWS, row_of
from tests.datasets.trees import NAMES, SHIFTS, V2, WNIDS, write_names


@st.composite
def groups(draw) -> tuple[int, list[list[int]]]:
    """A number of outputs, and disjoint columns of some of them for each class."""
    total = draw(st.integers(1, 30))
    order = draw(st.permutations(range(total)))
    used = draw(st.integers(1, total))
    cuts = sorted(draw(st.sets(st.integers(1, used - 1)))) if used > 1 else []
    return total, [
        list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, used], strict=True)
    ]  # fmt: skip


@given(case=groups(), seed=st.integers(0, 10**6), rows=st.integers(1, 4))
def test_a_class_has_the_maximum_of_its_columns(case, seed: int, rows: int) -> None:
    total, columns = case
    logits = torch.randn(rows, total, generator=torch.Generator().manual_seed(seed))
    masked = logits_of_classes(logits, columns)
    expected = [[max(row[c].item() for c in group) for group in columns] for row in logits]
    assert masked.tolist() == expected
    # Right if any of the mapped columns wins among all that are mapped.
    mapped = [c for group in columns for c in group]
    for row, choice in zip(logits, masked.argmax(1).tolist(), strict=True):
        assert max(mapped, key=lambda c: row[c].item()) in columns[choice]


def test_plain_selection_keeps_columns_in_the_order_of_the_classes() -> None:
    logits = torch.arange(12.0).reshape(2, 6)
    assert logits_of_classes(logits, [[5], [0], [3]]).tolist() == [[5, 0, 3], [11, 6, 9]]
    assert logits_of_classes(logits.bfloat16(), [[1]]).dtype == torch.bfloat16


def test_gradient_reaches_the_winning_columns_alone() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 5.0]], requires_grad=True)
    logits_of_classes(logits, [[1], [0, 2]]).sum().backward()
    assert logits.grad.tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([[0], []], r"none for \[1\]"),
        ([], "must stand for a class"),
        ([[0], [4]], "ImageNet's 0 to 4, but the classifier has 4 outputs"),
        ([[-1]], "ImageNet's -1 to -1"),
    ],
)
def test_impossible_maps_are_refused(columns: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logits_of_classes(torch.zeros(2, 4), columns)


@pytest.mark.parametrize("name", ["ImageNetA", "ImageNetR"])
def test_subsets_select_their_wnids(name: str, imagenets: Path, build) -> None:
    dataset = build(name, imagenets)
    assert dataset.imagenet_labels == [[2], [5], [8], [11]]
    assert dataset.imagenet_names == list(NAMES.values())
    assert build(name, imagenets, SUBSAMPLE_CLASSES="new").imagenet_labels == [[8], [11]]
    # A head that knows one thing about each picture: the wnid of its folder.
    wnids = [Path(d.impath).parent.name for d in dataset.test]
    logits = torch.eye(12)[[WNIDS.index(wnid) for wnid in wnids]]
    masked = logits_of_classes(logits, dataset.imagenet_labels)
    assert masked.argmax(1).tolist() == [d.label for d in dataset.test]


@pytest.mark.parametrize("name", ["ImageNet", "ImageNetV2", "ImageNetSketch"])
def test_whole_sets_map_onto_themselves(name: str, imagenets: Path, build) -> None:
    assert build(name, imagenets).imagenet_labels == [[label] for label in range(12)]
    new = build(name, imagenets, SUBSAMPLE_CLASSES="new")
    assert new.imagenet_labels == [[label] for label in range(6, 12)]
    assert len(new.imagenet_names) == 12


def test_labels_are_those_of_the_source_not_of_a_list_of_the_subset(imagenets, build) -> None:
    own = {wnid: NAMES[wnid] for wnid in WNIDS[2::3]}
    write_names(imagenets / "imagenet-rendition", own)
    assert build("ImageNetR", imagenets).imagenet_labels == [[2], [5], [8], [11]]


def test_standard_labels_without_any_list(tmp_path: Path, touch, build) -> None:
    touch(tmp_path / SHIFTS["ImageNetA"], ["n01614925/1.jpg", "n01498041/1.jpg"])
    dataset = build("ImageNetA", tmp_path)
    assert dataset.classnames == ["stingray", "bald eagle"]
    assert dataset.imagenet_labels == [[6], [22]]
    assert [dataset.imagenet_names[label] for label in (6, 22)] == dataset.classnames


def test_sets_of_their_own_have_no_map(pets: Path, build) -> None:
    dataset = build("OxfordPets", pets, ALLOW_OWN_SPLIT=True)
    assert dataset.imagenet_labels is None
    assert dataset.imagenet_names == []
    assert not dataset.shifted


def test_a_class_outside_the_source_leaves_no_map() -> None:
    names = {"n1": "a", "n2": "b"}
    assert imagenet_labels([["n2"], ["n1", "n9"]], names) == [[1], [0]]
    assert imagenet_labels([["n2"], ["n9"]], names) is None


def test_200_classes_of_the_real_subsets_bear_the_names_of_their_wnids(
    tmp_path: Path, touch, build
) -> None:
    """Golden: the official lists of -A and -R, as timm has them."""
    ends = {}
    standard = list(standard_names().values())
    for name, file in (("ImageNetA", "imagenet_a"), ("ImageNetR", "imagenet_r")):
        wnids = (files("timm.data") / "_info" / f"{file}_synsets.txt").read_text().split()
        touch(tmp_path / SHIFTS[name], [f"{wnid}/1.jpg" for wnid in wnids])
        dataset = build(name, tmp_path)
        assert dataset.num_classes == 200
        columns = [group[0] for group in dataset.imagenet_labels]
        assert columns == sorted(set(columns))
        ends[name] = (columns[0], columns[-1])
        assert [standard[label] for label in columns] == dataset.classnames
        assert misnamed(dataset.classnames, dataset.imagenet_labels, standard) == []
    # Stingray, goldfish, acorn: no tench in either.
    assert ends == {"ImageNetA": (6, 988), "ImageNetR": (1, 988)}


def test_names_of_other_classes_are_found() -> None:
    names = ["tench", "missile", "goldfish", "missile"]
    own = [[0], [1], [2], [3]]
    assert misnamed(names, own, names) == []
    assert misnamed(["Tench", "rocket", "gold fish", "missile"], own, names) == []
    wrong = misnamed(["goldfish", "missile", "missile", "carp"], own, names)
    assert wrong == [
        "class 0 is called 'goldfish', but is ImageNet's 'tench'",
        "class 2 is called 'missile', but is ImageNet's 'goldfish'",
    ]
    assert misnamed(["missile"], [[0, 3]], names) == []
    assert misnamed(["toilet_paper"], [[0]], ["x", "toilet paper"]) != []


def test_only_imagenet_and_its_shifts_have_a_map() -> None:
    mapped = {row.name for row in ROWS if row.wnids}
    assert mapped == {"ImageNet", "ImageNetV2", *SHIFTS, "ObjectNet"}
    assert {row.name for row in ROWS if row.shifted} == mapped - {"ImageNet"}
    assert row_of("ImageNetV2").images in V2
