import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dassl.data.datasets import Datum
from datasets.sampling import (
    check_ratio,
    draw_few_shot,
    part_sizes,
    split_off_val,
    split_three_ways,
    subsample_classes,
)
from datasets.splits import Splits


def items(labels: list[int], prefix: str = "") -> list[Datum]:
    return [Datum(f"{prefix}{i}.jpg", label, 0, f"c{label}") for i, label in enumerate(labels)]


def keys(part: list[Datum]) -> list[tuple[str, int, str]]:
    return [(d.impath, d.label, d.classname) for d in part]


def published_rule(parts: list[list[Datum]], counts: list[int], seed: int) -> list[list[str]]:
    """The rule of DATASET_FACTS in its global form: seed, then sample per label, part by part."""
    random.seed(seed)
    drawn = []
    for part, count in zip(parts, counts, strict=True):
        labels = list(dict.fromkeys(d.label for d in part))
        chosen: list[str] = []
        for label in labels:
            paths = [d.impath for d in part if d.label == label]
            chosen += random.sample(paths, count) if len(paths) >= count else paths
        drawn.append(chosen)
    return drawn


labels = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(train=labels, val=labels, shots=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_draw_equals_seeding_and_sampling_globally(train, val, shots, seed) -> None:
    splits = Splits(items(train, "t"), items(val, "v"), items([0]))
    drawn = draw_few_shot(splits, shots, seed)
    expected = published_rule([splits.train, splits.val], [shots, min(shots, 4)], seed)
    assert [[d.impath for d in drawn.train], [d.impath for d in drawn.val]] == expected
    assert drawn.test is splits.test


def test_golden_draw() -> None:
    # Made with: random.seed(1); random.sample(range(10, 20), 2), then range(0, 10), then
    # range(4) and range(4, 8) for val. Labels are seen in the order 1, 0.
    train = [Datum(f"{i}", int(i < 10), 0, "") for i in [*range(10), *range(10, 20)]]
    train = train[10:] + train[:10]
    val = items([1, 1, 1, 1, 0, 0, 0, 0], "v")
    drawn = draw_few_shot(Splits(train, val, []), 2, seed=1)
    assert [d.impath for d in drawn.train] == GOLDEN_TRAIN
    assert [d.impath for d in drawn.val] == GOLDEN_VAL


GOLDEN_TRAIN = ["12", "11", "4", "1"]
GOLDEN_VAL = ["v3.jpg", "v1.jpg", "v7.jpg", "v6.jpg"]


def test_draw_neither_reads_nor_moves_the_global_generator() -> None:
    splits = Splits(items([0] * 30), items([0] * 30), [])
    random.seed(5)
    first = keys(draw_few_shot(splits, 3, 1).train)
    after = random.random()
    random.seed(5)
    assert random.random() == after
    assert keys(draw_few_shot(splits, 3, 1).train) == first
    assert keys(draw_few_shot(splits, 3, 2).train) != first


def test_short_class_gives_all_and_leaves_the_generator_alone() -> None:
    full = draw_few_shot(Splits(items([1] * 10), [], []), 4, 3).train
    mixed = items([0, 0] + [1] * 10)
    drawn = draw_few_shot(Splits(mixed, [], []), 4, 3).train
    assert [d.impath for d in drawn[:2]] == ["0.jpg", "1.jpg"]
    assert [int(d.impath[:-4]) - 2 for d in drawn[2:]] == [int(d.impath[:-4]) for d in full]


def test_val_shots_are_at_most_four() -> None:
    splits = Splits(items([0] * 40), items([0] * 40), [])
    sizes = [len(draw_few_shot(splits, shots, 1).val) for shots in (1, 2, 4, 8, 16)]
    assert sizes == [1, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("shots", "seed", "word"), [(0, 1, "shots"), (-1, 1, "shots"), (1, -1, "seed")]
)
def test_impossible_draws_are_refused(shots: int, seed: int, word: str) -> None:
    with pytest.raises(ValueError, match=rf"{word} .*must be at least"):
        draw_few_shot(Splits(items([0]), [], []), shots, seed)


@given(train=labels, test=labels)
def test_halves_partition_classes_and_are_relabelled_from_zero(train, test) -> None:
    test = [label for label in test if label in train]
    splits = Splits(items(train), items(test), items(test))
    names = splits.class_names()
    base, new = (_half(splits, half) for half in ("base", "new"))
    assert base.class_names() == names[: -(-len(names) // 2)]
    for half in (base, new):
        assert sorted({d.label for d in half.train}) == list(range(len(half.class_names())))
        for part, whole in zip(half, splits, strict=True):
            kept = set(half.class_names())
            assert [(d.impath, d.classname) for d in part] == [
                (d.impath, d.classname) for d in whole if d.classname in kept
            ]
    assert base.class_names() + new.class_names() == names


def _half(splits: Splits, half: str) -> Splits:
    if half == "new" and len(splits.class_names()) == 1:
        with pytest.raises(ValueError, match="'new', but of 1 class"):
            subsample_classes(splits, half)
        return Splits([], [], [])
    return subsample_classes(splits, half)


def test_new_labels_are_those_of_the_names_in_order() -> None:
    splits = Splits(items([4, 2, 0, 1, 3]), [], items([3, 4]))
    new = subsample_classes(splits, "new")
    assert keys(new.train) == [("0.jpg", 1, "c4"), ("4.jpg", 0, "c3")]
    assert keys(new.test) == [("0.jpg", 0, "c3"), ("1.jpg", 1, "c4")]
    base = subsample_classes(splits, "base")
    assert [d.label for d in base.train] == [2, 0, 1]
    assert base.test == []


def test_domains_survive_relabelling() -> None:
    splits = Splits([Datum("a.jpg", 0, 2, "a"), Datum("b.jpg", 1, 3, "b")], [], [])
    assert subsample_classes(splits, "new").train[0].domain == 3


def test_test_only_sets_have_halves_too() -> None:
    new = subsample_classes(Splits([], [], items([0, 1, 2])), "new")
    assert keys(new.test) == [("2.jpg", 0, "c2")]


def test_unknown_half_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="'novel' is not available. .*: all, base, new"):
        subsample_classes(Splits(items([0]), [], []), "novel")


@st.composite
def ratios(draw) -> tuple[float, float, float]:
    train = draw(st.floats(0.05, 0.9))
    val = draw(st.one_of(st.just(0.0), st.floats(0, 0.95 - train)))
    return (train, val, 1 - train - val)


@given(total=st.integers(2, 500), ratio=ratios())
def test_part_sizes(total: int, ratio: tuple[float, float, float]) -> None:
    sizes = part_sizes(total, check_ratio(ratio))
    assert sum(sizes) == total
    assert sizes[0] >= 1
    assert sizes[1] >= 0
    assert sizes[2] >= 1
    if ratio[1] == 0:
        assert sizes[1] == 0
    rounded = [round(total * ratio[0]), round(total * ratio[1])]
    rounded.append(total - sum(rounded))
    if min(rounded) > 0:
        assert list(sizes) == rounded


@pytest.mark.parametrize(
    ("total", "sizes"),
    [(120, (60, 24, 36)), (10, (5, 2, 3)), (4, (2, 1, 1)), (3, (1, 1, 1)), (2, (1, 0, 1))],
)
def test_part_sizes_of_the_usual_ratio(total: int, sizes: tuple[int, int, int]) -> None:
    assert part_sizes(total, (0.5, 0.2, 0.3)) == sizes


groups = st.lists(st.integers(2, 30), min_size=1, max_size=5)


@given(sizes=groups, seed=st.integers(0, 100), ratio=ratios())
def test_three_way_split_is_a_partition_by_class(sizes, seed, ratio) -> None:
    classes = [[(label, i) for i in range(size)] for label, size in enumerate(sizes)]
    parts = split_three_ways(classes, ratio, seed)
    assert sorted(sum(parts, [])) == sum(classes, [])
    assert parts == split_three_ways(classes, ratio, seed)
    for label, size in enumerate(sizes):
        counted = tuple(sum(entry[0] == label for entry in part) for part in parts)
        assert counted == part_sizes(size, ratio)


def test_three_way_split_shuffles_and_depends_on_the_seed() -> None:
    group = [list(range(40))]
    first = split_three_ways(group, (0.5, 0.2, 0.3), 1)
    assert first[0] != list(range(20))
    assert first != split_three_ways(group, (0.5, 0.2, 0.3), 2)
    assert group == [list(range(40))]


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"1 image\(s\) cannot be split .*\['a'\]"):
        split_three_ways([["x", "y"], ["a"]], (0.5, 0.2, 0.3), 1)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), share=st.floats(0, 0.9))
def test_val_split_is_a_partition_and_leaves_train_of_every_class(sizes, share) -> None:
    classes = [[(label, i) for i in range(size)] for label, size in enumerate(sizes)]
    train, val = split_off_val(classes, share, 1)
    assert sorted(train + val) == sum(classes, [])
    assert {entry[0] for entry in train} == set(range(len(sizes)))
    for label, size in enumerate(sizes):
        taken = sum(entry[0] == label for entry in val)
        if share > 0 and size > 1:
            assert taken == min(max(round(size * share), 1), size - 1)
        else:
            assert taken == 0


def test_val_split_of_pets_rounds_as_published() -> None:
    train, val = split_off_val([list(range(100)), list(range(93))], 0.2, 1)
    assert (len(train), len(val)) == (80 + 74, 20 + 19)


@pytest.mark.parametrize(
    "ratio", [(0.5, 0.5), (0.5, 0.2, 0.2), (0, 0.5, 0.5), (0.5, 0.5, 0), (0.9, -0.2, 0.3)]
)
def test_bad_ratio_names_the_key(ratio: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"DATASET\.SPLIT_RATIO is .*sum to 1"):
        check_ratio(ratio)
