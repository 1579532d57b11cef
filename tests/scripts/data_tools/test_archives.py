"""Archives: what is unpacked and what is refused."""

import gzip
import io
import os
import stat
import struct
import tarfile
import time
import zipfile

import pytest

from scripts.data_tools.archives import ArchiveError, extract
from tests.scripts.data_tools.data_server import content, tar_of, zip_of

FILES = {"top/a.jpg": b"one", "top/sub dir/b\u00e9.jpg": b"two" * 1000, "top/empty": b""}
MODES = {
    "a.tar": "w",
    "a.tar.gz": "w:gz",
    "a.tgz": "w:gz",
    "a.tar.bz2": "w:bz2",
    "a.tar.xz": "w:xz",
}
KINDS = [*MODES, "a.zip"]


def pack(files, name):
    return zip_of(files) if name == "a.zip" else tar_of(files, MODES[name])


def refused(path, match, limits=None):
    """Unpacking is refused, and nothing is left of it, below the destination or beside it."""
    out = path.parent / "deep" / "out"
    out.parent.mkdir(exist_ok=True)
    before = content(path.parent)
    with pytest.raises(ArchiveError, match=match):
        extract(path, out, limits)
    assert not out.exists()
    assert content(path.parent) == before


@pytest.mark.parametrize("name", KINDS)
def test_whole_archive(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pack(FILES, name))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").touch()
    extract(path, tmp_path / "out")
    assert content(tmp_path / "out") == FILES


def test_kind_is_told_by_content(tmp_path):
    """Servers hand out zip files as .tar.gz; and a tar may end in a zip."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(zip_of(FILES))
    extract(path, tmp_path / "out")
    assert content(tmp_path / "out") == FILES
    nested = {"inner.zip": zip_of({"x": b"y"})}
    path.write_bytes(tar_of(nested, "w"))
    extract(path, tmp_path / "out")
    assert content(tmp_path / "out") == nested


def test_no_owner_mode_or_time_is_taken_over(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("d")
        folder.type, folder.mode = tarfile.DIRTYPE, 0
        archive.addfile(folder)
        member = tarfile.TarInfo("d/a")
        member.size, member.mode, member.uid = 1, 0o7777, 1234
        archive.addfile(member, io.BytesIO(b"x"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    extract(tmp_path / "a.tar", tmp_path / "out")
    found = (tmp_path / "out/d/a").stat()
    assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
    assert found.st_uid == os.getuid()
    assert os.access(tmp_path / "out/d", os.W_OK | os.X_OK)
    assert found.st_mtime > time.time() - 3600


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "a/..", "..", "C:/evil", "..\\evil"]
)
@pytest.mark.parametrize("kind", ["a.tar", "a.zip"])
def test_names_that_lead_out_are_refused(tmp_path, name, kind):
    path = tmp_path / kind
    path.write_bytes(pack({"fine": b"1", name: b"evil"}, kind))
    refused(path, "leads out of the archive")


def tar_with(*members):
    """A tar archive of (name, type, link target, data)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


FILE, SYMBOLIC, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([("l", SYMBOLIC, "/etc/passwd", b"")], "links to /etc/passwd, outside"),
        ([("l", SYMBOLIC, "../../secret", b"")], "leads out"),
        ([("a/l", SYMBOLIC, "../../secret", b"")], "leads out"),
        ([("l", HARD, "../../secret", b"")], "leads out"),
        ([("l", HARD, "/etc/passwd", b"")], "leads out"),
        # Writing through a link that was unpacked before.
        ([("d", SYMBOLIC, "/tmp", b""), ("d/evil", FILE, "", b"evil")], "outside"),
        ([("d", SYMBOLIC, "..", b""), ("d/evil", FILE, "", b"evil")], "leads out"),
        ([("d", SYMBOLIC, ".", b""), ("d/evil", FILE, "", b"evil")], "no file of the archive"),
        # Each link stays inside by its text alone, together they lead out.
        (
            [("a/b", SYMBOLIC, "..", b""), ("c", SYMBOLIC, "a/b/../../secret", b"")],
            "no file of the archive|leads out",
        ),
        ([("l", SYMBOLIC, "gone", b"")], "l links to gone, no file of the archive"),
        ([("l", SYMBOLIC, "l", b"")], "no file of the archive"),
        ([("l", HARD, "gone", b"")], "no file of the archive"),
        ([("p", tarfile.FIFOTYPE, "", b"")], "neither file, folder nor link"),
        ([("p", tarfile.CHRTYPE, "", b"")], "neither file, folder nor link"),
        ([("p", tarfile.BLKTYPE, "", b"")], "neither file, folder nor link"),
        ([("p", FILE, "", b"x"), ("p/q", FILE, "", b"y")], "a file and a folder of one name"),
        ([("p/q", FILE, "", b"y"), ("p", FILE, "", b"x")], "a file and a folder of one name"),
    ],
)
def test_attacks_by_tar_are_refused(tmp_path, members, match):
    (tmp_path / "secret").write_text("secret")
    path = tmp_path / "a.tar"
    path.write_bytes(tar_with(("fine", FILE, "", b"1"), *members))
    refused(path, match)


