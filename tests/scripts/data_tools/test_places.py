"""What comes out of an archive appears in its place whole or not at all, even after a kill."""

import os
import signal
import subprocess
import sys

import pytest

from scripts.data_tools.archives import ArchiveError
from scripts.data_tools.places import unpack
from tests.conftest import REPOSITORY
from tests.scripts.data_tools.data_server import content, tar_of, zip_of


def test_places(tmp_path):
    path = tmp_path / "a.tar.gz"
    files = {"d/images/a.jpg": b"1", "d/list.txt": b"2", "d/other/b": b"3", "__MACOSX/x": b"4"}
    path.write_bytes(tar_of(files))
    places = (("d/images", "images"), ("d/list.txt", "lists/all.txt"))
    unpack(path, tmp_path / "data", places)
    assert content(tmp_path / "data") == {"images/a.jpg": b"1", "lists/all.txt": b"2"}
    assert sorted(os.listdir(tmp_path / "data")) == ["images", "lists"]


def test_what_is_in_place_is_left_alone(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of({"images/a.jpg": b"1", "labels/b": b"2"}))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"mine")
    (tmp_path / "labels").mkdir()  # empty: nothing is there yet
    unpack(path, tmp_path, (("images", "images"), ("labels", "labels")))
    assert content(tmp_path / "images") == {"mine.jpg": b"mine"}
    assert content(tmp_path / "labels") == {"b": b"2"}


def test_archive_in_an_archive(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of({"c/in.tar.gz": tar_of({"images/a.jpg": b"1"}), "c/x": b""}))
    unpack(path, tmp_path / "data", (("images", "images"),), "c/in.tar.gz")
    assert content(tmp_path / "data") == {"images/a.jpg": b"1"}
    with pytest.raises(ArchiveError, match=r"a\.zip lacks c/in\.tar$"):
        unpack(path, tmp_path / "data", (("images", "images"),), "c/in.tar")
    assert os.listdir(tmp_path / "data") == ["images"]


def test_archive_that_lacks_something_leaves_nothing(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of({"images/a.jpg": b"1"}))
    with pytest.raises(ArchiveError, match=r"lacks labels; it holds \['images'\]"):
        unpack(path, tmp_path / "data", (("images", "images"), ("labels", "labels")))
    assert not list((tmp_path / "data").iterdir())


# Unpacks with a pause after each file, and says when it has begun.
SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from scripts.data_tools import archives, places
members = archives._members
def slowly(*args):
    for member in members(*args):
        yield member
        print("one", flush=True)
        time.sleep(0.2)
archives._members = slowly
places.unpack(Path(sys.argv[2]), Path(sys.argv[3]), (("images", "images"),))
"""


def test_kill_while_unpacking(tmp_path):
    path, data = tmp_path / "a.tar.gz", tmp_path / "data"
    files = {f"images/{i}.jpg": os.urandom(100) for i in range(100)}
    path.write_bytes(tar_of(files))
    command = [sys.executable, "-c", SLOW, str(REPOSITORY), str(path), str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "one\n"
        assert process.stdout.readline() == "one\n"
        process.send_signal(signal.SIGKILL)
    # Some images are on the disk, but not where a dataset would look for them.
    assert content(data)
    assert [name[0] for name in os.listdir(data)] == ["."]
    unpack(path, data, (("images", "images"),))
    assert content(data) == files
    assert os.listdir(data) == ["images"]
