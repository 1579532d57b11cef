"""Get datasets: download what is missing, check it, unpack it, put it into its place.

Archives lie in ``<root>/.downloads/<dataset>`` until they are unpacked, beside ``fetched.json``,
the record of what came from where. Nothing that is in place is touched; whatever interrupts this,
the next call goes on where it stopped.
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
from dassl.utils import read_json, write_json
from datasets.downloads import Address, Download, RemoteFile
from datasets.row import DatasetRow
from datasets.splits import read_split_file
from scripts.data_tools.archives import ArchiveError, is_taken, unpack
from scripts.data_tools.check import format_counts
from scripts.data_tools.http import FetchError, LocalError, Policy, download, on_disk
from scripts.data_tools.output import format_size
from scripts.scrub import say, scrub

CACHE = ".downloads"
RECORD = "fetched.json"
SPARE = 10**8  # bytes that a disk is left with


@dataclass(frozen=True)
class Order:
    """One dataset to get.

    Attributes:
        row: Its row in the table of datasets.
        download: How it can be had.
        root: Data root.
        keep: Whether to keep archives after unpacking.
    """

    row: DatasetRow
    download: Download
    root: Path
    keep: bool = False

    @property
    def directory(self) -> Path:
        """Where it goes."""
        return self.root / self.row.directory

    @property
    def cache(self) -> Path:
        """Where its archives lie meanwhile."""
        return self.root / CACHE / self.row.config

    def missing(self) -> list[list[RemoteFile]]:
        """What is not in place yet: groups of files, of which one is enough."""
        groups: dict[tuple[str, ...], list[RemoteFile]] = {}
        for file in self.download.files:
            groups.setdefault(tuple(place for _, place in file.places), []).append(file)
        return [
            group
            for places, group in groups.items()
            if not all(is_taken(self.directory / place) for place in places)
        ]


def fetch(order: Order, policy: Policy) -> list[str]:
    """Get all that is missing of a dataset.

    Args:
        order: What to get.
        policy: How stubbornly.

    Returns:
        What could not be had, a line each; files that only an own split needs begin with
        "optional".

    Raises:
        LocalError: The disk cannot take it; no use in going on.
    """
    failures = []
    for group in order.missing():
        reasons: list[str] = []
        if not any(_obtain(order, file, policy, reasons) for file in group):
            kind = "optional: " if group[0].optional else ""
            failures.append(f"{kind}{group[0].name}: {'; '.join(reasons) or 'no address'}")
    if not failures:
        # Parts of what another address then gave whole.
        for path in [*order.cache.glob("*.part*"), *order.cache.glob("*.drive*")]:
            path.unlink(missing_ok=True)
    return failures


def _obtain(order: Order, file: RemoteFile, policy: Policy, reasons: list[str]) -> bool:
    """Try a file's addresses in turn until one gives what it should; tell ``reasons`` if none."""
    with on_disk():
        order.cache.mkdir(parents=True, exist_ok=True)
    target = order.cache / file.name
    # None: an archive that lies there already, whole, from an earlier call or put there by hand.
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
            kept = _put_aside(target)
            reasons.append(scrub(f"{where}: {error}{kept}"))
            say(f"  {error}{kept}")
    return False


def _put_aside(target: Path) -> str:
    """Keep what is not what it should be under another name, where it does no harm."""
    if not target.is_file():
        return ""
    aside = target.with_name(target.name + ".bad")
    with on_disk():
        os.replace(target, aside)
    return f"; kept as {aside}"


def _room(order: Order, file: RemoteFile) -> Callable[[int], None]:
    def reserve(missing: int) -> None:
        # Pictures hardly compress: an archive needs its size once more to be unpacked.
        times = file.is_archive + bool(file.nested)
        require_space(order.root, missing + times * max(file.size, missing))

    return reserve


def require_space(root: Path, needed: int) -> None:
    """Check that the disk has room.

    Raises:
        LocalError: It has not.
    """
    free = free_space(root) or 0
    if free < needed + SPARE:
        raise LocalError(
            f"{format_size(needed)} are needed on the disk of {root}, {format_size(free)} are "
            "free; make room or choose another --root"
        )


def free_space(root: Path) -> int | None:
    """Free bytes on the disk of a directory; None if it does not exist."""
    return shutil.disk_usage(root).free if root.is_dir() else None


def _install(order: Order, file: RemoteFile, target: Path, where: str) -> None:
    """Check a file that has arrived and put it, or what is in it, into its place.

    Raises:
        FetchError: It is not what it should be.
        ArchiveError: It cannot be unpacked.
        LocalError: The disk cannot take it.
    """
    with on_disk():
        size = target.stat().st_size
        digests = digests_of(target)
    if file.md5 and digests["md5"] != file.md5:
        raise FetchError(f"its MD5 is {digests['md5']}, but must be {file.md5}")
    if file.name == order.row.split_file:
        _check_split(order, target)
    if file.is_archive:
        unpack(target, order.directory, file.places, file.nested)
    with on_disk():
        if not file.is_archive:
            _copy(target, order.directory / file.places[0][1])
        _note(order, file, {"from": where, "bytes": size, **digests})
        if not order.keep:
            target.unlink()


def _check_split(order: Order, path: Path) -> None:
    """A split file has no known checksum, but its counts are known.

    Raises:
        FetchError: It is no split file, or of other counts than the published one.
    """
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


def _copy(source: Path, place: Path) -> None:
    """Copy a file; it appears whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    shutil.copyfile(source, partial)
    os.replace(partial, place)


def _note(order: Order, file: RemoteFile, facts: dict[str, object]) -> None:
    """Add to the record of what came from where."""
    path = order.cache / RECORD
    record: dict[str, object] = {}
    with suppress(FileNotFoundError, ValueError):
        content = read_json(path)
        record = content if isinstance(content, dict) else {}
    record[file.name] = {**facts, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    write_json(record, str(path))


def digests_of(path: Path) -> dict[str, str]:
    """MD5, which is what sources give, and SHA-256 of a file, read once."""
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
    """Let no two fetches work in one root: they would write the same files.

    Raises:
        LocalError: Another one does, or the root cannot be written.
    """
    with on_disk():
        (root / CACHE).mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire(root / CACHE / "lock")
        except LockedError as busy:
            who = f" ({busy.owner})" if busy.owner else ""
            message = f"another fetch is at work in {root}{who}; wait for it to end"
            raise LocalError(message) from None
        lock.record(Owner.of(os.getpid()))
    with lock:
        yield
