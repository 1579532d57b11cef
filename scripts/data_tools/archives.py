"""Unpack archives that strangers made.

Nothing is written outside the destination, no link is created, nothing but plain files and folders
comes out, and not without limit. An archive that asks for anything else is refused as a whole.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from scripts.data_tools.http import on_disk

LONGEST_LINK = 4096
LONGEST_HEADER = 10**6
MOST_PADDING = 10**8
# Python's own net below ours: from 3.12, and in the later releases of 3.10 and 3.11.
_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
# tarfile reads what they hold, names and comments, into memory as a whole.
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    NotImplementedError,  # a compression that Python does not know
    UnicodeDecodeError,
    OverflowError,
)


class ArchiveError(Exception):
    """An archive is damaged, or asks for something that is not done for it."""


@dataclass(frozen=True)
class Limits:
    """How much may come out of an archive.

    Attributes:
        size: Bytes of all files together.
        members: Files, folders and links, and the folders that these lie in.
    """

    size: int
    members: int = 2_000_000

    @classmethod
    def of(cls, archive: Path) -> Limits:
        """What is plausible for an archive of pictures, which hardly compress, and some lists.

        A member takes some 20 bytes of a well compressed tar, and an inode and a block of the disk.
        """
        size = archive.stat().st_size
        return cls(20 * size + 10**8, min(50_000 + size // 20, cls.members))


class Quota:
    """What an archive has used of its limits.

    Args:
        limits: The limits.
        archive: To name in the error.
    """

    def __init__(self, limits: Limits, archive: Path) -> None:
        self.limits, self.archive = limits, archive
        self.size, self.members = 0, 0
        self._folders: set[PurePosixPath] = set()

    def take(self, path: PurePosixPath) -> None:
        """Count a member, and the folders that it needs, before it is written."""
        self.members += 1
        for folder in path.parents:
            if folder in self._folders:
                break
            self._folders.add(folder)
            self.members += folder.parts != ()  # the destination itself is none of the archive's
        self.take_bytes(0)

    def take_bytes(self, size: int) -> None:
        """Count bytes before they are written, those of the copies that links become too.

        Raises:
            ArchiveError: It is too much.
        """
        self.size += size
        if self.size > self.limits.size or self.members > self.limits.members:
            raise ArchiveError(
                f"{self.archive.name} holds more than {self.limits.size:,} bytes or "
                f"{self.limits.members:,} members, which is implausible for its size"
            )


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Attributes:
        path: Where it goes, below the destination.
        kind: file, folder or link.
        size: Bytes.
        target: Of a link, what it names, below the destination.
        entry: What the library calls it.
    """

    path: PurePosixPath
    kind: str
    size: int
    target: PurePosixPath | None
    entry: Any


def extract(archive: Path, destination: Path, limits: Limits | None = None) -> None:
    """Unpack a tar (of any compression) or zip archive.

    A link to a file of the archive becomes a copy of that file; any other is refused.

    Args:
        archive: The file; what it is is told from its content.
        destination: Directory to create; whatever is there is removed before.
        limits: How much may come out; by default ``Limits.of`` the archive.

    Raises:
        ArchiveError: It is damaged, leaves the destination, holds devices, is too large...; what
            had been unpacked is removed again.
        LocalError: The disk cannot take it.
    """
    with on_disk():
        shutil.rmtree(destination, ignore_errors=True)
        destination.mkdir(parents=True)
        limits = limits or Limits.of(archive)
        try:
            _extract(archive, destination, limits)
        except BaseException:
            shutil.rmtree(destination, ignore_errors=True)
            raise


def _extract(archive: Path, destination: Path, limits: Limits) -> None:
    links: list[Member] = []
    written: set[PurePosixPath] = set()
    quota = Quota(limits, archive)
    bar = tqdm(desc=f"  unpacking {archive.name}", unit=" files", disable=None)
    with bar, _damage_of(archive), _open(archive) as opened:
        for member in _members(opened):
            quota.take(member.path)
            # The header's size: the libraries take no more than that from the compressed data.
            quota.take_bytes(member.size)
            if member.kind == "link":
                links.append(member)
            else:
                # Only plain files and folders have been made below it: no link leads elsewhere.
                opened.extract(member.entry, destination, **_arguments(opened))
            if member.kind == "file":
                written.add(member.path)
            bar.update()
        for link in links:
            if link.target not in written:
                raise ArchiveError(f"{link.path} links to {link.target}, no file of the archive")
            source, copy = destination / link.target, destination / link.path
            quota.take_bytes(source.stat().st_size)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


