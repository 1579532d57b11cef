"""Arrays of the files that are checked, and the data file that says what they must give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dassl.data.features.arrays import read_arrays

EXPECTED = Path(__file__).with_name("expected.yaml")


def read_expected(path: Path) -> dict[str, Any]:
    """Read what must come out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It lacks a section.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--expected: no file {path}; the project's own is {EXPECTED}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    sections = ("zero_shot", "runs", "published")
    lacking = [name for name in sections if name not in (content or {})]
    if lacking:
        raise ValueError(f"{path} lacks the section(s) {', '.join(lacking)}; see {EXPECTED}")
    return content


def read_needed(path: Path, names: list[str]) -> dict[str, Any]:
    """Read arrays that must all be there.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is damaged or lacks an array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing in {path.parent}")
    found, present = read_arrays(path, names)
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ValueError(
            f"{path.name} has no array {lacking[0]!r}, only {', '.join(map(repr, present))}"
        )
    return found


def half_of(classes: int, half: str) -> slice:
    """Labels of all classes, of the base or of the novel ones: base is the first ceil(K / 2)."""
    middle = (classes + 1) // 2
    return {"all": slice(None), "base": slice(middle), "novel": slice(middle, None)}[half]
