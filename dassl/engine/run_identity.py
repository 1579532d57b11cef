"""What a run is made from, and what other runs have left where it is to write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl.config import to_plain
from dassl.config.identity import (
    FILE_MARK,
    IDENTITY_NAME,
    config_changes,
    digest_of,
    file_hash,
    files_named,
    folders_named,
    identity_changes,
    relevant,
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
from dassl.engine.base import TrainerBase
from dassl.engine.checkpoint import replaced_backbone
from dassl.utils.files import write_json

__all__ = ["RunIdentity", "recipe_changes", "recipe_of"]

_FORMAT = 1


class RunIdentity(TrainerBase):
    """Notes what the run reads while it is built, and compares that with what others recorded.

    Attributes:
        loaded_from: Directory and epoch that `load_model` was last called with outside of training.
    """

    cfg: CfgNode
    dm: Any
    output_dir: str

    def __init__(self) -> None:
        """Start without anything read."""
        super().__init__()
        self._read = Recording()
        self._weights = Recording()
        self.loaded_from: tuple[str, int | None] = ("", None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Note the files that are read inside a block as the run's; hash them at its end."""
        with recording(self._read):
            yield
        self.inputs  # noqa: B018 - as they are now: a file may be edited while the run goes on

    @contextmanager
    def reading_weights(self) -> Iterator[None]:
        """Note the checkpoints that are read inside a block: what the run starts from, or tests."""
        with recording(into := Recording()):
            yield
        self._weights.files |= {path for path in into.files if ".pth.tar" in Path(path).name}

    @property
    def places(self) -> dict[str, str]:
        """Folders by the key that names them, for `dassl.config.inputs`."""
        cfg, plain = self.cfg, to_plain(self.cfg)
        named: dict[str, str] = dict(folders_named(plain, (os.getcwd(), REPOSITORY)))
        named[DATA] = cfg.DATASET.ROOT or os.getcwd()
        named[START] = cfg.get("FIRST_STAGE", {}).get("DIR", "")
        named[WEIGHTS] = self.loaded_from[0]
        return places_of(named)

    @cached_property
    def named_files(self) -> dict[str, str]:
        """Hashes of the files that the config names, by key."""
        root = self.cfg.DATASET.ROOT or os.getcwd()
        folders = [
            os.getcwd(),
            REPOSITORY,
            root,
            getattr(self.dm.dataset, "dataset_dir", "") or root,
        ]
        found = files_named(to_plain(self.cfg), folders)
        self._read.files.update(found.values())
        return {key: file_hash(path) for key, path in found.items()}

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What was read while the run was built, see `dassl.config.inputs.record_inputs`."""
        self.named_files  # noqa: B018 - some are read later, or by other means than Python's
        backbone = self.places.get("MODEL.BACKBONE.NAME")
        if backbone:
            self._read.files.update(str(path) for path in Path(backbone).iterdir())
        return record_inputs(self._read, self.places)

    @cached_property
    def images(self) -> dict[str, Any]:
        """The images of the run, see `dassl.config.inputs.image_record`."""
        contents = bool(self.cfg.DATASET.HASH_IMAGES)
        paths = {*self._image_paths(), *listed_images(self._read)}
        return image_record(sorted(paths), self.places, contents)

    def _image_paths(self) -> list[str]:
        names = ("train_x", "train_u", "val", "test")
        parts = (getattr(self.dm.dataset, name, None) for name in names)
        return [item.impath for part in parts for item in part or ()]

    @cached_property
    def compared_config(self) -> dict[str, Any]:
        """What can change a result, by key, with the hash of a file in place of its path."""
        config = relevant(to_plain(self.cfg))
        folders = folders_named(config, (os.getcwd(), REPOSITORY))
        marks = {key: FILE_MARK + digest for key, digest in self.named_files.items()}
        return {key: marks.get(key, config[key]) for key in config if key not in folders}

    @cached_property
    def split(self) -> dict[str, Any]:
        """Images, labels and names, see `dassl.config.identity.split_record`."""
        return split_record(self.dm.dataset, self.cfg.DATASET.ROOT or os.getcwd())

    def identity(self) -> dict[str, Any]:
        """Return everything that the result depends on, as plain data.

        Returns:
            ``config`` by full key; ``precision``; ``split``; ``inputs``, the files and images that
            were read.
        """
        weights = record_inputs(self._weights, self.places)["files"]
        inputs = {**self.inputs, **self.images, "places": self.places}
        inputs["files"] = {**inputs["files"], **weights}
        return {
            "format": _FORMAT,
            "config": self.compared_config,
            "precision": self.stated_precision(),
            "split": self.split,
            "inputs": inputs,
        }

    def stated_precision(self) -> str:
        """What the run computes in, as far as it is known."""
        raise NotImplementedError

    def changes_since(self, old: Mapping[str, Any]) -> list[str]:
        """Say in what this run differs from a recorded identity.

        Args:
            old: From `identity`, of an earlier run.
        """
        lines = identity_changes(old, self.identity())
        return lines + InputCheck().changes(old.get("inputs", {}), self.places)

    def write_identity(self) -> str:
        """Write the identity beside the result, and return its digest."""
        content = self.identity()
        write_json(content, Path(self.output_dir) / IDENTITY_NAME)
        return digest_of(content)


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what weights depend on, of a run's config: how the model is made and trained.

    The data, the shots and the precision may be others when the weights are evaluated.

    Args:
        config: By full key, as in `RunIdentity.identity`.
    """
    return {
        key: value
        for key, value in config.items()
        if key.startswith(("TRAINER.", "OPTIM.", "MODEL."))
        and key not in ("TRAINER.NAME", "MODEL.BACKBONE.NAME")
        and not key.endswith(".PREC")
    }


def recipe_changes(trained: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Say in what the making of weights differs from the current run's.

    Args:
        trained: What a checkpoint says about its run: ``recipe`` from `recipe_of`, and
            ``backbone_sha256``; what it does not say cannot differ.
        own: The same of now.
    """
    saved, now = trained.get("recipe") or {}, own["recipe"]
    common = saved.keys() & now.keys()
    lines = config_changes({k: saved[k] for k in common}, {k: now[k] for k in common})
    replaced = replaced_backbone(trained, own)
    return [replaced, *lines] if replaced else lines
