"""Put the contents of an archive in place, so that each place is complete or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from scripts.data_tools.archives import ArchiveError, extract


def unpack(
    archive: Path, directory: Path, places: tuple[tuple[str, str], ...], nested: str = ""
) -> None:
    """Unpack an archive and move the needed parts of it to their places.

    Everything is unpacked into a hidden folder on the same disk first and then renamed, so that an
    interruption leaves no place half filled. What exists already is not touched.

    Args:
        archive: The file.
        directory: The dataset's directory; created if missing.
        places: (path in the archive, path below ``directory``) of each needed part.
        nested: Path of an inner archive that holds the parts, if they are not in the outer one.
    """
    scratch = directory / f".unpacking-{archive.name}"
    try:
        source = scratch / "outer"
        extract(archive, source)
        if nested:  # Caltech101's images are in an archive of their own
            if not (source / nested).is_file():
                raise ArchiveError(f"{archive.name} lacks {nested}")
            extract(source / nested, scratch / "inner")
            source = scratch / "inner"
        lacking = [path for path, _ in places if not (source / path).exists()]
        if lacking:
            found = sorted(path.name for path in source.iterdir())[:5]
            raise ArchiveError(f"{archive.name} lacks {', '.join(lacking)}; it holds {found}")
        # Renaming within one disk is atomic, even for a folder of a million images.
        for path, place in places:
            if not is_taken(directory / place):
                (directory / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(source / path, directory / place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_taken(place: Path) -> bool:
    """Whether something exists there; an empty folder does not count."""
    if not place.is_dir():
        return place.exists() or place.is_symlink()
    return any(place.iterdir())
