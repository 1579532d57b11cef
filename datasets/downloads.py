"""Files to download: the vocabulary in which the rows say where a dataset can be had.

``scripts/data.py`` fetches what the rows list; DATASETS.md says the same (a test compares the two).

None of the addresses in the rows was tried when they were written. ``listed_by`` names the
maintained source that lists an address; where it is empty the address is known by memory only and
shown to the user as "unverified". A checksum is given only where such a source has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

TORCHVISION = "torchvision"  # the source of its dataset classes, release 0.29
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MB, GB = 10**6, 10**9
SEE_PAGE = "see its page"  # a licence that does not fit into a few words


@dataclass(frozen=True)
class Address:
    """One place of a file.

    Attributes:
        url: http or https; a Google Drive file as ``https://drive.google.com/file/d/<id>/view``.
        listed_by: Maintained source that lists it; empty: from memory, unverified.
    """

    url: str
    listed_by: str = ""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download and, if it is an archive, to unpack.

    Attributes:
        name: Its file name.
        addresses: Where it is, the best first; none if it takes an account.
        places: (path in the archive, path below the dataset's directory) of what is needed of it;
            of a file that is no archive the first is empty.
        size: Bytes, about; 0 if not known.
        md5: Checksum; empty if not known for sure.
        nested: Archive inside this one that the paths of ``places`` start in.
        optional: Needed for an own split only.
    """

    name: str
    addresses: tuple[Address, ...]
    places: tuple[tuple[str, str], ...]
    size: int = 0
    md5: str = ""
    nested: str = ""
    optional: bool = False

    @property
    def is_archive(self) -> bool:
        """Whether it is to be unpacked."""
        return self.name.endswith(ARCHIVE_SUFFIXES)


@dataclass(frozen=True)
class Download:
    """All there is to know about getting one dataset; the fields are those of its row."""

    config: str
    page: str
    licence: str
    files: tuple[RemoteFile, ...] = field(default=())
    by_hand: str = ""

    @property
    def automatic(self) -> bool:
        """Whether all of it can be downloaded without an account."""
        return all(file.addresses for file in self.files) and bool(self.files)

    @property
    def size(self) -> int:
        """Bytes of the download, about, counting alternatives once; 0 if unknown."""
        largest = {file.places or file.name: file.size for file in reversed(self.files)}
        return sum(largest.values())


def drive(identifier: str) -> Address:
    """A file on Google Drive; the identifiers are those of CoOp's DATASETS.md, from memory."""
    return Address(f"https://drive.google.com/file/d/{identifier}/view")


def listed(url: str) -> tuple[Address, ...]:
    """An address that torchvision lists."""
    return (Address(url, TORCHVISION),)


def unverified(*urls: str) -> tuple[Address, ...]:
    """Addresses that are known by memory only."""
    return tuple(Address(url) for url in urls)


def published_split(name: str, identifier: str) -> RemoteFile:
    """The published split file of a dataset, on Google Drive."""
    file = f"split_zhou_{name}.json"
    return RemoteFile(file, (drive(identifier),), (("", file),))


def own_split_list(name: str, address: Address, md5: str = "") -> RemoteFile:
    """A file that only an own split needs, to be put beside the images as it is."""
    return RemoteFile(name, (address,), (("", name),), md5=md5, optional=True)


def same(*paths: str, inside: str = "") -> tuple[tuple[str, str], ...]:
    """Places that keep their names, in the directory ``inside`` of the archive."""
    return tuple((f"{inside}/{path}" if inside else path, path) for path in paths)


def download_of(config: str, table: Sequence[Download]) -> Download | None:
    """Find what a table says of a dataset by the stem of its config; None if there is nothing."""
    return next((download for download in table if download.config == config), None)
