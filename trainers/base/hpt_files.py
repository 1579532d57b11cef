"""HPT's JSON files: sentences about the classes, and their structures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from clip.adapters.hpt_structures import Structure, read_structures
from clip.prompts import find_description, match_key, read_descriptions
from dassl.config.paths import resolve
from datasets.rows import texts_of
from trainers.base import CLIPTrainer


def class_descriptions(trainer: CLIPTrainer) -> list[list[str]]:
    """N_SET sentences of each class, from the file or else the dataset's own prompts."""
    found = _of_classes(trainer, "DESCRIPTIONS", read_descriptions)
    if found is not None:
        return found
    print("HPT: no descriptions of its own (TRAINER.HPT.DESCRIPTIONS)")
    return [_chosen(texts, trainer.options.N_SET) for texts in trainer.prompts()]


def class_structures(trainer: CLIPTrainer) -> list[list[Structure]] | None:
    """N_SET structures of each class; None if there is no file for the dataset."""
    found = _of_classes(trainer, "STRUCTURES", read_structures)
    if found is None:
        print("HPT: no structures (TRAINER.HPT.STRUCTURES); texts are names and descriptions")
    return found


def _of_classes(
    trainer: CLIPTrainer, key: str, read: Callable[[Path], Mapping[str, list[Any]]]
) -> list[list[Any]] | None:
    path = _file(trainer, key)
    if path is None:
        return None
    print(f"HPT: {key.lower()} of {path}")
    content, names = read(path), trainer.dm.dataset.classnames
    found = [find_description(content, name) for name in names]
    missing = [match_key(n) for n, ones in zip(names, found, strict=True) if not ones]
    if missing:
        raise ValueError(
            f"{path} has nothing for {len(missing)} of {len(names)} classes, such as "
            f"{missing[:5]}. Add them, or set TRAINER.HPT.DESCRIPTIONS and "
            "TRAINER.HPT.STRUCTURES to '' to use the dataset's own prompts"
        )
    return [_chosen(ones, trainer.options.N_SET) for ones in found]


def _file(trainer: CLIPTrainer, key: str) -> Path | None:
    named = trainer.options[key]
    path = resolve(named.replace("{}", texts_of(trainer.cfg.DATASET.NAME)))
    if path.is_file():
        return path
    # A file per dataset need not exist for each of them; one that was named by the user must.
    if named and "{}" not in named:
        raise FileNotFoundError(f"TRAINER.HPT.{key}: no file {path}; '' does without it")
    return None


def _chosen(ones: Sequence[Any], count: int) -> list[Any]:
    return list(islice(cycle(ones), count))
