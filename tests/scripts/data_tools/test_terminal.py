"""``data.py`` prints what servers and archives say as plain lines."""

import dataclasses

from datasets.downloads import Address
from tests.scripts.data_tools.conftest import dtd_from
from tests.scripts.data_tools.data_server import tar_of

ODD = "a\x1b[2J\x1b]0;title\x07b\x9b31m"  # reads "ab"


def first_from(served, url):
    """The first file from another address, unchecked."""
    return dataclasses.replace(served[0].files[0], addresses=(Address(url),), md5="")


def printable(out):
    return all(line.isprintable() for line in out.split("\n"))


def test_reasons_of_a_server(served, server, fetch):
    fatal = server.add("bad", b"", status=[(404, ODD + "\rall is well")] * 9)
    status, out = fetch(dtd_from(first_from(served, fatal), served[0].files[1]), "dtd", "--yes")
    assert status == 1
    assert printable(out)
    assert "\n  HTTP 404 ab all is well\n" in out
    assert f"\n  FAILED dtd.tar.gz: {fatal}: HTTP 404 ab all is well\n" in out
    busy = server.add("busy", b"", status=[(503, ODD + "x" * 9000)] * 9)
    out = fetch(dtd_from(first_from(served, busy), served[0].files[1]), "dtd", "--yes")[1]
    assert printable(out)
    assert "\n  dtd.tar.gz: HTTP 503 abxxxx" in out
    assert max(map(len, out.split("\n"))) == 2000


def test_redirect_of_a_server(served, server, fetch):
    bad = server.add("bad", b"", redirect=f"file:///{ODD}")
    out = fetch(dtd_from(first_from(served, bad), served[0].files[1]), "dtd", "--yes")[1]
    assert printable(out)
    assert "Redirection to url 'file:///" in out


def test_names_in_an_archive(served, server, fetch):
    bad = server.add("bad", tar_of({f"{ODD}\nc/x.jpg": b"", "dtd/labels/x.txt": b""}))
    status, out = fetch(dtd_from(first_from(served, bad), served[0].files[1]), "dtd", "--yes")
    assert status == 1
    assert printable(out)
    assert "\n  dtd.tar.gz lacks dtd/images; it holds " in out
    bad = server.add("worse", tar_of({f"../{ODD}\nc": b"x"}))
    out = fetch(dtd_from(first_from(served, bad), served[0].files[1]), "dtd", "--yes")[1]
    assert printable(out)
    assert "leads out of the archive" in out


def test_names_of_files_that_are_checked(tmp_path, touch, check):
    for part in ("train", "test"):
        touch(tmp_path / "data/birds" / part, [f"{ODD}\nc/1.jpg", "d/1.jpg"])
    file = tmp_path / "birds.yaml"
    file.write_text("DATASET: {NAME: Folder, DIR: birds}\n")
    words = ("--root", tmp_path / "data", "--dataset-config-file", file)
    status, out, _ = check(*words, "--full", "--workers", "0")
    assert status == 1
    assert printable(out)
    assert "birds: damaged: 4 image(s) cannot be read, first " in out
    assert "/ab c/1.jpg: " in out
