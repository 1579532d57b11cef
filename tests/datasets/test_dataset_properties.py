"""Properties of whole datasets, whatever their sizes: draws, halves and splits of real trees.

The rules themselves (sampling, rounding, relabelling) have theirs in test_dataset_sampling.py.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum, build_dataset
from datasets.classnames import rename_classes
from datasets.folder import extend_cfg
from datasets.imagenet import standard_names
from datasets.readers import class_folders, split_official
from datasets.sampling import draw_few_shot
from datasets.splits import Splits

# A tree on disk for each example: fewer examples than of pure functions.
on_disk = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Images of each class in train, val and test.
sizes = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(1, 3)), min_size=2, max_size=7
)
seeds = st.integers(0, 10**6)


@contextmanager
def split_tree(classes: Sequence[tuple[int, int, int]]) -> Iterator[Path]:
    """OxfordPets with as many images of each class as given; labels in no order of their own."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "oxford_pets"
        (directory / "images").mkdir(parents=True)
        content: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
        for label, counts in reversed(list(enumerate(classes))):
            for part, count in zip(content, counts, strict=True):
                for number in range(count):
                    file = f"{part}_{label}_{number}.jpg"
                    (directory / "images" / file).touch()
                    content[part].append([file, label, f"class {label}"])
        (directory / "split_zhou_OxfordPets.json").write_text(json.dumps(content))
        yield Path(name)


def read(root: Path, **values: Any) -> Any:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.VERBOSE = False
    cfg.OUTPUT_DIR = ""
    cfg.SEED = values.pop("SEED", 1)
    cfg.DATASET.NAME, cfg.DATASET.ROOT = values.pop("NAME", "OxfordPets"), str(root)
    for key, value in values.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


def files(items: Sequence[Datum]) -> list[str]:
    return [Path(item.impath).name for item in items]


@on_disk
@given(classes=sizes, shots=st.integers(1, 8), seed=seeds)
def test_draw_of_a_dataset(classes, shots: int, seed: int) -> None:
    """Exact counts, no image twice, nothing but the part's own, test whole, same for a seed."""
    with split_tree(classes) as root:
        whole = read(root)
        drawn, again = (read(root, NUM_SHOTS=shots, SEED=seed) for _ in range(2))
    for part, most in (("train_x", shots), ("val", min(shots, 4))):
        everything, chosen = getattr(whole, part), getattr(drawn, part)
        available = Counter(item.label for item in everything)
        expected = {label: min(count, most) for label, count in available.items()}
        assert Counter(item.label for item in chosen) == expected
        assert len(set(files(chosen))) == len(chosen)
        assert set(files(chosen)) <= set(files(everything))
        assert all(item.classname == f"class {item.label}" for item in chosen)
        assert files(chosen) == files(getattr(again, part))
    assert files(drawn.test) == files(whole.test)
    assert drawn.classnames == whole.classnames
    assert drawn.shot_seed == seed


@on_disk
@given(classes=sizes, shots=st.sampled_from([-1, 1, 2, 16]), seed=seeds)
def test_halves_of_a_dataset(classes, shots: int, seed: int) -> None:
    """Base has the first ceil(K / 2) classes; both halves together are the whole, drawn alike."""
    with split_tree(classes) as root:
        whole, base, new = (
            read(root, NUM_SHOTS=shots, SEED=seed, SUBSAMPLE_CLASSES=half)
            for half in ("all", "base", "new")
        )
    first = (len(classes) + 1) // 2
    assert base.classnames == [f"class {label}" for label in range(first)]
    assert new.classnames == [f"class {label}" for label in range(first, len(classes))]
    for part in ("train_x", "val", "test"):
        halves = [getattr(half, part) for half in (base, new)]
        paths = [files(items) for items in halves]
        assert not set(paths[0]) & set(paths[1])
        assert sorted(paths[0] + paths[1]) == sorted(files(getattr(whole, part)))
        for half, items in zip((base, new), halves, strict=True):
            assert all(half.lab2cname[item.label] == item.classname for item in items)
    for half in (base, new):
        assert {item.label for item in half.test} == set(range(half.num_classes))


@given(data=st.data(), shots=st.integers(1, 8), seed=seeds)
def test_a_draw_does_not_depend_on_where_the_data_lies(data, shots: int, seed: int) -> None:
    labels = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=40))

    def drawn(root: str) -> list[str]:
        items = [Datum(f"{root}/{i}.jpg", label, 0, "") for i, label in enumerate(labels)]
        return files(draw_few_shot(Splits(items, [], []), shots, seed).train)

    assert drawn("/a") == drawn("/mnt/b")


# Images in each class folder.
folder_sizes = st.lists(st.integers(2, 25), min_size=1, max_size=5)


