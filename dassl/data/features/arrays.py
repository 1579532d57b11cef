"""Arrays by name in the files that other programs keep features in.

Read are ``.npz``, ``.npy``, ``.pt``, ``.safetensors``, Parquet, Arrow, texts (``.txt``), and
folders of ``save_to_disk`` of Hugging Face. Numbers come as NumPy arrays, texts as lists of str.
A file cannot run code: pickled objects are refused or left out, see `restricted_unpickler`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from dassl.utils.files import atomic_write, read_json, read_text

__all__ = [
    "READ_SUFFIXES",
    "WRITTEN_SUFFIXES",
    "Arrays",
    "MissingPackageError",
    "read_arrays",
    "write_arrays",
]

Arrays = dict[str, Any]  # by name: np.ndarray, or list[str]

CLASSNAMES = "classnames"
_UNNAMED = ""  # in place of a name, in files that hold one array and no name
_HUGGING_FACE = b"huggingface"  # where its datasets keep types of columns, in an Arrow schema
_EXTRAS = b"arrays"  # where `write_arrays` puts what is no column of a table


class MissingPackageError(ValueError):
    """A package that only some formats need is not installed; the message says which."""


def read_arrays(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    """Read arrays by name; the others in the file are not loaded.

    Args:
        path: A file of one of ``READ_SUFFIXES``, or a folder of ``save_to_disk``.
        names: Wanted arrays, or columns of a table. A file with one array and no name holds the
            first of them. ``classnames`` may also be the names of a Hugging Face ``ClassLabel``.

    Returns:
        Those of the wanted arrays that are there, and the names of all arrays.

    Raises:
        ValueError: Another suffix; or the file is damaged, half written, or holds what only code
            could read.
        MissingPackageError: A package that reads this format is not installed.
    """
    reader = _read_folder if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} ends in {path.suffix!r}; read are {', '.join(READ_SUFFIXES)}")
    with _explained(path):
        found, present = reader(path, names)
    if _UNNAMED in found:
        found, present = {names[0]: found[_UNNAMED]}, [names[0]]
    return {name: found[name] for name in names if name in found}, present


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises into one line that names the file."""
    try:
        yield
    except MissingPackageError:
        raise
    except Exception as error:  # every library has types of its own for damaged files
        said = (str(error) or type(error).__name__).strip().split("\n")[0]
        if "allow_pickle" in said or "Python objects" in said:
            said = (
                "an array in it is pickled, and a pickle may run code; save names as texts "
                "(np.array(names)) and features as numbers"
            )
        raise ValueError(
            f"{path} cannot be read (damaged, half written, or of another kind than its name "
            f"says): {said}"
        ) from error


def _needed(module: str, package: str, path: Path) -> Any:
    """Import an optional package."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"{path} needs {package}: pip install {package}") from error


def _from_numpy(array: np.ndarray) -> Any:
    """An array in this machine's byte order, or a list of texts."""
    if array.dtype.kind == "U":
        return array.tolist()
    if array.dtype.kind == "S":
        return [value.decode("utf-8") for value in array.tolist()]
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _from_torch(value: Any) -> Any:
    """A tensor as an array, or a list as `_from_list`; None for anything else."""
    import torch  # seconds that other formats save

    if isinstance(value, torch.Tensor):
        value = value.detach()
        # NumPy has no bfloat16; single precision holds its values exactly.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return _from_list(value) if isinstance(value, list | tuple) else None


def _from_list(values: Sequence[Any]) -> Any:
    """Texts as a list of str, numbers as an array; None for a mixture."""
    if all(isinstance(value, str) for value in values):
        return list(values)
    numbers = all(isinstance(value, int | float) for value in values)
    return np.array(values) if numbers else None


