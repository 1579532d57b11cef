"""The bundled suite: rendered images of coloured, textured shapes, with shifted siblings.

A class of the main set is a texture, a colour and a form ("striped red triangle"); place, size,
rotation, light, background and noise are nuisance. The siblings v2, sketch, r and a mirror
ImageNet's shifts; colours, textures, forms and counts label the same world differently, for
cross-dataset transfer. Everything is drawn once, deterministically, as PNG files below
``<root>/shapes`` and then read like any other dataset, from split files in CoOp's format.

The suite demonstrates that the methods work. Its numbers are not comparable with published ones.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dassl.config import user_path
from dassl.locks import LockedError, Owner, acquire, is_old
from dassl.utils.files import atomic_write
from datasets.shapes_captions import class_name
from datasets.shapes_render import COLOURS, FORMS, TEXTURES, Objects, Style, render
from datasets.splits import PARTS

CHECKSUMS = "checksums.json"  # CRC-32 of every image, by its path in the suite's folder
VERSION = "1"  # of the images; folders written by another version are drawn anew
_PARTIAL, _OLD, _LOCK = ".shapes-", "-old", ".lock"  # beside the suite: what is being drawn

_seen: dict[str, tuple[int, ...]] = {}  # state of the images that this process found intact
_SUITE_TEXTURES = ("solid", "striped", "dotted", "checkered")
_SUITE_COLOURS = ("red", "yellow", "green", "blue", "purple", "pink")
_SUITE_FORMS = ("circle", "square", "triangle", "star", "cross", "heart")


def _main_classes() -> list[tuple[str, str, str]]:
    """40 of the 144 combinations; every part is about equally frequent in both halves."""
    combinations = list(itertools.product(_SUITE_TEXTURES, _SUITE_COLOURS, _SUITE_FORMS))
    return random.Random(1677).sample(combinations, 40)  # the most even of 3,000 seeds


CLASSES = _main_classes()

SHIFTED = Style(
    hue_shift=32,
    hue_jitter=10,
    saturation=(0.5, 0.9),
    brightness=(0.6, 1.0),
    second_tone=(0.2, 0.8),
    background_saturation=0.25,
    background_texture=(0.0, 0.15),
    size=(0.55, 0.9),
    noise=(0.03, 0.08),
)
"""The style of the main set: its hues are shifted against what the tiny CLIP was trained on."""

PLAIN = Style(hue_shift=8, saturation=(0.5, 0.9), size=(0.5, 0.85), noise=(0.03, 0.1),
              background_texture=(0.05, 0.25))  # fmt: skip


@dataclass(frozen=True)
class SuiteSet:
    """One dataset of the suite."""

    folder: str  # of its images, below ``<root>/shapes``
    style: Style
    classes: tuple[str, ...]  # names in label order
    per_class: tuple[int, int, int]  # images in train, val and test; shifted siblings only test
    # (label, number of images, generator) -> what they show
    draw: Callable[[int, int, np.random.Generator], Objects]


def _index(
    words: dict, allowed: tuple[str, ...], n: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    return np.array([list(words).index(word) for word in allowed])[
        rng.integers(len(allowed), size=n)
    ]


def _draw_main(label: int, n: int, rng: np.random.Generator) -> Objects:
    texture, colour, form = CLASSES[label]
    return Objects(_index(FORMS, (form,), n, rng), _index(COLOURS, (colour,), n, rng),
                   _index(TEXTURES, (texture,), n, rng), np.ones(n, np.intp))  # fmt: skip


def _draw_any(n: int, rng: np.random.Generator) -> Objects:
    return Objects(rng.integers(len(FORMS), size=n), rng.integers(len(COLOURS), size=n),
                   rng.integers(len(TEXTURES), size=n), np.ones(n, np.intp))  # fmt: skip


def _draw_part(part: str) -> Callable[[int, int, np.random.Generator], Objects]:
    def draw(label: int, n: int, rng: np.random.Generator) -> Objects:
        return replace(_draw_any(n, rng), **{part: np.full(n, label)})

    return draw


def _draw_count(label: int, n: int, rng: np.random.Generator) -> Objects:
    return replace(_draw_any(n, rng), count=np.full(n, label + 1))


_MAIN = tuple(class_name(*parts) for parts in CLASSES)


def _shift(folder: str, **changes: Any) -> SuiteSet:
    """The main classes in another style, to test on only."""
    return SuiteSet(folder, replace(SHIFTED, **changes), _MAIN, (0, 0, 15), _draw_main)


SUITE: dict[str, SuiteSet] = {
    "Shapes": SuiteSet("main", SHIFTED, _MAIN, (24, 6, 25), _draw_main),
    "ShapesV2": _shift("v2", noise=(0.05, 0.10), size=(0.5, 0.8)),
    "ShapesSketch": _shift("sketch", outline=True, second_tone=(0.5, 1.0)),
    "ShapesR": _shift("r", levels=4, block=2, size=(0.6, 0.9), noise=(0.0, 0.04)),
    "ShapesA": _shift("a", clutter=4, contrast=(0.75, 0.95)),
    "ShapesColours": SuiteSet(
        "colours", PLAIN, tuple(f"{c} shape" for c in COLOURS), (24, 6, 40), _draw_part("colour")
    ),
    "ShapesTextures": SuiteSet(
        "textures", PLAIN, tuple(f"{t} shape" for t in TEXTURES), (24, 6, 50), _draw_part("texture")
    ),
    "ShapesForms": SuiteSet("forms", PLAIN, tuple(FORMS), (24, 6, 40), _draw_part("form")),
    "ShapesCounts": SuiteSet(
        "counts",
        PLAIN,
        ("one shape", "two shapes", "three shapes", "four shapes"),
        (24, 6, 75),
        _draw_count,
    ),
}


def ensure_rendered(root: str | os.PathLike[str]) -> Path:
    """Draw the suite below ``<root>/shapes`` unless it is there already; mend damaged images.

    The folder appears complete or not at all: it is drawn beside its place and renamed, so jobs
    that start together, or a kill in between, do no harm. Leftovers of killed jobs are removed.
    """
    target = Path(user_path(root)) / "shapes"
    _remove_leftovers(target.parent)
    if is_current(target):
        mend(target)
        return target
    if target.exists() and not (target / "version.txt").is_file():
        raise FileExistsError(
            f"{target} exists and was not drawn by this project: it has no version.txt. Move it "
            "away, or choose another --root."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f"{_PARTIAL}{uuid.uuid4().hex}"
    with acquire(partial.with_name(f"{partial.name}{_LOCK}")) as lock:
        lock.record(Owner.of(os.getpid()))
        try:
            partial.mkdir()
            print(f"Drawing the bundled Shapes suite into {target} (once, a few seconds)")
            for name, suite_set in SUITE.items():
                _write_set(name, suite_set, partial)
            sums = {_name_of(path, partial): _crc32(path) for path in _pictures(partial)}
            (partial / CHECKSUMS).write_text(json.dumps(sums))
            (partial / "version.txt").write_text(VERSION + "\n")
            _move_into_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _remove_leftovers(root: Path) -> None:
    """Remove what killed jobs left: folders that nobody has locked, or old ones without locks."""
    with contextlib.suppress(OSError):
        for left in root.glob(f"{_PARTIAL}*"):
            name = left.name.removesuffix(_LOCK).removesuffix(_OLD)
            with (
                contextlib.suppress(OSError, LockedError),
                acquire(root / f"{name}{_LOCK}", patience=0) as lock,
            ):
                if left.is_dir() and (lock.held or is_old(left)):
                    shutil.rmtree(left, ignore_errors=True)


def is_current(folder: Path) -> bool:
    """Whether the suite in a folder is of this version and has its checksums."""
    stamp = folder / "version.txt"
    same = stamp.is_file() and stamp.read_text().strip() == VERSION
    return same and (folder / CHECKSUMS).is_file()


def _pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*/*.png"))


def _crc32(path: str | Path) -> int:
    with open(path, "rb") as file:
        return zlib.crc32(file.read())


def _name_of(picture: Path, folder: Path) -> str:
    return picture.relative_to(folder).as_posix()


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of the suite's images by name; empty if the file is damaged."""
    try:
        return json.loads((folder / CHECKSUMS).read_text())
    except ValueError:
        return {}


