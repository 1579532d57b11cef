"""Files to download: the terms in which the rows describe where to get a dataset.

``scripts/data.py`` fetches what the rows list; DATASETS.md says the same (a test compares the two).

None of the addresses in the rows was tried when they were written. ``listed_by`` names the
maintained source that lists an address; an address without one is from memory, and shown to the
user as "unverified". A checksum is given only where such a source has it.
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
    """One place of a file."""

    url: str  # http or https; Google Drive as ``https://drive.google.com/file/d/<id>/view``
    listed_by: str = ""  # maintained source that lists it; "" if it is from memory


@dataclass(frozen=True)
class RemoteFile:
    """A file to download and, if it is an archive, to unpack."""

    name: str
    addresses: tuple[Address, ...]  # the best first; none if it takes an account
    # (path in the archive, path below the dataset's directory) of what is needed; the first is ""
    # for a file that is no archive.
    places: tuple[tuple[str, str], ...]
    size: int = 0  # bytes, about; 0 if not known
    md5: str = ""  # "" if not known for sure
    nested: str = ""  # archive inside this one that the paths of ``places`` start in
    optional: bool = False  # needed for an own split only

    @property
    def is_archive(self) -> bool:
        """Whether it is to be unpacked."""
        return self.name.endswith(ARCHIVE_SUFFIXES)


@dataclass(frozen=True)
class Download:
    """How to get one dataset; the fields are those of its row."""

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
        # Alternatives have the same places; in reverse, so that the preferred one's size stays.
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
    """The table's entry for a dataset, by the stem of its config; None if there is none."""
    return next((download for download in table if download.config == config), None)
