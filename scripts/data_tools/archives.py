"""Unpack downloaded archives, which are not trusted.

Only plain files and folders are written, only below the destination, and only up to a limit; links
become copies. An archive that holds anything else is refused as a whole. tarfile's own filter
"data" knows nothing of limits, sparse files or zip, so it is only the second line of defence.
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

LONGEST_LINK = 4096  # bytes
LONGEST_HEADER = 10**6
MOST_PADDING = 10**8
# The filter exists from Python 3.12 on, and in late releases of 3.10 and 3.11.
_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
# Headers of names and comments, which tarfile reads into memory as a whole.
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    NotImplementedError,  # an unknown compression
    UnicodeDecodeError,
    OverflowError,
)


class ArchiveError(Exception):
    """An archive is damaged, or holds something that is not unpacked."""


@dataclass(frozen=True)
class Limits:
    """How much an archive may unpack to: a small one can hold terabytes of zeros."""

    size: int  # bytes of all files together
    members: int = 2_000_000  # files, links and folders, including folders that only occur in paths

    @classmethod
    def of(cls, archive: Path) -> Limits:
        """Return what is plausible for an archive of images, which hardly compress.

        A member needs about 20 bytes of a well compressed tar, but an inode and a block on disk.
        """
        size = archive.stat().st_size
        return cls(20 * size + 10**8, min(50_000 + size // 20, cls.members))


class Quota:
    """Counts what an archive unpacks to, and refuses what exceeds the limits."""

    def __init__(self, limits: Limits, archive: Path) -> None:
        self.limits, self.archive = limits, archive
        self.size, self.members = 0, 0
        self._folders: set[PurePosixPath] = set()

    def take(self, path: PurePosixPath, size: int) -> None:
        """Count a member and the folders of its path before it is written."""
        self.members += 1
        for folder in path.parents:
            if folder in self._folders:
                break
            self._folders.add(folder)
            self.members += folder.parts != ()  # all but the destination itself
        self.take_bytes(size)

    def take_bytes(self, size: int) -> None:
        """Count bytes before they are written."""
        self.size += size
        if self.size > self.limits.size or self.members > self.limits.members:
            raise ArchiveError(
                f"{self.archive.name} holds more than {self.limits.size:,} bytes or "
                f"{self.limits.members:,} members, which is implausible for its size"
            )


@dataclass(frozen=True)
class Member:
    """One entry of a tar or zip archive."""

    path: PurePosixPath  # relative to the destination
    kind: str  # file, folder or link
    size: int  # bytes; 0 unless it is a file
    target: PurePosixPath | None  # what a link points to, relative to the destination
    entry: Any  # the library's own object


def extract(archive: Path, destination: Path, limits: Limits | None = None) -> None:
    """Unpack a tar (of any compression) or zip archive into a directory, which is emptied first.

    The content decides which of the two it is, as servers name zip files ``.tar.gz``. A link to a
    file of the archive becomes a copy of that file; any other link is refused. An archive that is
    damaged or refused raises ArchiveError and leaves nothing behind.
    """
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
            # The header's size can be trusted: the libraries read no more than that.
            quota.take(member.path, member.size)
            if member.kind == "link":
                links.append(member)
            else:
                # Safe: no link has been written yet that could lead out of the destination.
                opened.extract(member.entry, destination, **_arguments(opened))
            if member.kind == "file":
                written.add(member.path)
            bar.update()
        for link in links:
            if link.target not in written:
                raise ArchiveError(f"{link.path} links to {link.target}, no file of the archive")
            source, copy = destination / link.target, destination / link.path
            # A link takes no bytes in the archive, but its copy takes them on the disk.
            quota.take_bytes(source.stat().st_size)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


class _Header(tarfile.TarInfo):
    """Refuses long headers before tarfile reads them into memory."""

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
    # set_attrs=False: no owner, mode or time of the archive is taken over.
    return {"set_attrs": False, **_FILTER} if isinstance(opened, tarfile.TarFile) else {}


@contextmanager
def _damage_of(archive: Path) -> Iterator[None]:
    """Turn what the libraries raise on a damaged archive into an error that names the file."""
    try:
        yield
    except _DAMAGED as error:
        raise ArchiveError(
            f"{archive.name} is no archive, or damaged: {error or type(error).__name__}"
        ) from error
    except RuntimeError as error:  # zipfile raises it if a password is needed
        raise ArchiveError(f"{archive.name}: {error}") from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ArchiveError(f"{archive.name} holds a file and a folder of one name") from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 raise it on damage; errors of the disk have a number
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
        elif entry.issparse():  # unpacks to more bytes than its header says
            raise ArchiveError(f"{entry.name} is a sparse file")
        elif entry.isreg():
            kind = "file"
        elif entry.islnk():  # a hard link's target is relative to the archive's root
            kind, target = "link", inside(entry.linkname, entry.name)
        elif entry.issym():
            kind, target = "link", _link_target(path, entry.linkname)
        else:
            raise ArchiveError(f"{entry.name} is neither file, folder nor link")
        yield Member(path, kind, entry.size if kind == "file" else 0, target, entry)
    _require_end(opened)


def _require_end(opened: tarfile.TarFile) -> None:
    """Read to the end of the file: padding, and the checksum of the compression.

    tarfile reads neither, so that an archive cut off between two members would pass as complete.
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
    with opened.open(entry) as file:  # unlike ``opened.read``, this unpacks no more than asked
        return file.read(entry.file_size).decode()


def _link_target(link: PurePosixPath, text: str) -> PurePosixPath | None:
    """Resolve the target of a symbolic link, which is relative to the link's own folder."""
    if text.startswith("/"):
        raise ArchiveError(f"{link} links to {text}, outside of the archive")
    return inside(os.path.normpath(link.parent / text), str(link))


def inside(name: str, entry: str) -> PurePosixPath | None:
    """Return a name in an archive as a path below the destination; None for the destination itself.

    Absolute paths, paths that lead out and paths of Windows are refused, naming ``entry``.
    """
    path = PurePosixPath(name)
    odd = "\\" in name or "\0" in name or name[1:2] == ":"
    if odd or path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"{entry!r} leads out of the archive: {name!r}")
    return path if path.parts else None
