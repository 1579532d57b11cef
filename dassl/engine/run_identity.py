"""What a run is made from: config, data, files that were read. Runs are compared by it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from dassl.config import config_hash, to_plain
from dassl.config.identity import (
    FILE_MARK,
    config_changes,
    file_hash,
    files_named,
    folders_named,
    identity_changes,
    relevant,
    shown,
    split_record,
)
from dassl.config.inputs import (
    DATA,
    START,
    WEIGHTS,
    InputCheck,
    Recording,
    image_record,
    listed_images,
    places_of,
    record_inputs,
    recording,
)
from dassl.config.paths import REPOSITORY
from dassl.engine.checkpoint import replaced_backbone
from dassl.utils.adapter_file import ADAPTER_NAME

__all__ = ["RunIdentity", "check_recipe"]

_FORMAT = 1


class RunIdentity:
    """Everything that a run's result depends on, to compare with what other runs recorded.

    Args:
        cfg: Configuration.
        dm: Data manager.
        read: Files that are read while the run is built; more may come until `seal`.
        seed: The run's seed.
        device: Device of the run.

    Attributes:
        precision: What the run computes in, once that is known.
        loaded_from: Directory and epoch of the last ``load_model`` outside of training.
    """

    def __init__(
        self, cfg: CfgNode, dm: Any, read: Recording, seed: int, device: torch.device
    ) -> None:
        self.cfg = cfg
        self.dm = dm
        self.seed = seed
        self.device = device
        self.precision = ""
        self.loaded_from: tuple[str, int | None] = ("", None)
        self._read = read
        self._weights = Recording()
        self._root = cfg.DATASET.ROOT or os.getcwd()

    def seal(self, precision: str) -> None:
        """Hash now what was read: a file may be edited while the run is training."""
        self.precision = precision
        self.inputs  # noqa: B018 - computed and kept

    @contextmanager
    def reading_weights(self) -> Iterator[None]:
        """Note the checkpoints read inside a block: what the run starts from, or tests."""
        with recording(into := Recording()):
            yield
        # Other files are opened meanwhile too, such as Python's own.
        self._weights.files |= {
            path
            for path in into.files
            if ".pth.tar" in Path(path).name or Path(path).name == ADAPTER_NAME
        }

    @property
    def places(self) -> dict[str, str]:
        """Folders by the key that names them, for `dassl.config.inputs`."""
        named: dict[str, str] = dict(folders_named(to_plain(self.cfg), (os.getcwd(), REPOSITORY)))
        named[DATA] = self._root
        named[START] = self.cfg.get("FIRST_STAGE", {}).get("DIR", "")
        named[WEIGHTS] = self.loaded_from[0]
        return places_of(named)

    @cached_property
    def named_files(self) -> dict[str, str]:
        """Hashes of the files that the config names, by key."""
        dataset_dir = getattr(self.dm.dataset, "dataset_dir", "") or self._root
        folders = [os.getcwd(), REPOSITORY, self._root, dataset_dir]
        found = files_named(to_plain(self.cfg), folders)
        self._read.files.update(found.values())
        return {key: file_hash(path) for key, path in found.items()}

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What was read while the run was built, see `dassl.config.inputs.record_inputs`."""
        self.named_files  # noqa: B018 - adds files that are read later, or not by Python
        # Compiled code may read a backbone's folder, which `recording` does not hear.
        backbone = self.places.get("MODEL.BACKBONE.NAME")
        if backbone:
            self._read.files.update(str(path) for path in Path(backbone).iterdir())
        return record_inputs(self._read, self.places)

    @cached_property
    def images(self) -> dict[str, Any]:
        """The images of the run, see `dassl.config.inputs.image_record`."""
        names = ("train_x", "train_u", "val", "test")
        splits = (getattr(self.dm.dataset, name, None) for name in names)
        # Rows of features lie in one file, and a million of them would make a record of a million.
        paths = {getattr(item, "file", item.impath) for split in splits for item in split or ()}
        paths.update(listed_images(self._read))
        return image_record(sorted(paths), self.places, bool(self.cfg.DATASET.HASH_IMAGES))

    @cached_property
    def compared_config(self) -> dict[str, Any]:
        """What can change a result, by key; a file's path is replaced by its hash."""
        config = relevant(to_plain(self.cfg))
        # Where a folder lies does not matter; the files read from it are among the inputs.
        folders = folders_named(config, (os.getcwd(), REPOSITORY))
        marks = {key: FILE_MARK + digest for key, digest in self.named_files.items()}
        return {key: marks.get(key, config[key]) for key in config if key not in folders}

    @cached_property
    def split(self) -> dict[str, Any]:
        """Images, labels and names, see `dassl.config.identity.split_record`."""
        return split_record(self.dm.dataset, self._root)

    def content(self) -> dict[str, Any]:
        """Return everything as plain data; ``inputs`` are the files and images that were read."""
        places = self.places
        weights = record_inputs(self._weights, places)["files"]
        inputs = {**self.inputs, **self.images, "places": places}
        inputs["files"] = {**inputs["files"], **weights}
        return {
            "format": _FORMAT,
            "config": self.compared_config,
            "precision": self.precision,
            "split": self.split,
            "inputs": inputs,
        }

    def changes_since(self, old: Mapping[str, Any]) -> list[str]:
        """Say how this run differs from an earlier run with this `content`."""
        lines = identity_changes(old, self.content())
        return lines + InputCheck().changes(old.get("inputs", {}), self.places)

    def checkpoint_meta(self) -> dict[str, Any]:
        """Return what a checkpoint says about its run."""
        cfg = self.cfg
        return {
            "method": cfg.TRAINER.NAME,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "config_hash": config_hash(cfg),
            "dataset": cfg.DATASET.NAME,
            "recipe": _recipe_of(self.compared_config),
            "classnames": list(self.dm.lab2cname.values()),
            "num_classes": int(self.dm.num_classes),
            "config": to_plain(cfg),
        }


