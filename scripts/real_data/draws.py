"""Few-shot draws that others published, against our own from the same split files."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.data.datasets import Datum
from datasets.sampling import draw_few_shot
from datasets.splits import Splits, read_split_file

DRAWS = "few_shot_draws.json.gz"
SPLITS = "splits"  # folder of split_zhou_<Name>.json.gz


@dataclass(frozen=True)
class Draw:
    """A published draw of training or validation images, and how ours differs, if it does."""

    dataset: str
    shots: int
    seed: int
    part: str
    problem: str  # empty if both are equal


def compare_draws(root: Path) -> Iterator[Draw]:
    """Compare all draws of ``few_shot_draws.json.gz``, in the file's order.

    It has ``{dataset: {"<shots>-<seed>": {"train": [...], "val": [...]}}}`` with positions in the
    lists of the dataset's split file, in the order in which they were drawn.

    Raises:
        FileNotFoundError: The file of the draws is missing.
        ValueError: It has another form.
    """
    published = _read_json(root / DRAWS)
    if not isinstance(published, dict) or not published:
        raise ValueError(f"{DRAWS}: an object of draws by dataset is needed")
    for dataset, draws in published.items():
        try:
            splits = _read_splits(root / SPLITS / f"split_zhou_{dataset}.json.gz")
            problem = ""
        except (OSError, ValueError) as error:
            problem = str(error)
        for key, parts in draws.items():
            shots, seed = _numbers(dataset, key)
            own = _drawn(splits, shots, seed) if not problem else None
            for part, positions in parts.items():
                said = problem or _difference(own, splits, part, positions)
                yield Draw(dataset, shots, seed, part, said)


def _numbers(dataset: str, key: str) -> tuple[int, int]:
    """Shots and seed of a draw's name."""
    shots, _, seed = key.partition("-")
    if not (shots.isdecimal() and seed.isdecimal()):
        raise ValueError(f"{DRAWS}: {dataset} has a draw {key!r}; <shots>-<seed> is needed")
    return int(shots), int(seed)


def _drawn(splits: Splits, shots: int, seed: int) -> Splits:
    """Our own draw, without the line that a run's log has of each."""
    with contextlib.redirect_stdout(io.StringIO()):
        return draw_few_shot(splits, shots, seed)


def _difference(own: Splits | None, splits: Splits, part: str, positions: list[int]) -> str:
    """Say how a published draw differs from ours; empty if it does not."""
    listed: list[Datum] = getattr(splits, part)
    drawn = [item.impath for item in getattr(own, part)]
    beyond = [position for position in positions if not 0 <= position < len(listed)]
    if beyond:
        return f"position {beyond[0]} is beyond the split file's {len(listed)} {part} images"
    expected = [listed[position].impath for position in positions]
    if drawn == expected:
        return ""
    if len(drawn) != len(expected):
        return f"{len(expected)} images are published, {len(drawn)} are drawn"
    pairs = zip(drawn, expected, strict=True)
    place = next(i for i, (one, other) in enumerate(pairs) if one != other)
    return f"image {place} is {Path(expected[place])} as published, {Path(drawn[place])} as drawn"


def _read_splits(path: Path) -> Splits:
    """Read a packed split file with the reader that runs use."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, path.stem)
        plain.write_text(json.dumps(_read_json(path)), encoding="utf-8")
        return read_split_file(plain, Path())


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing in {path.parent}")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return json.load(file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