def damaged_pictures(folder: Path) -> list[str]:
    """The suite's images that are missing or differ from what was drawn."""
    # Without readable checksums every image is drawn again.
    sums = _checksums(folder) or {_name_of(path, folder): -1 for path in _pictures(folder)}
    found = []
    for name, expected in sums.items():
        path = f"{folder}/{name}"  # thousands of Path objects would take longer than the reading
        try:
            status = os.stat(path)
        except OSError:
            found.append(name)
            continue
        # As ``make`` does: a file whose state has not changed is not read again.
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, expected)
        if _seen.get(path) == state:
            continue
        if _crc32(path) == expected:
            _seen[path] = state
        else:
            found.append(name)
    return found


def mend(folder: Path) -> None:
    """Draw damaged images of the suite again; jobs that read the others are not disturbed."""
    damaged = damaged_pictures(folder)
    if not damaged:
        return
    print(
        f"WARNING: {len(damaged)} pictures in {folder} are damaged, such as {damaged[0]}; "
        "they are drawn again"
    )
    wanted, sums = set(damaged), {}
    for name, suite_set in SUITE.items():
        for label, part, where in _class_folders(suite_set):
            numbers = [
                n for n in range(_count(suite_set, part)) if f"{where}/{n:04d}.png" in wanted
            ]
            if not numbers:
                continue
            # The whole class: its images come from one random stream.
            pictures = draw_class(name, label, part, _count(suite_set, part))
            for number in numbers:
                path = folder / where / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path, "wb") as file:
                    Image.fromarray(pictures[number]).save(file, "png", compress_level=1)
                sums[f"{where}/{number:04d}.png"] = _crc32(path)
    with atomic_write(folder / CHECKSUMS) as file:
        json.dump({**_checksums(folder), **sums}, file)