def test_a_link_never_lies_on_the_disk(tmp_path):
    """A second entry of a link's name replaces it; nothing is written through it."""
    path = tmp_path / "a.tar"
    path.write_bytes(
        tar_with(
            ("x", FILE, "", b"x"), ("l", SYMBOLIC, "x", b""), ("l", FILE, "", b"evil"),
            ("h", HARD, "x", b""), ("h", FILE, "", b"evil"),
        )
    )  # fmt: skip
    extract(path, tmp_path / "out")
    assert (tmp_path / "out/x").read_bytes() == b"x"
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_symlink() or p.stat().st_nlink > 1]


def zip_link(name, target):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("d/x.jpg", b"picture")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, target)
    return buffer.getvalue()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "gone", "x" * 5000])
def test_links_out_of_a_zip_are_refused(tmp_path, target):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_link("d/l.jpg", target))
    refused(path, "outside|leads out|no file of the archive|neither file")


def test_devices_in_a_zip_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("p")
        entry.external_attr = (stat.S_IFIFO | 0o666) << 16
        archive.writestr(entry, b"")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    refused(tmp_path / "a.zip", "neither file, folder nor link")


def test_links_inside_become_copies(tmp_path):
    members = [
        ("d/early.jpg", SYMBOLIC, "x.jpg", b""),
        ("d/x.jpg", FILE, "", b"picture"),
        ("e/up.jpg", SYMBOLIC, "../d/x.jpg", b""),
        ("hard.jpg", HARD, "d/x.jpg", b""),
    ]
    (tmp_path / "a.tar").write_bytes(tar_with(*members))
    extract(tmp_path / "a.tar", tmp_path / "out")
    assert content(tmp_path / "out") == dict.fromkeys([name for name, *_ in members], b"picture")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "a.zip").write_bytes(zip_link("d/l.jpg", "./x.jpg"))
    extract(tmp_path / "a.zip", tmp_path / "out")
    assert content(tmp_path / "out") == dict.fromkeys(["d/x.jpg", "d/l.jpg"], b"picture")


def test_sparse_files_are_refused(tmp_path):
    member = tarfile.TarInfo("sparse")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**32
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    (tmp_path / "a.tar").write_bytes(bytes(header) + b"\0" * 10240)
    refused(tmp_path / "a.tar", "sparse is a sparse file")


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE]
)
def test_long_headers_are_refused_before_they_fill_the_memory(tmp_path, kind):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar_with(("n", kind, "", b"x" * 1_000_001))))
    refused(path, "header of 1,000,001 bytes")


def test_zip_that_lies_about_sizes(tmp_path):
    """The directory says 10 bytes, a megabyte is in it: no more than 10 may come out."""
    path = tmp_path / "a.zip"
    data = bytearray(zip_of({"x": b"\0" * 1_000_000}))
    place = data.index(b"PK\x01\x02") + 24
    assert struct.unpack_from("<I", data, place) == (1_000_000,)
    struct.pack_into("<I", data, place, 10)
    path.write_bytes(data)
    refused(path, "damaged")


@pytest.mark.parametrize("name", KINDS)
def test_cut_off_archives_are_refused(tmp_path, name):
    path = tmp_path / name
    data = pack({str(i): os.urandom(20_000) for i in range(3)}, name)
    for share in (0.1, 0.5, 0.85):
        path.write_bytes(data[: int(len(data) * share)])
        refused(path, "no archive, or damaged|is damaged")


def test_cut_between_two_members_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    data = tar_of({"x": b"x" * 512, "y": b"y" * 512}, "w")
    path.write_bytes(data[:1024])
    refused(path, "damaged: it ends in the middle")
    path.write_bytes(data + b"\0" * 100_000_000)
    refused(path, "goes on for more than")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>" * 99, b"\x1f\x8b" + b"x" * 50])
def test_what_is_no_archive_is_refused(tmp_path, data):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    refused(path, "no archive, or damaged|is damaged")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_flipped_bits_are_noticed(tmp_path, name):
    path = tmp_path / name
    data = bytearray(pack({"x": os.urandom(20_000)}, name))
    data[10_000] ^= 255
    path.write_bytes(data)
    refused(path, "damaged")


def test_encrypted_archive_is_named(tmp_path):
    data = bytearray(zip_of({"x": b"secret"}))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + place] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", r"a\.zip: .*password")


def test_missing_archive_is_no_fault_of_the_archive(tmp_path):
    with pytest.raises(FileNotFoundError):
        extract(tmp_path / "a.zip", tmp_path / "out")
