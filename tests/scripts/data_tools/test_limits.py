"""Archives that unpack to more than is plausible are refused."""

import io
import tarfile

import pytest

from scripts.data_tools.archives import ArchiveError, Limits, extract
from tests.scripts.data_tools.data_server import tar_of
from tests.scripts.data_tools.test_archives import (
    FILE,
    HARD,
    KINDS,
    SYMBOLIC,
    pack,
    refused,
    tar_with,
    zip_link,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.zip"])
def test_limits(tmp_path, kind):
    path = tmp_path / kind
    path.write_bytes(pack({f"{i}": b"\0" * 1000 for i in range(5)}, kind))
    extract(path, tmp_path / "out", Limits(5000, 5))
    refused(path, "more than 4,999 bytes", Limits(4999, 5))
    refused(path, "more than .* or 4 members", Limits(5000, 4))


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.zip"])
def test_bomb_is_implausible_for_its_size(tmp_path, kind, monkeypatch):
    """Ten members of 30 MB of zeros in a file of 0.3 MB; it stops on the way."""
    path = tmp_path / kind
    path.write_bytes(pack({f"{i}": b"\0" * 30_000_000 for i in range(10)}, kind))
    assert path.stat().st_size < 400_000
    refused(path, "implausible for its size")


def tar_bomb(path, kind, count, size):
    """One file of zeros and many links to it, in a compressed tar."""
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("d/file")
        member.size = size
        archive.addfile(member, io.BytesIO(b"\0" * size))
        for i in range(count):
            member = tarfile.TarInfo(f"d/{i}")
            member.type, member.linkname = kind, "file" if kind == SYMBOLIC else "d/file"
            archive.addfile(member)


@pytest.mark.parametrize("kind", [SYMBOLIC, HARD])
def test_links_count_as_the_copies_that_they_become(tmp_path, kind):
    path = tmp_path / "a.tar.gz"
    tar_bomb(path, kind, 4, 1000)
    extract(path, tmp_path / "out", Limits(5000))
    refused(path, "more than 4,999 bytes", Limits(4999))
    tar_bomb(path, kind, 60, 2_000_000)  # 2 MB in the headers, 122 MB on the disk
    assert path.stat().st_size < 10_000
    refused(path, "implausible for its size")


def test_links_in_a_zip_count_too(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_link("d/l.jpg", "./x.jpg"))  # 7 bytes, and a copy of them
    extract(path, tmp_path / "out", Limits(7 + 7 + 7))
    refused(path, "more than 13 bytes", Limits(13))


def test_a_link_that_replaced_a_file_counts_as_what_it_became(tmp_path):
    members = [("big", FILE, "", b"x" * 1000), ("b", FILE, "", b"1"), ("b", HARD, "big", b"")]
    (tmp_path / "a.tar").write_bytes(tar_with(*members, ("c", HARD, "b", b"")))
    extract(tmp_path / "a.tar", tmp_path / "out", Limits(3001))
    refused(tmp_path / "a.tar", "more than 3,000 bytes", Limits(3000))


@pytest.mark.parametrize("name", KINDS)
def test_folders_that_are_only_in_names_count(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pack({"a/b/c/x": b"", "a/b/c/y": b"", "a/d/z": b""}, name))
    extract(path, tmp_path / "out", Limits(0, 7))  # x y z a b c d
    refused(path, "or 6 members", Limits(0, 6))


def test_many_empty_files_are_implausible(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tar_of({"/".join(f"{i:05}") + "/x": b"" for i in range(90)}, "w:gz"))
    assert Limits.of(path).members == 50_000 + path.stat().st_size // 20
    # The folders that are only in names count: 3 above all files, 9 of tens, 90 of units.
    extract(path, tmp_path / "out", Limits(10**8, 3 + 9 + 90 + 90))
    with pytest.raises(ArchiveError, match="191 members, which is implausible for its size"):
        extract(path, tmp_path / "out", Limits(10**8, 191))
    assert not (tmp_path / "out").exists()


def test_pictures_are_plausible(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({"x": b"x" * 100_000}, "w"))
    assert Limits.of(path).size > 20 * 100_000
