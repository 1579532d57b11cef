"""Finds what would make Python wait for a GPU, on a CPU.

Tensors of the model and what is computed from them stand for those on the device; all others stand
for the host's. ``torch.cuda.set_sync_debug_mode`` says the same on a GPU.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
# Operations whose outcome decides what Python does next, or how large their result is.
READING = {
    *(ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default),
    *(ATEN._unique2.default, ATEN.unique_dim.default, ATEN.unique_consecutive.default),
    *(ATEN.equal.default, ATEN.repeat_interleave.Tensor, ATEN.bincount.default),
}
INDEXING = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}
COPYING = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)
MAKING = (torch.tensor, torch.as_tensor)


class Device:
    """The storages that stand for those on the device; kept, so that no address is used twice."""

    def __init__(self, tensors: Iterable[Tensor]):
        self._storages: dict[int, Any] = {}
        self.put(tensors)

    def put(self, values: Any) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr():
                storage = tensor.untyped_storage()
                self._storages[storage.data_ptr()] = storage

    def has(self, value: Any) -> bool:
        is_tensor = isinstance(value, Tensor)
        return is_tensor and value.untyped_storage().data_ptr() in self._storages


class _Operations(TorchDispatchMode):
    def __init__(self, device: Device, found: list[str]):
        super().__init__()
        self.device, self.found = device, found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs or {}))
        there = any(self.device.has(leaf) for leaf in leaves)
        if there and func in READING:
            self.found.append(str(func))
        if func in INDEXING and self.device.has(args[0]):
            for index in args[1]:
                # As many rows as there are True; or numbers that have to be copied first.
                if index is not None and (index.dtype == torch.bool or not self.device.has(index)):
                    self.found.append(f"{func} by {index.dtype}")
        result = func(*args, **(kwargs or {}))
        if there:
            self.device.put(result)
        return result


class Waits(TorchFunctionMode):
    """Collects in ``found`` what would wait, inside a block; ``tensors`` are on the device."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.device = Device(tensors)
        self.found: list[str] = []
        self._operations = _Operations(self.device, self.found)

    def __enter__(self):
        self._operations.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._operations.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if func in COPYING and self.device.has(args[0]):
            self.found.append(name)
        on_host = func is Tensor.to and not self.device.has(args[0])
        if on_host and self._names_a_device(args, kwargs):
            if not kwargs.get("non_blocking"):
                self.found.append("to, without non_blocking")
            moved = func(*args, **kwargs).clone()  # not the same tensor: the host's stays there
            self.device.put(moved)
            return moved
        result = func(*args, **kwargs)
        if kwargs.get("device") is not None:
            if func in MAKING:
                self.found.append(f"{name} on the device")
            self.device.put(result)
        return result

    def _names_a_device(self, args, kwargs) -> bool:
        values = [*args[1:], *kwargs.values()]
        return any(isinstance(v, torch.device | str) or self.device.has(v) for v in values)
