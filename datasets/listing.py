"""List the images in a user's own folders, and count what is left out.

The readers of published datasets use another list of suffixes, in ``readers.list_images``, which
must never grow: their splits depend on it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from datasets.readers import IMAGE_SUFFIXES

# Formats that Pillow knows but does not draw itself, and scientific data beside images.
_NO_IMAGES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Folders, in lower case, that systems, disks, and image viewers put beside those of the user.
_FOREIGN = {
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recycle", "@tmp", "__macosx",
    "__pycache__", "lost+found", "system volume information", "thumbnails", "thumbs",
}  # fmt: skip


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of images that this Pillow decodes, in lower case, such as ``.jfif``."""
    Image.init()
    read = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NO_IMAGES
    }
    return frozenset(read.union(IMAGE_SUFFIXES))


def is_image(name: str) -> bool:
    """Whether a file's name, in whatever case, is that of an image."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def is_foreign(name: str) -> bool:
    """Whether a folder is called like one that no user made."""
    return name.lower() in _FOREIGN


class LeftOut:
    """Paths that were left out, by kind."""

    def __init__(self, directory: str | os.PathLike[str] = "") -> None:
        """Start empty; messages give paths relative to ``directory``."""
        self.directory = str(directory)
        self.paths: dict[str, dict[str, None]] = {}

    def add(self, kind: str, path: str) -> None:
        """Count a path, once; ``kind`` is a noun with ``(s)``."""
        self.paths.setdefault(kind, {})[path] = None

    def add_foreign(self, path: str) -> None:
        """Count a folder, or a file in one, that ``is_foreign``."""
        self.add("folder(s) named like those of a system or viewer", path)

    def add_file(self, path: str) -> None:
        """Count a file that is no image by its suffix."""
        suffix = os.path.splitext(path)[1]
        self.add(f"file(s) ending in {suffix}" if suffix else "file(s) without a suffix", path)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.paths)

    def __str__(self) -> str:
        """Counts by kind with the first names, in a line."""
        return "; ".join(
            f"{len(paths):,} {kind} ({self._names(list(paths))})"
            for kind, paths in sorted(self.paths.items())
        )

    def _names(self, paths: list[str]) -> str:
        prefix = os.path.join(self.directory, "") if self.directory else ""
        names = [path.removeprefix(prefix) for path in paths[:3]]
        return ", ".join([*names, "..."] if len(paths) > 3 else names)


class Listing(NamedTuple):
    """What a directory holds, sorted: names of folders and images, real paths of linked images."""

    folders: list[str]
    images: list[str]
    links: dict[str, str]


def list_folder(directory: str | os.PathLike[str], left_out: LeftOut | None = None) -> Listing:
    """List the folders and images of a directory; an image may be a link that leads nowhere.

    ``left_out`` counts the rest: hidden files, folders that no user made, and other suffixes.
    """
    others = LeftOut() if left_out is None else left_out
    listing = Listing([], [], {})
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                others.add("hidden file(s) or folder(s)", entry.path)
            elif entry.is_dir():
                if is_foreign(entry.name):
                    others.add_foreign(entry.path)
                else:
                    listing.folders.append(entry.name)
            elif not is_image(entry.name):
                others.add_file(entry.path)
            # Before is_file, which is False of a link to nothing: it must be found to be refused.
            elif entry.is_symlink():
                listing.images.append(entry.name)
                listing.links[entry.path] = os.path.realpath(entry.path)
            elif entry.is_file():
                listing.images.append(entry.name)
            else:
                others.add("pipe(s) or device(s)", entry.path)
    return listing


def find_below(
    directory: str | os.PathLike[str], left_out: LeftOut | None = None, seen: set[str] | None = None
) -> list[str]:
    """Sorted paths of the images in and below a directory, links to directories included.

    ``seen`` holds the real paths of directories that were looked at already.
    """
    seen = set() if seen is None else seen
    # A link to a folder above would be followed forever.
    real = os.path.realpath(directory)
    if real in seen:
        return []
    seen.add(real)
    try:
        listing = list_folder(directory, left_out)
    except PermissionError:
        if left_out is None:
            raise
        left_out.add("folder(s) that may not be read", str(directory))
        return []
    base = str(Path(directory))
    found = [os.path.join(base, name) for name in listing.images]
    for name in listing.folders:
        found += find_below(os.path.join(base, name), left_out, seen)
    return sorted(found)
