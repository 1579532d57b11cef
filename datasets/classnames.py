"""Lists of class names from the user: their reader, and ``DATASET.CLASSNAMES``.

One reader serves every list that a user gives, by flag or by config key. Names stand a line each,
in label order; or in a CSV or TSV, with or without a header; or in JSON. They may carry their label
(``0 cat``, ``0,cat``) or wnid (``n01440764 tench``). Ambiguous lists are refused: a name in the
wrong place gives a class the wrong name, and nothing would show it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.config import user_path
from dassl.names import nearest
from dassl.utils.files import read_json, read_text
from datasets.sampling import relabel
from datasets.splits import Splits

WNID = re.compile(r"n\d{8}")
_WNID_LINE = re.compile(r"(n\d{8})[\s,;:]+(\S.*)")
_NUMBERED_LINE = re.compile(r"(\d+)(\s*[,;:\t]\s*|\s+)(\S.*)")
_NAME_COLUMNS = {
    "category", "class", "class name", "class_name", "classes", "classname", "classnames", "label",
    "label_name", "labels", "name", "names",
}  # fmt: skip
_HEADINGS = {"class name", "class names", "class_name", "class_names", "classname", "classnames"}
_OTHER_FORMATS = {".yaml", ".yml", ".toml", ".xml", ".xls", ".xlsx", ".ods", ".py", ".pkl", ".npy"}
_FIX = "write one name a line, or a JSON list"
NUMBERED = re.compile(r"\d+[.-]")  # 001.Black_footed_Albatross; not 2012 Audi TTS Coupe


def rename_classes(splits: Splits, file: str) -> Splits:
    """Give classes the names that a file lists.

    The file has names in label order, as :func:`read_name_list` reads them; or names by wnid, for
    classes whose present names are wnids; or a JSON object from present name, or label, to new
    name, which may leave classes out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The number of names differs from that of the classes, or a key is no class.
    """
    present = splits.class_names()
    names = read_class_names(Path(user_path(file)), present)
    return Splits(
        *([relabel(item, classname=names[item.label]) for item in part] for part in splits)
    )


def read_class_names(path: Path, present: list[str]) -> list[str]:
    """Read new names for the classes ``present``, in label order; errors as `rename_classes`."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}; DATASET.CLASSNAMES must name one")
    names: Any = read_name_list(path, "DATASET.CLASSNAMES")
    # Wnids come first: a list of ImageNet's names says which class each is for.
    if by_wnid(names):
        names = _names_of_wnids(names, present, path)
    elif isinstance(names, dict):
        # {"cat": 0} leads from name to label, {"0": "cat"} or {"tabby": "cat"} to a new name.
        labelled = any(type(value) is int for value in names.values())
        names = (in_label_order(names) if labelled else None) or _replace_some(names, present, path)
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError(f"{path} must hold class names as texts: a list, or an object old: new")
    if len(names) != len(present):
        raise ValueError(
            f"{path} has {len(names)} names, but the dataset has {len(present)} classes; "
            f"one per class in label order is needed, from {present[0]!r} to {present[-1]!r}"
        )
    return names


def _names_of_wnids(names: dict[str, Any], present: list[str], path: Path) -> list[Any]:
    missing = [name for name in present if name not in names]
    if missing:
        what = "is not in it" if WNID.fullmatch(missing[0]) else "is no wnid"
        raise ValueError(
            f"{path} has names by wnid, but class {missing[0]!r} of the dataset {what}; give names "
            "in label order (ImageNet's own list is classnames.txt in the dataset's directory)"
        )
    return [names[name] for name in present]


def unreadable_names(names: Sequence[str]) -> str:
    """Say why class names mean nothing to a text encoder; empty if they mean something."""
    wnids = [name for name in names if WNID.fullmatch(name.strip())]
    if wnids:
        what = f"WordNet ids ({len(wnids)} of {len(names)}, first {wnids[0]})"
    elif all(name.isdecimal() for name in names):
        what = f"numbers ({names[0]} to {names[-1]})"
    elif all(NUMBERED.match(name) for name in names):
        what = f"numbered ({names[0]!r})"
    else:
        return ""
    return f"the class names are {what}, which mean nothing to a text encoder"


