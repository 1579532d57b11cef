"""Decoded training images, kept in memory that all processes which load them share.

A few-shot set is shown in dozens of epochs, and to decode a photograph takes about as long as to
crop and resize it. Kept are the bytes that `read_image` gave, so that every transform makes of them
what it would have made of the file.

The memory is a file without a name (memfd). It is not in /dev/shm, of which a container has only
64 MB, and it is gone with the last process that has it, however that process ends.
"""

from __future__ import annotations

import mmap
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from yacs.config import CfgNode

from dassl.data.datasets.base_dataset import Datum
from dassl.utils.distributed import local_size

with suppress(ImportError):  # Windows has neither, nor the memory
    import fcntl
    from multiprocessing.reduction import DupFd

__all__ = ["ImageCache", "build_image_cache", "free_memory"]

GIB, MIB = 2**30, 2**20
_SHARE = 4  # the cache takes at most the fourth part of the memory that is free


class ImageCache:
    """RGB images by path, first come, first kept, in ``limit`` bytes of shared memory.

    The memory begins with a table of three numbers a row: the end of what is used, the images kept
    and whether one did not fit; then, for each image, width, height and the end of its bytes, 0
    until the image is there. It is read and written under a lock, which the system takes from a
    process that is killed.

    Args:
        paths: Of the images that may be kept.
        limit: Most bytes of images.

    Raises:
        OSError: The system has no such memory to give.
    """

    def __init__(self, paths: Sequence[str], limit: int) -> None:
        self._rows = {path: row for row, path in enumerate(dict.fromkeys(paths), 1)}
        # Every page of it is taken when it is first written, none before.
        file = os.memfd_create("decoded images")
        try:
            os.ftruncate(file, 24 * (1 + len(self._rows)) + limit)
            self._open(file)
        except OSError:
            os.close(file)
            raise

    def _open(self, file: int) -> None:
        self._file = file
        memory = mmap.mmap(file, 0)
        weakref.finalize(self, os.close, file)
        count = 3 * (1 + len(self._rows))
        self._table = np.frombuffer(memory, np.int64, count).reshape(-1, 3)
        self._bytes = np.frombuffer(memory, np.uint8, offset=8 * count)
        self._reported = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Give a worker process that is spawned, not forked, the same memory."""
        return _shared, (self._rows, DupFd(self._file))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def get(self, path: str) -> Image.Image | None:
        """Return a copy of a kept image; None if it is not there."""
        pixels = self.pixels(path)
        if pixels is None:
            return None
        height, width, _ = pixels.shape
        return Image.frombytes("RGB", (width, height), pixels)

    def pixels(self, path: str) -> NDArray[np.uint8] | None:
        """Return a kept image where it lies, (H, W, 3), not to be changed; None if not there."""
        row = self._rows.get(path)
        if row is None:
            return None
        with self._locked():
            width, height, stop = self._table[row].tolist()
        if stop == 0:
            return None
        # Bytes that are there never change, so the lock is not needed for them.
        return self._bytes[stop - 3 * width * height : stop].reshape(height, width, 3)

    def put(self, path: str, image: Image.Image) -> None:
        """Keep an RGB image, if it fits and its path is one of the cache's."""
        row = self._rows.get(path)
        size = 3 * image.width * image.height
        stop = 0 if row is None else self._reserve(row, size)
        if stop == 0:
            return
        self._bytes[stop - size : stop] = np.asarray(image).reshape(-1)
        # Only now, and under the lock: who finds the image in the table sees all of its bytes.
        with self._locked():
            if self._table[row, 2] == 0:
                self._table[row] = image.width, image.height, stop
                self._table[0, 1] += 1

    def _reserve(self, row: int, size: int) -> int:
        """Return the end of free bytes for an image; 0 if it is there already or does not fit."""
        with self._locked():
            stop = int(self._table[0, 0]) + size
            if self._table[row, 2]:
                return 0
            if stop > len(self._bytes):
                self._table[0, 2] = 1
                return 0
            self._table[0, 0] = stop
            return stop

    def report(self) -> None:
        """Print, the first time only, how many images are kept and in how much memory."""
        if self._reported:
            return
        self._reported = True
        with self._locked():
            used, kept, full = self._table[0].tolist()
        print(
            f"* Kept decoded after one pass: {kept} of {len(self._rows)} training images, in "
            f"{used / MIB:.0f} MiB (DATALOADER.CACHE_IMAGES){'; no more fit' if full else ''}"
        )


def _shared(rows: dict[str, int], file: Any) -> ImageCache:
    """Open in this process the memory of a cache that another process has made."""
    cache = ImageCache.__new__(ImageCache)
    cache._rows = rows
    cache._open(file.detach())
    return cache


def build_image_cache(cfg: CfgNode, images: Sequence[Datum]) -> ImageCache | None:
    """Return an empty cache of DATALOADER.CACHE_IMAGES GiB for training images, or None.

    It gets at most a quarter of the free memory, and one of several processes its share of that.
    A GPU that decodes has no use for it. Where there is no such memory, the log says it.
    """
    wanted = int(cfg.DATALOADER.CACHE_IMAGES * GIB)
    if wanted == 0 or not images or cfg.INPUT.DECODE == "cuda":
        return None
    try:
        if not hasattr(os, "memfd_create"):
            raise OSError("only Linux has the memory that it takes")
        limit = min(wanted, free_memory() // _SHARE) // local_size()
        return ImageCache([item.impath for item in images], limit)
    except OSError as error:
        print(f"* Training images are not kept decoded (DATALOADER.CACHE_IMAGES): {error}")
        return None


def free_memory() -> int:
    """Return the bytes that are free on this machine, or its container's limit if that is lower.

    Raises:
        OSError: The system does not say.
    """
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    if found is None:
        raise OSError("/proc/meminfo does not say how much memory is available")
    limits = [1024 * int(found[1])]
    groups = Path("/sys/fs/cgroup")
    own = re.search("^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    folder = groups / (own[1] if own else "")
    # The limit of any group above holds too; containers of older systems have theirs elsewhere.
    files = [parent / "memory.max" for parent in (folder, *folder.parents)]
    for file in (*files, groups / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            limits.append(int(file.read_text()))
    return min(limits)