@contextmanager
def folder_tree(counts: Sequence[int]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for label, count in enumerate(counts):
            folder = Path(name) / "birds" / f"bird_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"bird_{label}_{number}.jpg").touch()
        yield Path(name)


def check_split(parts: Sequence[Sequence[Datum]], counts: Sequence[int], ratio: Any) -> None:
    """Disjoint, complete, every class in train and test, and shares that are off by an image."""
    paths = [item.impath for part in parts for item in part]
    assert len(set(paths)) == len(paths) == sum(counts)
    taken = [Counter(item.label for item in part) for part in parts]
    for label, count in enumerate(counts):
        assert taken[0][label] >= 1
        assert taken[2][label] >= 1
        for part, share in enumerate(ratio):
            # The rest falls to test, so two roundings add up there; tiny classes are evened out.
            assert abs(taken[part][label] - count * share) <= (1.5 if count > 4 else 2)


@on_disk
@given(counts=folder_sizes)
def test_own_split_of_class_folders(counts: list[int]) -> None:
    with folder_tree(counts) as root:
        splits, again = (class_folders(root, root / "birds") for _ in range(2))
    check_split(splits, counts, (0.5, 0.2, 0.3))
    assert [files(part) for part in splits] == [files(part) for part in again]
    for part in splits:
        assert all(Path(d.impath).parent.name == f"bird_{d.label}" == d.classname for d in part)


@on_disk
@given(
    counts=folder_sizes,
    ratio=st.sampled_from([(0.5, 0.2, 0.3), (0.7, 0.0, 0.3), (0.6, 0.2, 0.2), (0.2, 0.2, 0.6)]),
    seed=st.integers(0, 5),
)
def test_split_of_a_users_folders(counts, ratio, seed: int) -> None:
    values = {"NAME": "Folder", "DIR": "birds", "SPLIT_RATIO": ratio, "SPLIT_SEED": seed}
    with folder_tree(counts) as root:
        first, second = (read(root, SEED=run, **values) for run in (1, 2))
    parts = [first.train_x, first.val, first.test]
    check_split(parts, counts, ratio)
    # One split for all runs: only the few-shot draw is a run's own.
    assert [files(part) for part in parts] == [
        files(part) for part in (second.train_x, second.val, second.test)
    ]
    if ratio[1] == 0:
        assert not first.val


labels = st.lists(st.integers(0, 4), min_size=1, max_size=50)


@given(trainval=labels, test=labels)
def test_official_test_list_stays_as_it_is(trainval: list[int], test: list[int]) -> None:
    items, tested = (
        [Datum(f"{part}/{i}.jpg", label, 0, f"c{label}") for i, label in enumerate(part_labels)]
        for part, part_labels in (("trainval", trainval), ("test", test))
    )
    splits = split_official(items, tested)
    assert splits.test is tested
    assert Counter(d.impath for d in splits.train + splits.val) == Counter(d.impath for d in items)
    assert {d.label for d in splits.train} == set(trainval)
    for label, count in Counter(trainval).items():
        taken = sum(d.label == label for d in splits.val)
        assert taken == (min(max(round(count * 0.2), 1), count - 1) if count > 1 else 0)


@given(train=labels, test=labels, data=st.data())
def test_renaming_changes_names_alone(train: list[int], test: list[int], data: Any) -> None:
    known = {label: k for k, label in enumerate(sorted(set(train)))}
    train = [known[label] for label in train]
    test = [known[label] for label in test if label in known]
    splits = Splits(
        *(
            [Datum(f"{part}{i}", label, 0, f"c{label}") for i, label in enumerate(part_labels)]
            for part, part_labels in (("t", train), ("v", []), ("s", test))
        )
    )
    new = [f"new {k}" for k in data.draw(st.permutations(range(len(known))))]
    write: Callable[[Path], object] = data.draw(
        st.sampled_from(
            [
                lambda path: path.write_text(json.dumps(new)),
                lambda path: path.write_text(json.dumps({f"c{k}": n for k, n in enumerate(new)})),
            ]
        )
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "names.json"
        write(path)
        renamed = rename_classes(splits, str(path))
    for before, after in zip(splits, renamed, strict=True):
        assert [(d.impath, d.label) for d in after] == [(d.impath, d.label) for d in before]
        assert all(d.classname == new[d.label] for d in after)


@pytest.mark.parametrize("half", ["all", "base", "new"])
@on_disk
@given(present=st.sets(st.integers(0, 999), min_size=2, max_size=8))
def test_maps_to_imagenet_follow_the_folders(half: str, present: set[int]) -> None:
    """Whichever classes a subset holds, label, name, wnid and ImageNet's label agree."""
    wnids, names = zip(*standard_names().items(), strict=True)
    with tempfile.TemporaryDirectory() as name:
        for label in present:
            folder = Path(name) / "imagenet-rendition" / "imagenet-r" / wnids[label]
            folder.mkdir(parents=True)
            (folder / "1.jpg").touch()
        dataset = read(Path(name), NAME="ImageNetR", SUBSAMPLE_CLASSES=half)
    ordered = sorted(present)
    middle = (len(ordered) + 1) // 2
    kept = {"all": ordered, "base": ordered[:middle], "new": ordered[middle:]}[half]
    assert dataset.imagenet_labels == [[label] for label in kept]
    assert dataset.classnames == [names[label] for label in kept]
    assert [Path(d.impath).parent.name for d in dataset.test] == [wnids[label] for label in kept]
    assert [d.label for d in dataset.test] == list(range(len(kept)))