def _recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that weights depend on: how the model is made and trained.

    Data, shots and precision may differ when the weights are evaluated.
    """
    return {
        key: value
        for key, value in config.items()
        if key.startswith(("TRAINER.", "OPTIM.", "MODEL."))
        and key not in ("TRAINER.NAME", "MODEL.BACKBONE.NAME")
        and not key.endswith(".PREC")
    }


def _recipe_changes(trained: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Say how two checkpoint metas' recipes differ; only keys that both have are compared."""
    saved, now = trained.get("recipe") or {}, own["recipe"]
    common = saved.keys() & now.keys()
    lines = config_changes({k: saved[k] for k in common}, {k: now[k] for k in common})
    replaced = replaced_backbone(trained, own)
    return [replaced, *lines] if replaced else lines


def check_recipe(
    path: Path, meta: Mapping[str, Any], own: Mapping[str, Any], any_config: bool, notes: Any
) -> None:
    """Refuse weights of another recipe than the config's, or of another backbone's content.

    On another dataset than that of the training, a method file's PER_DATASET section may change the
    method's options: such changes are noted, and those of OPTIM are ignored. The number of epochs
    never counts.

    Args:
        path: The checkpoint.
        meta: What it says about its run; empty if nothing.
        own: The same of the current run.
        any_config: Note the difference instead of refusing.
        notes: The run's.

    Raises:
        ValueError: They differ, and ``any_config`` is not set.
    """
    harmless = ["OPTIM.MAX_EPOCH"]  # the log tells which epoch is loaded
    if meta.get("dataset") != own["dataset"]:
        harmless += ["TRAINER.", "OPTIM."]
    changes = _recipe_changes(meta, own)
    grave = [line for line in changes if not line.startswith(tuple(harmless))]
    if grave and not any_config:
        raise ValueError(
            f'"{path}" was trained otherwise than the config says: {shown(grave)}. Give the '
            "options of its run, or another --model-dir; --any-config loads it all the same"
        )
    noted = changes if grave else [n for n in changes if not n.startswith("OPTIM.")]
    if noted:
        notes.add(f"weights that were trained with other options: {shown(noted)}")
