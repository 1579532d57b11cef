"""``data.py fetch`` from a server on this machine, in the archives' official layouts."""

import dataclasses
import json
import os
import re
import shutil

import pytest

from datasets.downloads import Address, Download
from datasets.rows import row_of
from scripts.data_tools.fetch import digests_of
from tests.scripts.data_tools.conftest import (
    DTD,
    KEPT,
    LISTS,
    PARTS,
    PLACES,
    SPLIT,
    WHOLE,
    dtd_from,
    file_at,
    listing,
)
from tests.scripts.data_tools.data_server import md5_of, tar_of, zip_of


def test_fetch_then_check(served, server, fetch, tmp_path):
    status, out = fetch(served, "dtd", "--yes")
    assert status == 0
    assert listing(tmp_path / "data") == [*KEPT, *WHOLE]
    assert "dtd (licence: for research; https://dtd.example.org)" in out
    assert f"{server.url('dtd')} (unverified)" in out
    assert f"{SPLIT}, no known checksum" in out
    line = next(line for line in out.splitlines() if line.startswith("dtd  "))
    assert line.split() == ["dtd", "ok", "2", "2/2/2", "yes"]


def test_record_says_what_came_from_where(served, server, fetch, tmp_path):
    fetch(served, "dtd", "--yes")
    record = json.loads((tmp_path / "data" / KEPT[0]).read_text())
    assert record.keys() == {"dtd.tar.gz", SPLIT}
    entry = record["dtd.tar.gz"]
    assert entry.pop("time").endswith("Z")
    sha256 = digests_of_bytes(tmp_path, DTD)["sha256"]
    assert entry == {
        "from": server.url("dtd"), "bytes": len(DTD), "md5": md5_of(DTD), "sha256": sha256,
    }  # fmt: skip


def digests_of_bytes(directory, content):
    path = directory / "content"
    path.write_bytes(content)
    return digests_of(path)


def test_what_is_there_is_not_fetched_again(served, server, fetch):
    fetch(served, "dtd", "--yes")
    count = len(server.requests)
    status, out = fetch(served, "DescribableTextures", "--yes")
    assert status == 0
    assert "dtd: everything is in place already" in out
    assert len(server.requests) == count


def test_only_what_is_missing_is_fetched(served, server, fetch, tmp_path):
    fetch(served, "dtd", "--yes")
    (tmp_path / "data/dtd" / SPLIT).unlink()
    (tmp_path / "data/dtd/images/banded/banded_0.jpg").write_bytes(b"mine")
    assert fetch(served, "dtd", "--yes")[0] == 0
    assert len(server.asked("dtd")) == 1
    assert len(server.asked("split")) == 2
    assert (tmp_path / "data/dtd/images/banded/banded_0.jpg").read_bytes() == b"mine"


def test_images_of_the_user_are_never_replaced(served, server, fetch, tmp_path):
    (tmp_path / "data/dtd/images").mkdir(parents=True)
    (tmp_path / "data/dtd/images/mine.jpg").touch()
    status, out = fetch(served, "dtd", "--yes")
    assert status == 1
    assert not server.asked("dtd")
    assert "dtd: incomplete: " in out
    assert "complete it, or move what is wrong out of the way" in out
    assert "images/mine.jpg" in " ".join(listing(tmp_path / "data/dtd"))


def test_archives_are_kept_on_demand(served, fetch, server, tmp_path):
    fetch(served, "dtd", "--yes", "--keep")
    cache = tmp_path / "data/.downloads/dtd"
    assert sorted(os.listdir(cache)) == sorted(["dtd.tar.gz", "fetched.json", SPLIT])
    shutil.rmtree(tmp_path / "data/dtd")
    count = len(server.requests)
    assert fetch(served, "dtd", "--yes")[0] == 0
    assert len(server.requests) == count
    assert os.listdir(cache) == ["fetched.json"]


def test_archive_put_there_by_hand_is_taken(served, fetch, server, tmp_path):
    cache = tmp_path / "data/.downloads/dtd"
    cache.mkdir(parents=True)
    (cache / "dtd.tar.gz").write_bytes(DTD)
    assert fetch(served, "dtd", "--yes")[0] == 0
    assert not server.asked("dtd")
    record = json.loads((cache / "fetched.json").read_text())
    assert record["dtd.tar.gz"]["from"] == str(cache / "dtd.tar.gz")


def test_wrong_checksum_then_mirror(served, server, fetch, tmp_path):
    bad = server.add("bad", DTD + b"\0")
    good = server.url("dtd")
    first = dataclasses.replace(
        served[0].files[0], addresses=(Address(bad), Address(good, "somebody"))
    )
    status, out = fetch(dtd_from(first, served[0].files[1]), "dtd", "--yes")
    assert status == 0
    aside = tmp_path / "data/.downloads/dtd/dtd.tar.gz.bad"
    assert f"its MD5 is {md5_of(DTD + bytes(1))}, but must be {md5_of(DTD)}; kept as {aside}" in out
    assert aside.read_bytes() == DTD + b"\0"
    assert f"dtd.tar.gz from {good}\n" in out  # not called unverified


