"""Datasets, transforms, samplers, loaders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset

if TYPE_CHECKING:
    from dassl.data.data_manager import DataManager, build_data_loader
    from dassl.data.wrapper import DatasetWrapper, read_image

__all__ = [
    "DATASET_REGISTRY",
    "DataManager",
    "DatasetBase",
    "DatasetWrapper",
    "Datum",
    "build_data_loader",
    "build_dataset",
    "read_image",
]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import: loaders need it, lists of images do not.
    if name in __all__:
        return getattr(import_module("dassl.data.data_manager"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
