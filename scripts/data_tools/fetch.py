"""Fetch datasets: download missing files, verify them, unpack them, put them in place.

Archives are kept in ``<root>/.downloads/<dataset>`` until they are unpacked, beside
``fetched.json``, which records the source and checksums of every file. Nothing that is in place is
touched, and an interrupted fetch is continued by the next call.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dassl.locks import LockedError, Owner, acquire
from dassl.utils import atomic_write, read_json, write_json
from datasets.downloads import Address, Download, RemoteFile
from datasets.row import DatasetRow
from datasets.splits import read_split_file
from scripts.data_tools.archives import ArchiveError
from scripts.data_tools.check import format_counts
from scripts.data_tools.http import FetchError, Policy, download
from scripts.data_tools.output import format_size
from scripts.data_tools.places import is_taken, unpack
from scripts.remote.scrub import say, scrub

CACHE = ".downloads"
RECORD = "fetched.json"
SPARE = 10**8  # bytes that are left free on the disk


@dataclass(frozen=True)
class Order:
    """One dataset to fetch."""

    row: DatasetRow
    download: Download
    root: Path  # directory of all datasets
    keep: bool = False  # keep archives after unpacking

    @property
    def directory(self) -> Path:
        """The dataset's directory."""
        return self.root / self.row.directory

    @property
    def cache(self) -> Path:
        """Directory of its archives until they are unpacked."""
        return self.root / CACHE / self.row.config

    def missing(self) -> list[list[RemoteFile]]:
        """Files that are not in place yet, grouped by place: one file of each group is enough."""
        groups: dict[tuple[str, ...], list[RemoteFile]] = {}
        for file in self.download.files:
            groups.setdefault(tuple(place for _, place in file.places), []).append(file)
        return [
            group
            for places, group in groups.items()
            if not all(is_taken(self.directory / place) for place in places)
        ]


def fetch(order: Order, policy: Policy) -> list[str]:
    """Fetch the missing files of a dataset; return a line for each file that could not be fetched.

    The line begins with "optional" if only a user's own split needs the file. An OSError means that
    the files cannot be stored, so that trying the next URL is useless.
    """
    failures = []
    for group in order.missing():
        reasons: list[str] = []
        if not any(_obtain(order, file, policy, reasons) for file in group):
            kind = "optional: " if group[0].optional else ""
            failures.append(f"{kind}{group[0].name}: {'; '.join(reasons) or 'no address'}")
    if not failures:
        # What one URL left behind before another one delivered the file.
        for path in [*order.cache.glob("*.part*"), *order.cache.glob("*.drive*")]:
            path.unlink(missing_ok=True)
    return failures


def _obtain(order: Order, file: RemoteFile, policy: Policy, reasons: list[str]) -> bool:
    """Try a file's URLs in turn until one delivers it; append why each of the others did not."""
    order.cache.mkdir(parents=True, exist_ok=True)
    target = order.cache / file.name
    # None: the complete file is there already, from an earlier call or put there by the user.
    sources: list[Address | None] = [*([None] if target.is_file() else []), *file.addresses]
    for address in sources:
        where = address.url if address else str(target)
        try:
            if address is not None:
                print(f"{file.name} from {where}{'' if address.listed_by else ' (unverified)'}")
                download(address.url, target, policy, reserve=_room(order, file))
            _install(order, file, target, where)
            return True
        except (FetchError, ArchiveError) as error:
            kept = _rename_bad(target)
            reasons.append(scrub(f"{where}: {error}{kept}"))
            say(f"  {error}{kept}")
    return False


def _rename_bad(target: Path) -> str:
    """Rename a file that failed verification to ``<name>.bad``; return a note for the message."""
    if not target.is_file():
        return ""
    aside = target.with_name(target.name + ".bad")
    os.replace(target, aside)
    return f"; kept as {aside}"


def _room(order: Order, file: RemoteFile) -> Callable[[int], None]:
    def reserve(missing: int) -> None:
        # Images hardly compress, so unpacking an archive takes its size once more, and an inner
        # archive a third time.
        times = file.is_archive + bool(file.nested)
        require_space(order.root, missing + times * max(file.size, missing))

    return reserve


def require_space(root: Path, needed: int) -> None:
    """Raise OSError unless the disk has room for ``needed`` bytes."""
    free = free_space(root) or 0
    if free < needed + SPARE:
        raise OSError(
            f"{format_size(needed)} are needed on the disk of {root}, {format_size(free)} are "
            "free; make room or choose another --root"
        )


def free_space(root: Path) -> int | None:
    """Free bytes on the disk of a directory; None if it does not exist."""
    return shutil.disk_usage(root).free if root.is_dir() else None


def _install(order: Order, file: RemoteFile, target: Path, where: str) -> None:
    """Verify a downloaded file and put it, or its contents, in place."""
    size = target.stat().st_size
    digests = digests_of(target)
    if file.md5 and digests["md5"] != file.md5:
        raise FetchError(f"its MD5 is {digests['md5']}, but must be {file.md5}")
    # Checked before it is put in place, because files in place are never replaced.
    if file.name == order.row.split_file:
        _check_split(order, target)
    if file.is_archive:
        unpack(target, order.directory, file.places, file.nested)
    else:
        place = order.directory / file.places[0][1]
        with open(target, "rb") as source, atomic_write(place, "wb") as copy:
            shutil.copyfileobj(source, copy)
    # Recorded now: once the archive is deleted, nobody can compute its checksums.
    _note(order, file, {"from": where, "bytes": size, **digests})
    if not order.keep:
        target.unlink()


def _check_split(order: Order, path: Path) -> None:
    """Compare counts of images, since no source lists a checksum of the published split files."""
    try:
        splits = read_split_file(path, order.directory / order.row.images)
    except ValueError as error:
        raise FetchError(f"it is no split file: {error}") from error
    counts = tuple(len(part) for part in splits)
    if order.row.counts not in (None, counts):
        raise FetchError(
            f"it is another split: {format_counts(counts)} images; the published one has "
            f"{format_counts(order.row.counts)}"
        )


def _note(order: Order, file: RemoteFile, facts: dict[str, object]) -> None:
    """Add a file to the record ``fetched.json``."""
    path = order.cache / RECORD
    record: dict[str, object] = {}
    with suppress(FileNotFoundError, ValueError):
        content = read_json(path)
        record = content if isinstance(content, dict) else {}
    record[file.name] = {**facts, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    write_json(record, str(path))


def digests_of(path: Path) -> dict[str, str]:
    """Return MD5, which most sources list, and SHA-256 of a file, which is read only once."""
    digests = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    size = path.stat().st_size
    bar = tqdm(desc=f"  checking {path.name}", total=size, unit="B", unit_scale=True, disable=None)
    with bar, open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            for digest in digests.values():
                digest.update(chunk)
            bar.update(len(chunk))
    return {name: digest.hexdigest() for name, digest in digests.items()}


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock of a data root, or raise OSError: two fetches would write the same files."""
    (root / CACHE).mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire(root / CACHE / "lock")
    except LockedError as busy:
        who = f" ({busy.owner})" if busy.owner else ""
        message = f"another fetch is at work in {root}{who}; wait for it to end"
        raise OSError(message) from None
    lock.record(Owner.of(os.getpid()))
    with lock:
        yield
