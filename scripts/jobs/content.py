"""What config files, options and the files that they name contribute to a job's result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dassl.config import Layer, overlay, read_layers
from dassl.config.identity import (
    CANNOT_MATTER,
    FILE_MARK,
    config_changes,
    file_hash,
    find_file,
    flatten,
    texts,
)


@dataclass
class ContentReader:
    """Reads config files, each once; paths in them are relative to ``repo`` or the data root."""

    repo: Path
    root: Path
    _layers: dict[Path, list[Layer]] = field(default_factory=dict)

    def decisive(
        self, dataset_file: Path, trainer_file: Path, options: list[str]
    ) -> dict[str, Any]:
        """Return everything in a job's files and KEY VALUE options that decides its result."""
        section = self.content(dataset_file).get("DATASET")
        section = section if isinstance(section, dict) else {}
        name = str(section.get("NAME"))
        dataset = _without_harmless(self.content(dataset_file, name))
        trainer = _without_harmless(self.content(trainer_file, name))
        # An option is compared as it is written: only `content_changes` knows that 0.10 is 0.1.
        pairs = zip(options[::2], options[1::2], strict=True)
        options = [word for pair in pairs if pair[0] not in CANNOT_MATTER for word in pair]
        # Any value may name a file; for those that do not, find_file finds none.
        places = (self.repo, self.root, self.root / str(section.get("DIR") or ""))
        named = {value: find_file(value, places) for _, value in texts([dataset, trainer, options])}
        return {
            "dataset": dataset,
            "trainer": trainer,
            "options": options,
            "files": {value: file_hash(path) for value, path in named.items() if path},
        }

    def content(self, path: Path, dataset: str = "") -> dict[str, Any]:
        """Return what a config file and its bases say together about a ``DATASET.NAME``.

        They are laid over each other as ``merge_file`` does, so that a key which moves into a
        base is no change. The file's own ``PER_DATASET`` entry is kept beside the rest.
        """
        if path not in self._layers:
            self._layers[path] = read_layers(path)
        *bases, own = self._layers[path]
        content: Any = {}
        for base in bases:
            content = overlay(content, base.content)
            content = overlay(content, base.per_dataset.get(dataset, {}))
        content = overlay(content, own.content)
        if own.per_dataset:
            content["PER_DATASET"] = own.per_dataset.get(dataset)
        return content


def content_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List how two results of `ContentReader.decisive` differ; ``before`` came from JSON."""
    old, new = before.get("files") or {}, now["files"]
    changed = [f"the file {n} changed" for n in sorted(old.keys() & new.keys()) if old[n] != new[n]]
    lines = config_changes(_flat(before), _flat(now))
    told = [line for line in lines if not (changed and line.startswith("the file that "))]
    gone = [f"the file {name} is gone" for name in sorted(old.keys() - new.keys())]
    # A file that only moved is gone under its old name, but changes no line.
    return changed + (gone if lines else []) + told


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Return config values by key; a value that names a file is replaced by the file's hash."""
    options = content.get("options") or []
    given = dict(zip(options[::2], map(_decoded, options[1::2]), strict=False))
    # Later wins, as in a run: dataset file, trainer file, options.
    flat = {**flatten(content.get("dataset")), **flatten(content.get("trainer")), **given}
    hashes = content.get("files") or {}
    named = {key: hashes[value] for key, value in flat.items() if str(value) in hashes}
    return {**flat, **{key: FILE_MARK + digest for key, digest in named.items()}}


def _decoded(word: str) -> Any:
    """Parse a command line's value as a config file would."""
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def _without_harmless(section: Any, prefix: str = "") -> Any:
    """A config file's content without the keys that cannot change a result."""
    if not isinstance(section, dict):
        return section
    return {
        name: _without_harmless(value, f"{prefix}{name}.")
        for name, value in section.items()
        if f"{prefix}{name}" not in CANNOT_MATTER
    }