def _move_into_place(partial: Path, target: Path) -> None:
    """Put the drawn folder in its place, unless another job was faster: it drew the same."""
    if is_current(target):
        return
    if target.exists():  # of another version
        outdated = partial.with_name(f"{partial.name}{_OLD}")
        outdated.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another job has moved it
            os.replace(target, outdated / "shapes")
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        os.replace(partial, target)
    except OSError:
        if not is_current(target):
            raise


def _count(suite_set: SuiteSet, part: str) -> int:
    return suite_set.per_class[PARTS.index(part)]


def _class_folders(suite_set: SuiteSet) -> Iterator[tuple[int, str, str]]:
    """Yield label, part and folder in the suite of every class, part by part."""
    for part in PARTS:
        for label, class_text in enumerate(suite_set.classes):
            yield label, part, f"{suite_set.folder}/{part}/{class_text.replace(' ', '_')}"


def _write_set(name: str, suite_set: SuiteSet, folder: Path) -> None:
    split: dict[str, list[tuple[str, int, str]]] = {part: [] for part in PARTS}
    for label, part, where in _class_folders(suite_set):
        pictures = draw_class(name, label, part, _count(suite_set, part))
        (folder / where).mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(pictures):
            path = f"{where}/{i:04d}.png"
            Image.fromarray(pixels).save(folder / path, compress_level=1)
            split[part].append((path, label, suite_set.classes[label]))
    (folder / f"split_zhou_{name}.json").write_text(json.dumps(split))


def draw_class(name: str, label: int, part: str, n: int) -> NDArray[np.uint8]:
    """A draw of ``n`` images of a class: (n, 48, 48, 3).

    Every class of every part has a random stream of its own: one can change without the others.
    """
    suite_set = SUITE[name]
    rng = np.random.default_rng([zlib.crc32(f"{name}/{part}".encode()), label])
    return render(suite_set.draw(label, n, rng), suite_set.style, rng)