def _read_npz(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    with np.load(path, allow_pickle=False) as archive:
        found = {name: _from_numpy(archive[name]) for name in names if name in archive.files}
        return found, list(archive.files)


def _read_npy(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    # Copy on write: PyTorch wants writable memory, but the file must not change.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    return {_UNNAMED: _from_numpy(array)}, []


def _read_txt(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    numbers = all(line.isdecimal() for line in lines)
    return {_UNNAMED: np.array([int(line) for line in lines]) if numbers else lines}, []


def _read_torch(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    from dassl.utils.restricted_unpickler import read_restricted

    content = read_restricted(path)
    if not isinstance(content, Mapping):
        return {_UNNAMED: _from_torch(content)}, []
    arrays = {str(name): _from_torch(value) for name, value in content.items()}
    return {name: value for name, value in arrays.items() if value is not None}, list(arrays)


def _read_safetensors(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    library = _needed("safetensors", "safetensors", path)
    with library.safe_open(str(path), framework="pt") as file:
        present = list(file.keys())
        found = {name: _from_torch(file.get_tensor(name)) for name in names if name in present}
        # The format has no texts; they are lists in JSON beside the tensors.
        texts = {name: _listed(text) for name, text in (file.metadata() or {}).items()}
    found |= {name: texts[name] for name in names if texts.get(name) is not None}
    return found, present + [name for name, value in texts.items() if value is not None]


def _listed(text: str) -> Any:
    """A list that was written as JSON; None for another text."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return _from_list(values) if isinstance(values, list) else None


# ------------------------------------------------------------------ tables of Arrow


def _read_parquet(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    parquet = _needed("pyarrow.parquet", "pyarrow", path)
    with open(path, "rb") as file, parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        wanted = [name for name in names if name in schema.names]
        return _from_tables([table.read(columns=wanted)], schema, names)


def _read_arrow(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    table = _arrow_table(path)
    return _from_tables([table], table.schema, names)


def _read_folder(path: Path, names: Sequence[str]) -> tuple[Arrays, list[str]]:
    """Read a folder of ``datasets.Dataset.save_to_disk``."""
    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json").get("splits", [])
        raise ValueError(f"it holds several splits; name one, such as {path.name}/{splits[0]}")
    if not (path / "state.json").is_file():
        raise ValueError("it is a folder without state.json, which Dataset.save_to_disk writes")
    files = [entry["filename"] for entry in read_json(path / "state.json")["_data_files"]]
    tables = [_arrow_table(path / file) for file in files]
    return _from_tables(tables, tables[0].schema, names)


def _arrow_table(path: Path) -> Any:
    ipc = _needed("pyarrow.ipc", "pyarrow", path)
    # Opened by Python, which tells a run what it was made from.
    with open(path, "rb") as file:
        seekable = file.read(6) == b"ARROW1"  # the file format; else a stream, as datasets writes
        file.seek(0)
        with (ipc.open_file if seekable else ipc.open_stream)(file) as reader:
            return reader.read_all()


def _from_tables(
    tables: Sequence[Any], schema: Any, names: Sequence[str]
) -> tuple[Arrays, list[str]]:
    """Wanted columns of tables below each other, and what their schema's metadata hold."""
    found: Arrays = {}
    for name in names:
        if name in schema.names:
            chunks = [chunk for table in tables for chunk in table.column(name).chunks]
            parts = [_from_chunk(chunk, name) for chunk in chunks]
            texts = bool(parts) and isinstance(parts[0], list)
            found[name] = [t for part in parts for t in part] if texts else _joined(parts)
    metadata = schema.metadata or {}
    extras = json.loads(metadata.get(_EXTRAS, "{}"))
    extras = {k: _from_list(v) if isinstance(v, list) else np.array(v) for k, v in extras.items()}
    types = json.loads(metadata.get(_HUGGING_FACE, "{}")).get("info", {}).get("features", {})
    for name in names:
        kind = types.get(name)
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel":
            extras.setdefault(CLASSNAMES, list(kind["names"]))
    return {**extras, **found}, [*schema.names, *(extras.keys() - set(schema.names))]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    # Copied even if there is one part: what Arrow owns cannot be written to.
    return np.concatenate(parts) if parts else np.zeros(0)


def _from_chunk(chunk: Any, name: str) -> Any:
    """A piece of a column: texts as list, numbers (n,), lists of equal length (n, ..., size)."""
    types = import_module("pyarrow").types
    chunk = getattr(chunk, "storage", chunk)  # of an extension type
    if types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    if chunk.null_count:
        raise ValueError(f"column {name!r} has {chunk.null_count:,} empty cell(s)")
    if types.is_string(chunk.type) or types.is_large_string(chunk.type):
        return chunk.to_pylist()
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not any(is_list(chunk.type) for is_list in lists):
        return chunk.to_numpy(zero_copy_only=False)
    compute = import_module("pyarrow.compute")
    sizes = compute.unique(compute.list_value_length(chunk)).to_pylist()
    if len(sizes) > 1:
        raise ValueError(f"column {name!r} has lists of different lengths: {sorted(sizes)[:5]}")
    values = _from_chunk(chunk.flatten(), name)
    return values.reshape(len(chunk), -1, *values.shape[1:])


_READERS: dict[str, Callable[[Path, Sequence[str]], tuple[Arrays, list[str]]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".txt": _read_txt,
}
READ_SUFFIXES = (*_READERS, "a folder of Dataset.save_to_disk")


# ------------------------------------------------------------------ writing


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays by name, whole or not at all, as the suffix says; `read_arrays` reads them back.

    Of a Parquet file the arrays with as many rows as the first one are columns.

    Raises:
        ValueError: A suffix that is not written.
        MissingPackageError: A package that writes this format is not installed.
        OSError: The disk is full, or the folder cannot be written.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ValueError(f"{path} ends in {path.suffix!r}; written are {', '.join(_WRITERS)}")
    with atomic_write(path, "wb") as file:
        writer(file, path, arrays)


def _write_npz(file: IO[bytes], path: Path, arrays: Arrays) -> None:
    content: Arrays = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez(file, **content)


def _write_safetensors(file: IO[bytes], path: Path, arrays: Arrays) -> None:
    library = _needed("safetensors.numpy", "safetensors", path)
    texts = {name: json.dumps(value) for name, value in arrays.items() if isinstance(value, list)}
    numbers = {
        name: np.ascontiguousarray(value) for name, value in arrays.items() if name not in texts
    }
    file.write(library.save(numbers, metadata=texts))


def _write_parquet(file: IO[bytes], path: Path, arrays: Arrays) -> None:
    arrow = _needed("pyarrow", "pyarrow", path)
    parquet = _needed("pyarrow.parquet", "pyarrow", path)
    rows = len(next(iter(arrays.values())))
    columns = {name: value for name, value in arrays.items() if np.shape(value)[:1] == (rows,)}
    extras = {
        name: value if isinstance(value, list) else np.asarray(value).tolist()
        for name, value in arrays.items()
        if name not in columns
    }
    table = arrow.table({name: _column(arrow, value) for name, value in columns.items()})
    parquet.write_table(table.replace_schema_metadata({_EXTRAS: json.dumps(extras)}), file)


def _column(arrow: Any, values: Any) -> Any:
    """A column of texts, numbers (n,), or lists of equal length (n, ..., size)."""
    if isinstance(values, list):
        return arrow.array(values, arrow.string())
    column = arrow.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        column = arrow.FixedSizeListArray.from_arrays(column, size)
    return column


_WRITERS: dict[str, Callable[[IO[bytes], Path, Arrays], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
WRITTEN_SUFFIXES = tuple(_WRITERS)