class _Header(tarfile.TarInfo):
    """Refuses long headers of names and comments."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Header:
        made = super().frombuf(buf, encoding, errors)
        if made.type in (*_HEADERS, tarfile.SOLARIS_XHDTYPE) and made.size > LONGEST_HEADER:
            raise ArchiveError(f"{made.name} is a header of {made.size:,} bytes")
        return made


def _open(archive: Path) -> Any:
    try:
        return tarfile.open(archive, tarinfo=_Header)
    except tarfile.ReadError:
        if zipfile.is_zipfile(archive):
            return zipfile.ZipFile(archive)
        raise


def _arguments(opened: Any) -> dict[str, Any]:
    # No owners, modes and times of strangers.
    return {"set_attrs": False, **_FILTER} if isinstance(opened, tarfile.TarFile) else {}


@contextmanager
def _damage_of(archive: Path) -> Iterator[None]:
    """Say of what a library fails on that it is damaged, and of which file."""
    try:
        yield
    except _DAMAGED as error:
        raise ArchiveError(
            f"{archive.name} is no archive, or damaged: {error or type(error).__name__}"
        ) from error
    except RuntimeError as error:  # zipfile's word for a password
        raise ArchiveError(f"{archive.name}: {error}") from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ArchiveError(f"{archive.name} holds a file and a folder of one name") from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's word for damage, unlike the disk's
            raise ArchiveError(f"{archive.name} is damaged: {error}") from error
        raise


def _members(opened: Any) -> Iterator[Member]:
    return _tar_members(opened) if isinstance(opened, tarfile.TarFile) else _zip_members(opened)


def _tar_members(opened: tarfile.TarFile) -> Iterator[Member]:
    for entry in opened:
        path = inside(entry.name, entry.name)
        if path is None:
            continue
        target = None
        if entry.isdir():
            kind = "folder"
        elif entry.issparse():  # what is written for one is not what its header says
            raise ArchiveError(f"{entry.name} is a sparse file")
        elif entry.isreg():
            kind = "file"
        elif entry.islnk():  # named from the root of the archive, unlike a symbolic link
            kind, target = "link", inside(entry.linkname, entry.name)
        elif entry.issym():
            kind, target = "link", _link_target(path, entry.linkname)
        else:
            raise ArchiveError(f"{entry.name} is neither file, folder nor link")
        yield Member(path, kind, entry.size if kind == "file" else 0, target, entry)
    _require_end(opened)


def _require_end(opened: tarfile.TarFile) -> None:
    """Read what follows the last member: empty blocks, then the checksum of the compression.

    tarfile does neither, so an archive cut off between two members would pass for a whole one.
    """
    rest = 0
    while opened.fileobj is not None and (block := opened.fileobj.read(1 << 20)):
        rest += len(block)
        if rest > MOST_PADDING:
            raise ArchiveError(f"it goes on for more than {MOST_PADDING:,} bytes after its end")
    if not rest:
        raise EOFError("it ends in the middle")


def _zip_members(opened: zipfile.ZipFile) -> Iterator[Member]:
    for entry in opened.infolist():
        path = inside(entry.filename, entry.filename)
        if path is None:
            continue
        mode = stat.S_IFMT(entry.external_attr >> 16)
        target = None
        if entry.is_dir():
            kind = "folder"
        elif mode == stat.S_IFLNK and entry.file_size <= LONGEST_LINK:
            kind, target = "link", _link_target(path, _text_of(opened, entry))
        elif mode in (0, stat.S_IFREG):
            kind = "file"
        else:
            raise ArchiveError(f"{entry.filename} is neither file, folder nor link")
        yield Member(path, kind, entry.file_size, target, entry)


def _text_of(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    with opened.open(entry) as file:  # unlike ``opened.read``, it unpacks no more than asked for
        return file.read(entry.file_size).decode()


def _link_target(link: PurePosixPath, text: str) -> PurePosixPath | None:
    """What a symbolic link names, taken from the folder it lies in."""
    if text.startswith("/"):
        raise ArchiveError(f"{link} links to {text}, outside of the archive")
    return inside(os.path.normpath(link.parent / text), str(link))


def inside(name: str, entry: str) -> PurePosixPath | None:
    """A name of an archive as a path below the destination.

    Args:
        name: Name of an entry, or of what a link names.
        entry: Entry to name in the error.

    Returns:
        The path; None for the destination itself (``./``).

    Raises:
        ArchiveError: It is absolute or leads out.
    """
    path = PurePosixPath(name)
    odd = "\\" in name or "\0" in name or name[1:2] == ":"
    if odd or path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"{entry!r} leads out of the archive: {name!r}")
    return path if path.parts else None


def unpack(
    archive: Path, directory: Path, places: tuple[tuple[str, str], ...], nested: str = ""
) -> None:
    """Unpack an archive and put what is needed of it into its places.

    Everything is unpacked into a hidden folder of the same disk first. A place appears whole or not
    at all, whenever this is interrupted, and one that is taken is left alone.

    Args:
        archive: The file.
        directory: The dataset's directory; created if need be.
        places: (path in the archive, path below ``directory``) of what is needed.
        nested: Archive in the archive that the former paths start in.

    Raises:
        ArchiveError: It cannot be unpacked, or lacks what is needed.
        LocalError: The disk cannot take it.
    """
    scratch = directory / f".unpacking-{archive.name}"
    try:
        source = scratch / "outer"
        extract(archive, source)
        if nested:
            if not (source / nested).is_file():
                raise ArchiveError(f"{archive.name} lacks {nested}")
            extract(source / nested, scratch / "inner")
            source = scratch / "inner"
        lacking = [path for path, _ in places if not (source / path).exists()]
        if lacking:
            found = sorted(path.name for path in source.iterdir())[:5]
            raise ArchiveError(f"{archive.name} lacks {', '.join(lacking)}; it holds {found}")
        with on_disk():
            for path, place in places:
                if not is_taken(directory / place):
                    (directory / place).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source / path, directory / place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_taken(place: Path) -> bool:
    """Whether something is there already; an empty folder is nothing."""
    if not place.is_dir():
        return place.exists() or place.is_symlink()
    return any(place.iterdir())