def test_wrong_checksum_everywhere(served, server, fetch, tmp_path):
    first = dataclasses.replace(served[0].files[0], md5="0" * 32)
    status, out = fetch(dtd_from(first, served[0].files[1]), "dtd", "--yes")
    assert status == 1
    assert f"FAILED dtd.tar.gz: {server.url('dtd')}: its MD5 is {md5_of(DTD)}, but must be 0" in out
    assert "dtd: to be had by hand" in out
    assert "dtd: incomplete: no images" in out
    assert listing(tmp_path / "data/dtd") == [SPLIT]  # what could be had is there


def test_404_then_mirror(served, server, fetch):
    gone = dataclasses.replace(
        served[0].files[0], addresses=(Address(server.url("gone")), *served[0].files[0].addresses)
    )
    status, out = fetch(dtd_from(gone, served[0].files[1]), "dtd", "--yes")
    assert (status, "HTTP 404" in out) == (0, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8bdamaged", "no archive, or damaged|is damaged"),
        (tar_of({"dtd/pictures/a.jpg": b""}), r"lacks dtd/images; it holds \['dtd'\]"),
        (tar_of({"dtd/images/../../../../evil": b""}), "leads out of the archive"),
    ],
    ids=["damaged", "another layout", "escapes"],  # bytes of an archive change with the clock
)
def test_bad_archive_then_mirror(served, server, fetch, tmp_path, content, message):
    files = file_at("dtd.tar.gz", PLACES, server.add("bad", content), server.url("dtd"))
    status, out = fetch(dtd_from(files, served[0].files[1]), "dtd", "--yes")
    assert status == 0
    assert re.search(message, out)
    assert listing(tmp_path / "data/dtd") == [name.removeprefix("dtd/") for name in WHOLE]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>quota</html>", "it is no split file"),
        (b'{"train": [["../x", 0, "a"]], "val": [], "test": []}', "leaves the image directory"),
        (
            json.dumps({**LISTS, "val": []}).encode(),
            "it is another split: 2/0/2 images; the published one has 2/2/2",
        ),
    ],
)
def test_split_file_is_checked_by_its_counts(served, server, fetch, tmp_path, content, message):
    split = file_at(SPLIT, (("", SPLIT),), server.add("bad", content))
    status, out = fetch(dtd_from(served[0].files[0], split), "dtd", "--yes")
    assert status == 1
    assert message in out
    assert not (tmp_path / "data/dtd" / SPLIT).exists()


def test_one_of_two_archives_is_enough(server, fetch, know, tmp_path):
    """EuroSAT: the archive of the mirror is gone, that of the page has another folder name."""
    know("EuroSAT", 1, (1, 1, 1))
    lists = {part: [[f"River/River_{i}.jpg", 0, "River"]] for i, part in enumerate(PARTS)}
    images = {f"EuroSAT_RGB/River/River_{i}.jpg": b"" for i in range(3)}
    server.add("rgb", zip_of(images))
    server.add("split", json.dumps(lists).encode())
    real = row_of("eurosat").download.files
    urls = [server.url("gone"), server.url("rgb"), server.url("split")]
    files = tuple(
        dataclasses.replace(file, addresses=(Address(url),), md5="")
        for file, url in zip(real, urls, strict=True)
    )
    status, out = fetch([Download("eurosat", "", "MIT", files)], "eurosat", "--yes")
    assert status == 0
    assert "FAILED" not in out
    assert (tmp_path / "data/eurosat/2750/River/River_0.jpg").exists()
    assert len(server.requests) == 3


def test_archive_in_an_archive(server, fetch, know, tmp_path):
    """Caltech101's images are in an archive of their own."""
    know("Caltech101", 1, (1, 1, 1))
    lists = {part: [[f"accordion/{i}.jpg", 0, "accordion"]] for i, part in enumerate(PARTS)}
    inner = tar_of({f"101_ObjectCategories/accordion/{i}.jpg": b"" for i in range(3)})
    outer = zip_of({"caltech-101/101_ObjectCategories.tar.gz": inner, "__MACOSX/x": b""})
    urls = [server.add("c", outer), server.add("split", json.dumps(lists).encode())]
    files = tuple(
        dataclasses.replace(file, addresses=(Address(url),), md5="")
        for file, url in zip(row_of("caltech101").download.files, urls, strict=True)
    )
    assert fetch([Download("caltech101", "", "", files)], "caltech101", "--yes")[0] == 0
    assert sorted(os.listdir(tmp_path / "data/caltech-101")) == [
        "101_ObjectCategories", "split_zhou_Caltech101.json",
    ]  # fmt: skip


def test_optional_list_may_be_gone(served, server, fetch):
    lists = file_at("lists.zip", (("labels", "labels"),), server.url("gone"), optional=True)
    status, out = fetch(dtd_from(*served[0].files, lists), "dtd", "--yes")
    assert status == 0
    assert "FAILED optional: lists.zip: " in out
    assert "by hand" not in out
