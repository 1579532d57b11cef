"""Reading PyTorch files from strangers: returns tensors and plain containers, runs nothing.

``torch.load(weights_only=True)`` is not enough here. It refuses Dassl's checkpoints, which hold a
live scheduler and through it an optimiser. It does not read TorchScript archives, the form of
OpenAI's weights, and ``torch.jit.load`` runs the code in them. It compares no checksum, and before
torch 2.10 it trusts a file about the size of its tensors and reads past the end of the memory.

This reader takes the zip container (PyTorch 1.6 and later) apart with Python's own modules: every
member is read once and checked against its checksum, and the pickle in it can only build tensors
and plain containers. Any other class or function that it names becomes an inert stand-in; nothing
is imported because a file says so.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Inert", "read_restricted"]

MOST_EXPANSION = 10  # PyTorch stores without compression; a file packed anew shrinks somewhat
MOST_REPEATED = 2**24  # elements of a tensor that repeats those in the file, as ``expand`` does
MOST_MODULES = 10_000  # of a TorchScript archive; more are a module that contains itself

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
    """Stands in for an object of a foreign class; accepts everything, does nothing.

    Attributes:
        state: The state that the file gives the object, usually its attributes by name.
    """

    state: Any = None

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Ignore the constructor's arguments."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Ignore the constructor's arguments."""

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        """Return another stand-in."""
        return Inert()

    def __setstate__(self, state: object) -> None:
        """Keep the pickled state, as data."""
        self.state = state

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
    """Replaces a storage class in the file; keeps only its element type."""

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
    # A stride of 0 repeats one number: a file of some bytes could ask for terabytes.
    if math.prod(size) > max(storage.numel(), MOST_REPEATED):
        raise ValueError(f"a tensor of {math.prod(size):,} elements has {storage.numel():,} stored")
    return storage.as_strided(tuple(size), tuple(stride), offset)  # checks the storage's bounds


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


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")  # how protocol 2 writes bytes; other codecs are never needed


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    ("torch._utils", "_rebuild_parameter"): lambda data, *ignored: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *ignored: data,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda build, kind, args, *ignored: build(*args),
    ("torch", "Size"): lambda size=(): tuple(size),
    ("collections", "defaultdict"): lambda *factory: {},
    ("collections", "Counter"): lambda counts=(): dict(counts),
    ("builtins", "set"): lambda items=(): set(items),
    ("__builtin__", "set"): lambda items=(): set(items),
    ("_codecs", "encode"): _encode,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers; everything else becomes `Inert`."""

    def __init__(self, data: bytes, load_storage: Callable[[torch.dtype, str], Tensor]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
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
        return dtype if isinstance(dtype, torch.dtype) else Inert

    def persistent_load(self, saved_id: Any) -> Any:
        """Return the storage of an id ("storage", type, member, device, elements)."""
        kind, of, key = saved_id[:3]
        if kind != "storage" or not isinstance(of, _StorageType):
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        return self._load_storage(of.dtype, str(key))


def _unpickle(data: bytes, load_storage: Callable[[torch.dtype, str], Tensor]) -> Any:
    for opcode, argument, _ in pickletools.genops(data):
        # The unpickler allocates memory for as many objects as the number says.
        number = int(argument or 0) if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") else 0
        if number > len(data):
            raise pickle.UnpicklingError(f"it numbers an object {number:,}")
    return _RestrictedUnpickler(data, load_storage).load()


def _members(
    archive: zipfile.ZipFile, size: int, left_out: Mapping[str, int]
) -> dict[str, bytearray]:
    """Return an archive's members by name; ``size`` is that of the file in bytes."""
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    # A zip bomb: some kilobytes that unpack to gigabytes.
    if unpacked > MOST_EXPANSION * size + 2**20:
        raise ValueError(
            f"it has {size:,} bytes and would unpack to {unpacked:,}, more than "
            f"{MOST_EXPANSION} times as much"
        )
    members: dict[str, bytearray] = {}
    for entry in entries:
        # Of two members with one name, other programs may read the other one.
        if entry.filename in members:
            raise ValueError(f"it holds {entry.filename!r} twice")
        if entry.filename in left_out:
            continue
        with archive.open(entry) as file:  # no more is unpacked than what the entry announces
            members[entry.filename] = bytearray(file.read(entry.file_size))
    return members


def _unpack(members: Mapping[str, bytearray], left_out: Mapping[str, int]) -> Any:
    """Rebuild what was saved from the members of a PyTorch file or TorchScript archive.

    Tensors whose numbers were left out, of which only the size in bytes is known, have no content.
    """
    roots = [name.split("/")[0] for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError(f"the archive has {len(roots) or 'no'} data.pkl")
    root = roots[0]
    order = members.get(f"{root}/byteorder", bytearray(sys.byteorder, "ascii")).decode("ascii")
    if order.strip() != sys.byteorder:
        raise ValueError(f"its numbers are {order.strip()}-endian, this machine's are not")

    def load_storage(dtype: torch.dtype, key: str) -> Tensor:
        name = f"{root}/data/{key}"
        if name in left_out:
            return torch.empty(left_out[name] // dtype.itemsize, dtype=dtype, device="meta")
        data = members.get(name)
        if data is None:
            raise ValueError(f"its member data/{key} is missing")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    content = _unpickle(bytes(members[f"{root}/data.pkl"]), load_storage)
    if f"{root}/constants.pkl" not in members:
        return content
    return _torchscript_state(content)


def _torchscript_state(root: Any) -> dict[str, Tensor]:
    """Return the tensors in a TorchScript module, by the names of its ``state_dict``."""
    state: dict[str, Tensor] = {}
    waiting = [("", root)]
    for prefix, module in waiting:  # the list grows meanwhile
        if not isinstance(module.state, dict):
            raise ValueError("a module of the TorchScript archive restores itself by code, not run")
        for name, value in module.state.items():
            if isinstance(value, Tensor):
                state[f"{prefix}{name}"] = value
            elif isinstance(value, Inert):
                waiting.append((f"{prefix}{name}.", value))
        if len(waiting) > MOST_MODULES:
            raise ValueError(f"the TorchScript archive has more than {MOST_MODULES:,} modules")
    return state


def read_restricted(path: str | os.PathLike[str], *, shapes_only: bool = False) -> Any:
    """Read a PyTorch file or the weights in a TorchScript archive, tensors on the CPU.

    Args:
        path: The file.
        shapes_only: Read no numbers; tensors are on the meta device.

    Returns:
        What was saved, with `Inert` stand-ins for every object that is no tensor or container; of a
            TorchScript archive, its parameters and buffers by name.

    Raises:
        ValueError: Not a PyTorch file, cut off, damaged, or written by PyTorch before 1.6.
    """
    with open(path, "rb") as file:
        start, size = file.read(16), os.fstat(file.fileno()).st_size
        if start.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"):
            raise ValueError(
                "it is in the format of PyTorch before 1.6, which has no checksums and is not "
                'read. If you trust its origin, convert it: python -c "import torch; '
                f"torch.save(torch.load({str(path)!r}, map_location='cpu'), 'NEW FILE')\""
            )
        if not start.startswith(b"PK\x03\x04"):
            raise ValueError("it does not begin as a file of torch.save does")
        with zipfile.ZipFile(file) as archive:
            numbers = (e for e in archive.infolist() if "/data/" in e.filename and shapes_only)
            left_out = {entry.filename: entry.file_size for entry in numbers}
            members = _members(archive, size, left_out)
    return _unpack(members, left_out)
