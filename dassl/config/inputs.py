"""The files that a run was made from: recorded while they are read, compared again later.

While dataset and model are built, `recording` notes which files are opened and which folders are
listed. It hears of them from Python itself, so users' own datasets and methods need no extra code.
The hashes that are kept let anybody find out later, without PyTorch, whether the run would read the
same.

Folders move, so a path is kept relative to a named place, as ``DATASET.ROOT/pets/split.json`` or
``repository/prompts/Shapes.json``, and looked up wherever that place is now.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.config.identity import digest_of, file_hash
from dassl.config.paths import REPOSITORY

__all__ = [
    "DATA",
    "START",
    "WEIGHTS",
    "InputCheck",
    "Recording",
    "image_record",
    "listed_images",
    "place_of",
    "places_of",
    "record_inputs",
    "recording",
]

DATA, START, WEIGHTS = "DATASET.ROOT", "FIRST_STAGE.DIR", "--model-dir"  # places by their names
_CODE = (".py", ".pyc", ".so", ".pyd", ".dll")
# What a run writes itself, or is told apart by otherwise.
_OWN = ("result.json", "job.json", "job.log", "log.txt", "identity.json", "token_statistics.pt")
_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/bin")
_IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SOON_READ = 1 << 28  # bytes of images; a second or less
_MANY = 200  # images of a folder whose names are not kept if they are all that it has
_FEW = 20_000  # images whose listed folders are looked at as a whole
_active: list[Recording] = []
_hooked: list[bool] = []


@dataclass
class Recording:
    """What was read inside a block, as absolute paths.

    Attributes:
        files: Files that were opened for reading.
        folders: Folders that were listed.
    """

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)


@contextmanager
def recording(into: Recording | None) -> Iterator[None]:
    """Record every file that Python opens for reading inside a block, and every folder it lists.

    With None, the block is left out of the recordings around it.
    """
    if not _hooked:
        # Added once: an audit hook cannot be removed. Outside of recordings it does nothing.
        sys.addaudithook(_hear)
        _hooked.append(True)
    outer = list(_active)
    _active[:] = [*outer, into] if into is not None else []
    try:
        yield
    finally:
        _active[:] = outer


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active or event not in ("open", "os.scandir", "os.listdir"):
        return
    path = arguments[0]
    if not isinstance(path, str | os.PathLike):
        return
    place = os.path.abspath(os.fspath(path))
    if not isinstance(place, str):
        return
    if event != "open":
        for one in _active:
            one.folders.add(place)
        return
    # `open` gives a mode such as "rb", `os.open` only flags.
    _, mode, flags = arguments
    reads = "r" in mode if isinstance(mode, str) else flags & os.O_ACCMODE == os.O_RDONLY
    if reads:
        for one in _active:
            one.files.add(place)


def places_of(named: Mapping[str, str | os.PathLike[str]]) -> dict[str, str]:
    """Return the folders that paths are kept relative to, by name.

    ``named`` has folders by the config key or flag that names them, such as DATASET.ROOT; the
    repository and the user's home are added.
    """
    places = {**named, "repository": REPOSITORY, "~": Path.home()}
    return {name: _absolute(place) for name, place in places.items() if os.fspath(place)}


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def place_of(path: str | os.PathLike[str], places: Mapping[str, str]) -> str:
    """Return an absolute path relative to the innermost place that holds it, else the path."""
    text = os.fspath(path)
    # Places lie inside each other, such as the dataset in the repository: the longest one wins.
    holding = [(p, n) for n, p in places.items() if text == p or text.startswith(f"{p}{os.sep}")]
    if not holding:
        return text
    longest = max(len(place) for place, _ in holding)
    place, name = next(pair for pair in holding if len(pair[0]) == longest)
    return "/".join([name, *Path(os.path.relpath(text, place)).parts])


def _found(at: str, places: Mapping[str, str]) -> str | None:
    """Return where a kept path is now; None if its place is not on this machine."""
    if os.path.isabs(at):
        return at
    name, _, rest = at.partition("/")
    place = places.get(name)
    return os.path.join(place, rest) if place and os.path.isdir(place) else None


def record_inputs(read: Recording, places: Mapping[str, str]) -> dict[str, Any]:
    """Hash what was read: files by content, listed folders of the data by the names in them.

    Images are left to `image_record`; code and Python's own files are ignored.

    Returns:
        ``{"files": {path: hash}, "folders": {path: hash}}``, paths relative to ``places``.
    """
    data = f"{places[DATA]}{os.sep}"
    own = (data, f"{REPOSITORY}{os.sep}")
    files = {
        place_of(path, places): file_hash(path)
        for path in sorted(read.files)
        if (path.startswith(own) or not _is_system(path))
        and not path.lower().endswith((*_CODE, *_IMAGES))
        and os.path.basename(path) not in _OWN
        and os.path.isfile(path)
    }
    folders = {
        place_of(path, places): _listing_hash(path)
        for path in sorted(read.folders)
        if f"{path}{os.sep}".startswith(data) and os.path.isdir(path)
    }
    return {"files": files, "folders": folders}


def _is_system(path: str) -> bool:
    # A prefix of "/", as in some containers, would take in every file.
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    system = {folder for folder in (*_SYSTEM, *own) if folder != os.sep}
    return path.startswith(tuple(f"{folder}{os.sep}" for folder in system))


def _listing_hash(folder: str) -> str:
    """Hash the names of a folder's images and subfolders, without looking at any file."""
    with os.scandir(folder) as entries:
        names = sorted(
            (entry.name, entry.is_dir())
            for entry in entries
            if not entry.name.startswith(".")
            and (entry.name.lower().endswith(_IMAGES) or entry.is_dir())
        )
    return digest_of(names)[:16]


