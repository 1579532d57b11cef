"""Data sets, transforms, samplers, loaders."""

from dassl.data.data_manager import DataManager, build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
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
