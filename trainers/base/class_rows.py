"""Match what was trained with a row per class to the run's classes: by name, not by position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from clip.adapters.coop import ContextPrompts
from clip.prompts import match_key
from dassl.engine.checkpoint import last_checkpoint, saved_classes
from dassl.engine.record import Notes
from dassl.utils import load_checkpoint


def class_rows(
    classes: Sequence[Any],
    trained: Sequence[Any],
    keys: Sequence[Callable[[Any], Any]] = (str, match_key),
) -> list[int | None]:
    """Number of each class's row among the ``trained`` names; None for a class not trained.

    Classes of one name, of which ImageNet has two pairs, have their rows in the order in which they
    occur; a name that was trained less often has the first one's row. ``keys`` are what makes two
    names the same, the strictest first.
    """
    rows: list[int | None] = [None] * len(classes)
    free = dict.fromkeys(range(len(trained)))  # in order, unlike a set
    for key in keys:
        places: dict[Any, list[int]] = defaultdict(list)
        for row in free:
            places[key(trained[row])].append(row)
        for k, name in enumerate(classes):
            if rows[k] is None and places[key(name)]:
                row = rows[k] = places[key(name)].pop(0)
                del free[row]
    loose = keys[-1]
    first = {loose(name): row for row, name in reversed(list(enumerate(trained)))}
    return [
        first.get(loose(name)) if row is None else row
        for row, name in zip(rows, classes, strict=True)
    ]


def dataset_rows(dataset: Any, trained: Sequence[str]) -> list[int | None]:
    """:func:`class_rows` of a dataset's classes; by label where both are ImageNet's."""
    labels = imagenet_rows(dataset)
    if labels and _keys(dataset.imagenet_names) == _keys(trained):
        return [*labels]
    return class_rows(dataset.classnames, trained)


def imagenet_rows(dataset: Any) -> list[int]:
    """ImageNet's label of each class of a dataset; empty where a class is none or several."""
    labels = getattr(dataset, "imagenet_labels", None) or []
    return [row[0] for row in labels] if all(len(row) == 1 for row in labels) else []


def _keys(names: Sequence[str]) -> list[str]:
    return [match_key(name) for name in names]


def contexts_in(model: nn.Module) -> dict[str, ContextPrompts]:
    """The learned contexts in a model, by the names of their parameters."""
    return {
        f"{name}.vectors": module
        for name, module in model.named_modules()
        if isinstance(module, ContextPrompts)
    }


@dataclass(frozen=True)
class ClassRows:
    """What a run's model learns with a row per class, and which class each row is of."""

    model: nn.Module
    dataset: Any
    cfg: CfgNode  # the ``DATASET`` section
    notes: Notes
    keys: Sequence[str]  # names of the parameters with a row per class
    classes: Sequence[str]  # of these rows, in their order
    # For messages: how to train a model that is not bound to the classes of training.
    remedy: str = "with TRAINER.CoOp.CSC False, one context for all classes"

    def match(
        self, path: Path, state_dict: dict[str, Tensor], classnames: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """Pick the rows of the run's classes, in their order, by name.

        ``classnames`` are the checkpoint's classes in label order; None if it does not name them. A
        ValueError refuses classes that were not trained, and rows without names that must be of
        other classes.
        """
        self._check_contexts(path, state_dict)
        own = list(self.classes)
        keys = [key for key in self.keys if key in state_dict]
        if classnames is None:
            return self._unnamed(path, state_dict, keys)
        keys = [key for key in keys if len(state_dict[key]) == len(classnames)]
        if not keys or list(classnames) == own:
            return state_dict
        rows = dataset_rows(self.dataset, classnames)
        absent = [name for name, row in zip(own, rows, strict=True) if row is None]
        if absent:
            raise ValueError(
                f'"{path}" has weights for each class ({keys[0]}), and {len(absent)} of the '
                f"{len(own)} classes of {self.cfg.NAME} are none of the {len(classnames)} "
                f"that were trained: {', '.join(map(repr, absent[:5]))}"
                f"{' ...' if len(absent) > 5 else ''}. Choose classes that are among them "
                "(--dataset-config-file, DATASET.SUBSAMPLE_CLASSES, --classnames), or train "
                f"{self.remedy}"
            )
        return {**state_dict, **{key: state_dict[key][rows] for key in keys}}  # (K, ...) each

    def _check_contexts(self, path: Path, state_dict: dict[str, Tensor]) -> None:
        """Refuse one context for all classes where each has its own, and the other way round."""
        for name, module in contexts_in(self.model).items():
            found = state_dict.get(name)
            if found is not None and (len(found) > 1) != module.per_class:
                has = f"{len(found)} contexts, one per class" if len(found) > 1 else "one context"
                raise ValueError(
                    f'"{path}" has {has}, unlike this run: set TRAINER.CoOp.CSC {len(found) > 1}'
                )

    def _unnamed(
        self, path: Path, state_dict: dict[str, Tensor], keys: Sequence[str]
    ) -> dict[str, Tensor]:
        """Rows in the order of the labels, with a note; a released file names no classes."""
        keys = [key for key in keys if len(state_dict[key]) == len(self.classes)]
        if not keys:  # nothing per class, or its shape is what is wrong
            return state_dict
        if self.cfg.SUBSAMPLE_CLASSES == "new":
            raise ValueError(
                f'"{path}" has weights for each class ({keys[0]}) and does not name the classes, '
                "but new classes (DATASET.SUBSAMPLE_CLASSES) are never those that were trained; "
                "test it on the classes it was trained on"
            )
        self.notes.add(f'"{path}" does not name its classes: {keys[0]} is taken in label order')
        return state_dict

    def match_initial_weights(self, path: str) -> None:
        """Put the rows in MODEL.INIT_WEIGHTS where their names belong; errors as `match`.

        Until here they were loaded by position if there are as many classes, and else left out.
        """
        if not path or not self.keys:
            return
        content = load_checkpoint(path)
        state = content.get("state_dict", content)
        own = self.model.state_dict()
        keys = [key for key in self.keys if key in state]
        loaded = {key: state[key] for key in keys if state[key].shape == own[key].shape}
        if loaded:
            matched = self.match(Path(path), loaded, saved_classes(content))
            self.model.load_state_dict(matched, strict=False)

    def check_resumed(self, folder: Path) -> None:
        """Refuse to resume rows per class of other classes, or of another order of them."""
        file = last_checkpoint(folder) if self.keys else None
        names = saved_classes(load_checkpoint(file)) if file is not None else None
        if names is not None and names != list(self.classes):
            raise ValueError(
                f'"{file}" (--resume) has weights for each class ({self.keys[0]}) and '
                f"was trained on {len(names)} classes, {', '.join(names[:3])} ..., this run "
                f"has {len(self.classes)}, {', '.join(self.classes[:3])} ...; training "
                "goes on with the same classes in the same order only"
            )