def _replace_some(new_names: dict[str, Any], present: list[str], path: Path) -> list[Any]:
    names: list[Any] = list(present)
    for key, new_name in new_names.items():
        if key in present:
            # A name may belong to two classes (ImageNet's "missile"): both are meant then.
            labels = [label for label, name in enumerate(present) if name == key]
        elif key.isdecimal() and int(key) < len(present):
            labels = [int(key)]
        else:
            raise ValueError(
                f"{path}: {key!r} is neither a class name nor a label 0..{len(present) - 1}."
                f"{nearest(key, present)}"
            )
        for label in labels:
            names[label] = new_name
    return names


def read_name_list(path: Path, flag: str) -> Any:
    """Read class names from JSON, CSV, TSV or lines; ``flag`` names the file in errors.

    Returns:
        A list in label order; or by wnid, where the file has wnids; or the content of a JSON file,
        unchecked.

    Raises:
        ValueError: The encoding or format is not read, or the list is ambiguous.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise ValueError(f"{flag}: {path} ends in {suffix}, which is not read; {_FIX}")
    try:
        if suffix == ".json":
            return read_json(path)
        text = read_text(path)
        # A list in JSON is often called .txt.
        if text.lstrip()[:1] in ("[", "{"):
            return read_json(path)
        if suffix in (".csv", ".tsv"):
            return _from_table(text, "\t" if suffix == ".tsv" else ",", str(path))
        return _from_lines(text, str(path))
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


def in_label_order(content: Mapping[str, Any]) -> list[str] | None:
    """Order the names of a JSON object from label to name, or from name to label; None if neither.

    Labels run from 0, or from 1, without a gap.
    """
    if all(isinstance(value, str) for value in content.values()):
        if all(key.isdecimal() for key in content):
            return _ordered([(int(key), str(value)) for key, value in content.items()])
    elif all(type(value) is int for value in content.values()):
        return _ordered([(value, key) for key, value in content.items()])
    return None


def by_wnid(content: Any) -> bool:
    """Whether these are names by wnid."""
    return isinstance(content, dict) and bool(content) and all(map(WNID.fullmatch, content))


def _ordered(pairs: Sequence[tuple[int, str]]) -> list[str] | None:
    """Names by their numbers, if these are 0..n-1 or 1..n; a lone number may be part of a name."""
    numbers = sorted(number for number, _ in pairs)
    if len(pairs) < 2 or numbers[0] not in (0, 1):
        return None
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return None
    return [name for _, name in sorted(pairs)]


def _from_lines(text: str, path: str) -> list[str] | dict[str, str]:
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    names = [name for _, name in lines]
    for number, name in lines:
        if name.startswith("# ") or (number == 1 and name.lower() in _HEADINGS):
            what = "a comment" if name.startswith("#") else "a heading"
            raise ValueError(f"{path}:{number}: {name!r} looks like {what}; remove the line")
    wnids = [_WNID_LINE.fullmatch(name) for name in names]
    if any(wnids):
        return _named_wnids([(n, m, s) for (n, s), m in zip(lines, wnids, strict=True)], path)
    numbered = [match for match in map(_NUMBERED_LINE.fullmatch, names) if match]
    if numbered and len(numbered) == len(names) > 1:
        found = _from_numbered(numbered, path)
        if found:
            return found
    for number, name in lines:
        if "\t" in name or (len(lines) == 1 and name.count(",") + name.count(";") > 0):
            raise ValueError(f"{path}:{number}: {name!r} holds several names or columns; {_FIX}")
    # Every line quoted: the marks are the list's, not the names'.
    if names and all(len(name) > 2 and name[0] == name[-1] == '"' for name in names):
        names = [name[1:-1].strip() for name in names]
    return names


def _named_wnids(
    lines: Sequence[tuple[int, re.Match[str] | None, str]], path: str
) -> dict[str, str]:
    names: dict[str, str] = {}
    for number, match, line in lines:
        if match is None or match[1] in names:
            what = "names no wnid, unlike other lines" if match is None else "repeats a wnid"
            raise ValueError(f"{path}:{number}: {line!r} {what}")
        names[match[1]] = match[2]
    return names


def _from_numbered(lines: Sequence[re.Match[str]], path: str) -> list[str] | None:
    """Names of lines that all begin with a number; None if it is part of the names."""
    pairs = [(int(line[1]), line[3]) for line in lines]
    found = _ordered(pairs)
    spaced = all(not line[2].strip(" ") for line in lines)
    first = min(number for number, _ in pairs)
    distinct = len({number for number, _ in pairs}) == len(pairs)
    if found and (first == 0 or not spaced):
        return found
    # "2012 Audi TTS" is a name; "1 euro" may be one too, and "0 cat" without a "1 dog" is none.
    if found or (distinct and first == 0) or not spaced:
        raise ValueError(
            f"{path}: its lines begin with numbers ({lines[0][0]!r}), which may be labels or "
            "belong to the names: as labels they would run 0..n-1. Write a JSON list of the names"
        )
    return None


def _from_table(text: str, delimiter: str, path: str) -> list[str] | dict[str, str]:
    first_line = text.strip().split("\n")[0]
    if delimiter == "," and "," not in first_line and ";" in first_line:
        delimiter = ";"  # of spreadsheets where the comma is the decimal point
    try:
        read = csv.reader(
            io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True
        )
        rows = [[cell.strip() for cell in row] for row in read if any(map(str.strip, row))]
    except csv.Error as error:
        raise ValueError(f"{path} is not a table of columns: {error}") from None
    if not rows:
        return []
    odd = next((row for row in rows if len(row) != len(rows[0])), None)
    if odd is not None or not all(map(all, rows)):
        odd = next(row for row in rows if len(row) != len(rows[0]) or not all(row))
        raise ValueError(f"{path}: the row {odd} is unlike the first, {rows[0]}: cells are missing")
    heading = [cell.lower() for cell in rows[0]]
    body = rows[1:] if _is_heading(heading, rows[1:]) else rows
    columns = list(zip(*body, strict=True)) if body else [()] * len(heading)
    numbers = [i for i, column in enumerate(columns) if all(cell.isdecimal() for cell in column)]
    wnids = [i for i, column in enumerate(columns) if all(map(WNID.fullmatch, column))]
    texts = [i for i in range(len(columns)) if i not in numbers and i not in wnids]
    if len(texts) > 1 and body is not rows:
        texts = [i for i in texts if heading[i] in _NAME_COLUMNS]
    if len(columns) == 1:
        return list(columns[0])
    if len(texts) != 1 or len(numbers) > 1 or len(wnids) > 1:
        raise ValueError(
            f"{path}: which of its columns {rows[0]} holds the names? Call it 'name' in a heading "
            f"and keep at most one column of labels, or {_FIX}"
        )
    names = list(columns[texts[0]])
    if wnids:
        return dict(zip(columns[wnids[0]], names, strict=True))
    if not numbers:
        return names
    ordered = _ordered([(int(n), name) for n, name in zip(columns[numbers[0]], names, strict=True)])
    if ordered is None:
        raise ValueError(f"{path}: its labels do not run from 0 to {len(names) - 1}; correct them")
    return ordered


def _is_heading(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether the first row says what the columns are: by its words, or above numbers."""
    # "id" above 0, 1, 2 is a heading whatever the word.
    above_numbers = others and any(
        not cell.isdecimal() and all(row[i].isdecimal() for row in others)
        for i, cell in enumerate(first)
    )
    return bool(above_numbers) or any(cell in _NAME_COLUMNS for cell in first)
