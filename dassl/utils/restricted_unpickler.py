"""Reading checkpoints that hold live objects, without ever running code from the file.

Checkpoints written by Dassl can contain a live scheduler (and through it an optimiser), which
``torch.load(weights_only=True)`` refuses as a whole. This reader rebuilds tensors and plain
containers and puts an inert stand-in wherever the file names any other class or function: nothing
is imported because a file says so, and nothing that a file can call does anything but build data.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, cast

import torch
from torch import Tensor

__all__ = ["Inert", "read_restricted"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class Inert:
    """Stands in for an object of a class that is not rebuilt; accepts everything, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Ignore the constructor's arguments."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Ignore the constructor's arguments."""

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        """Being called gives another stand-in."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        """Ignore the pickled state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore items."""

    def append(self, item: object) -> None:
        """Ignore items."""

    def extend(self, items: object) -> None:
        """Ignore items."""

    def add(self, item: object) -> None:
        """Ignore items."""


class _Builder:
    """Wraps one of our own functions so that a pickle can call it and nothing else."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return object.__getattribute__(self, "_function")(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("a checkpoint may not change functions")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a checkpoint may not change functions")


class _StorageType:
    """What a storage class in the file becomes: only its element type."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _tensor(
    storage: Tensor,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *ignored: object,
) -> Tensor:
    # a view, checked against the storage's bounds: the legacy format fills storages afterwards
    return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)


def _tensor_with_dtype(
    storage: Tensor,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: object,
    dtype: torch.dtype,
    *ignored: object,
) -> Tensor:
    return _tensor(storage.view(dtype), offset, size, stride)


def _parameter(data: Tensor, *ignored: object) -> Tensor:
    return data


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")  # how protocol 2 writes bytes; other codecs are never needed


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): lambda size=(): tuple(size),
    ("collections", "defaultdict"): lambda *factory: {},
    ("collections", "Counter"): lambda counts=(): dict(counts),
    ("builtins", "set"): lambda items=(): set(items),
    ("__builtin__", "set"): lambda items=(): set(items),
    ("_codecs", "encode"): _encode,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers; everything else becomes `Inert`."""

    def __init__(self, file: IO[bytes], load_storage: Callable[[tuple[Any, ...]], Any]) -> None:
        super().__init__(file, encoding="latin1")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        """Map a name in the file to one of our builders; nothing is ever imported."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in _BUILDERS:
            return _Builder(_BUILDERS[module, name])
        if name in _STORAGE_DTYPES and module in ("torch", "torch.cuda", "torch.storage"):
            return _StorageType(_STORAGE_DTYPES[name])
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return type("Inert", (Inert,), {"__doc__": f"Stand-in for {module}.{name}."})

    def persistent_load(self, saved_id: Any) -> Any:
        """Hand storages to the container format's reader."""
        kind = saved_id[0]
        kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
        if kind == "module":  # legacy format: (kind, class, source file, source)
            return saved_id[1]
        if kind != "storage" or not isinstance(saved_id[1], _StorageType):
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        return self._load_storage(saved_id[1:])


def _from_bytes(data: bytes, dtype: torch.dtype, swap: bool = False) -> Tensor:
    """Build a 1-D tensor that owns a copy of raw bytes."""
    if not data:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if swap:
        raw = raw.view(-1, dtype.itemsize).flip(1).reshape(-1)
    return raw.view(dtype)


def _read_zip(file: IO[bytes]) -> Any:
    """Read the zip container (PyTorch 1.6 and later)."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("the archive has no data.pkl")
        prefix = pickles[0].split("/")[0]
        order = sys.byteorder
        if f"{prefix}/byteorder" in names:
            order = cast(Any, archive.read(f"{prefix}/byteorder").decode("ascii").strip())
        storages: dict[str, Tensor] = {}

        def load_storage(saved: tuple[Any, ...]) -> Tensor:
            kind, key = saved[0], str(saved[1])
            if key not in storages:
                data = archive.read(f"{prefix}/data/{key}")
                storages[key] = _from_bytes(data, kind.dtype, order != sys.byteorder)
            return storages[key]

        pickled = io.BytesIO(archive.read(pickles[0]))
        return _RestrictedUnpickler(pickled, load_storage).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """Read the container of PyTorch before 1.6: five pickles, then the raw storages."""
    storages: dict[str, Tensor] = {}

    def load_storage(saved: tuple[Any, ...]) -> Tensor:
        kind, key, numel, view = saved[0], str(saved[1]), int(saved[3]), saved[4:]
        if key not in storages:
            if not 0 <= numel <= size // kind.dtype.itemsize:
                raise ValueError(f"storage {key} claims {numel} elements, more than the file has")
            storages[key] = torch.empty(numel, dtype=kind.dtype)
        if view and view[0] is not None:
            _, offset, length = view[0]
            return storages[key][offset : offset + length]
        return storages[key]

    size = os.fstat(file.fileno()).st_size
    if _RestrictedUnpickler(file, load_storage).load() != _LEGACY_MAGIC:
        raise ValueError("not a PyTorch file")
    _RestrictedUnpickler(file, load_storage).load()  # protocol version
    system = _RestrictedUnpickler(file, load_storage).load()
    if not system.get("little_endian", True):
        raise ValueError("big-endian files of PyTorch before 1.6 are not supported")
    result = _RestrictedUnpickler(file, load_storage).load()
    keys = _RestrictedUnpickler(file, load_storage).load()
    for key in keys:
        target = storages[str(key)]
        (numel,) = struct.unpack("<q", file.read(8))
        data = file.read(numel * target.element_size())
        if numel != target.numel() or len(data) != numel * target.element_size():
            raise ValueError(f"storage {key} is cut off or has another size than announced")
        target.copy_(_from_bytes(data, target.dtype))
    return result


def read_restricted(path: str | os.PathLike[str]) -> Any:
    """Read a PyTorch file of either format, tensors on the CPU.

    Args:
        path: Path of the file.

    Returns:
        What was saved, with `Inert` stand-ins for every object that is no tensor or container.

    Raises:
        ValueError: Not a PyTorch file, cut off, or damaged.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        return _read_zip(file) if is_zip else _read_legacy(file)