def image_record(
    paths: Iterable[str], places: Mapping[str, str], contents: bool = False
) -> dict[str, Any]:
    """Describe images, folder by folder: by their contents if they are soon read, else by sizes.

    Times and inode numbers are left out, so that a copied dataset is still the same. A missing
    image is recorded as missing. With ``contents``, every image is read, however many there are.

    Returns:
        ``images``: ``{folder: [names, hash]}``, where names are None for a folder with many images
            that are all used; ``contents``: whether contents were read.
    """
    by_folder: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(os.path.abspath(path))
        by_folder.setdefault(folder, set()).add(name)
    sizes = {folder: _sizes(folder, sorted(names)) for folder, names in by_folder.items()}
    total = sum(size for rows in sizes.values() for _, size in rows)
    contents = contents or total <= _SOON_READ
    found = {}
    for folder, rows in sizes.items():
        used = [name for name, _ in rows]
        stored = None if len(used) > _MANY and used == _images_in(folder) else used
        found[place_of(folder, places)] = [stored, _images_hash(folder, rows, contents)]
    return {"images": found, "contents": contents}


def listed_images(read: Recording) -> list[str]:
    """Return all images in the folders that a dataset of moderate size has listed.

    They include those that this run's draw leaves out, which another draw may use. Of a large
    dataset only the images that are used count, so nothing is returned.
    """
    found = [os.path.join(f, name) for f in sorted(read.folders) for name in _images_in(f) or ()]
    return found if len(found) <= _FEW else []


def _sizes(folder: str, names: Iterable[str]) -> list[tuple[str, int]]:
    """Return names and sizes of images; the size of a missing one is -1."""
    rows = []
    for name in names:
        try:
            rows.append((name, os.stat(f"{folder}{os.sep}{name}").st_size))
        except OSError:  # loading it will raise or skip, as INPUT.ON_BAD_IMAGE says
            rows.append((name, -1))
    return rows


def _images_in(folder: str) -> list[str] | None:
    """Return the sorted names of a folder's images; None if there is no such folder."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    return sorted(name for name in names if name.lower().endswith(_IMAGES) and name[0] != ".")


def _images_hash(folder: str, rows: list[tuple[str, int]], contents: bool) -> str:
    if not contents:
        return digest_of(rows)[:16]
    read = [(n, file_hash(os.path.join(folder, n)) if size >= 0 else size) for n, size in rows]
    return digest_of(read)[:16]


class InputCheck:
    """Compares what runs have recorded with what is on disk, reading each folder only once.

    The job driver has many runs on one tree of a million images; it shares one object among them.
    """

    def __init__(self) -> None:
        """Start without knowing any folder."""
        self._images: dict[tuple[str, tuple[str, ...] | None, bool], str] = {}
        self._folders: dict[str, str] = {}

    def changes(self, recorded: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
        """Say what a run with these recorded ``inputs`` would read differently today.

        Ignored are places that are not on this machine, and files that are gone from outside of the
        data and the repository, such as a cache of weights.
        """
        now = {**recorded.get("places", {}), **places}
        lines = []
        for at, old in recorded.get("files", {}).items():
            path = _found(at, now)
            if path is not None and os.path.isfile(path):
                lines += [f"the file {at} changed"] * (file_hash(path) != old)
            elif path is not None and at.split("/")[0] in (DATA, START, WEIGHTS, "repository"):
                lines.append(f"the file {at} is gone")
        for at, old in recorded.get("folders", {}).items():
            path = _found(at, now)
            if path is not None and self._listing(path) != old:
                gone = not os.path.isdir(path)
                lines.append(f"{at} " + ("is gone" if gone else "holds other folders or images"))
        contents = bool(recorded.get("contents"))
        for at, (names, old) in recorded.get("images", {}).items():
            path = _found(at, now)
            if path is not None and self._hash(path, names, contents) != old:
                lines.append(f"the images in {at} changed")
        return lines

    def _listing(self, path: str) -> str:
        if path not in self._folders:
            self._folders[path] = _listing_hash(path) if os.path.isdir(path) else ""
        return self._folders[path]

    def _hash(self, path: str, names: list[str] | None, contents: bool) -> str:
        key = (path, None if names is None else tuple(names), contents)
        if key not in self._images:
            listed = _images_in(path) or [] if names is None else names
            self._images[key] = _images_hash(path, _sizes(path, listed), contents)
        return self._images[key]
