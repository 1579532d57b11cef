"""``data.py fetch``: what it asks, refuses and explains, and how it goes on after a stop."""

import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from datasets.downloads import Download
from datasets.rows import row_of
from scripts import data
from tests.conftest import REPOSITORY
from tests.scripts.data_tools.conftest import DTD, NAMES, PLACES, dtd_from, file_at, listing
from tests.scripts.data_tools.data_server import md5_of, tar_of


def test_one_failure_does_not_stop_the_others(served, server, fetch, know, tmp_path):
    gone = Download("eurosat", "", "", (file_at("e.zip", (("2750", "2750"),), server.url("gone")),))
    status, out = fetch([gone, *served], "eurosat", "dtd", "--yes")
    assert status == 1
    assert "FAILED e.zip" in out
    assert listing(tmp_path / "data/dtd")


def test_login_is_explained(fetch, server):
    status, out = fetch(data.DOWNLOADS, "imagenet", "--yes")
    assert status == 1
    assert "ILSVRC2012_img_val.tar, about 6.3 GB, MD5 29b22e2961454d5413ddabcf34fc5622" in out
    assert "Register at https://www.image-net.org/download" in out
    assert "imagenet: missing" in out


def test_half_a_dataset_by_hand_is_explained_too(fetch, tmp_path):
    (tmp_path / "data/imagenet/images/train").mkdir(parents=True)
    status, out = fetch(data.DOWNLOADS, "imagenet", "--yes")
    assert status == 1
    assert "Register at" in out
    assert "imagenet: incomplete: " in out


def test_suite_needs_no_fetch(fetch, tmp_path):
    status, out = fetch([], "shapes", "--yes")
    assert (status, "shapes: nothing to fetch; it is drawn on first use" in out) == (0, True)
    assert not (tmp_path / "data").exists()


def test_dataset_without_a_known_source(fetch):
    status, out = fetch([], "dtd", "--yes")
    assert status == 1
    assert row_of("dtd").source in out


def test_protocol(fetch, monkeypatch):
    chosen = []
    monkeypatch.setattr(data, "choose_orders", lambda *args: chosen.append(args) or [])
    fetch([], "--protocol", "few_shot")
    assert chosen[0][0].protocol == "few_shot"
    monkeypatch.undo()
    args = data.build_parser().parse_args(["fetch", "--protocol", "cross_dataset"])
    orders = data.choose_orders(args, REPOSITORY / "configs/datasets", data.DOWNLOADS)
    assert {row.config for row, _ in orders} == {
        *data.protocol_datasets("few_shot", [], [row.config for row in data.ROWS]),
        "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dtdd"], "fetch: 'dtdd' is not available. Did you mean 'dtd'?"),
        ([], "name datasets, or give --protocol"),
        (["folder"], "folder: data of your own"),
        (["--protocol", "base2nov"], "Did you mean 'base2novel'"),
    ],
)
def test_bad_input(words, message, fetch, capsys):
    with pytest.raises(SystemExit) as stop:
        fetch([], *words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 1), ("", 1)])
def test_asks_before_downloading(served, server, fetch, monkeypatch, answer, status):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert fetch(served, "dtd")[0] == status
    assert bool(server.requests) == (status == 0)


def test_needs_yes_where_nobody_answers(served, server, fetch, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(SystemExit) as stop:
        fetch(served, "dtd")
    assert stop.value.code == 2
    assert "give --yes" in capsys.readouterr().err
    assert not server.requests


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("asked", [0, 1])
def test_full_disk(served, server, fetch, monkeypatch, asked):
    """Known sizes are checked before the first request, others before the first byte."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10**8 + len(DTD) // 2))
    files = [dataclasses.replace(file, size=0 if asked else file.size) for file in served[0].files]
    status, out = fetch(dtd_from(*files), "dtd", "--yes")
    assert status == 1
    assert "error: " in out
    assert "make room or choose another --root" in out
    assert len(server.requests) == asked


def test_two_fetches_do_not_mix(served, server, fetch, tmp_path):
    (tmp_path / "data/.downloads").mkdir(parents=True)
    with open(tmp_path / "data/.downloads/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, out = fetch(served, "dtd", "--yes")
    assert status == 1
    assert "another fetch is at work in" in out
    assert not server.requests
    assert fetch(served, "dtd", "--yes")[0] == 0


# A fetch of DTD from the address in argv, in a process of its own. Where tests run in the
# background of a shell, SIGINT is ignored unless told otherwise.
FETCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from datasets.downloads import Address, Download, RemoteFile
from scripts import data
places = (("dtd/images", "images"),)
file = RemoteFile("dtd.tar.gz", (Address(sys.argv[2]),), places, md5=sys.argv[3])
sys.exit(data.main(["fetch", "dtd", "--yes", "--root", sys.argv[4]],
                   table=[Download("dtd", "", "", (file,))]))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_stopped_fetch_goes_on(served, server, fetch, tmp_path, number, status):
    big = tar_of({f"dtd/images/{name}": os.urandom(10_000) for name in NAMES}, "w")
    url = server.add("big", big, stall=0.05)
    root = tmp_path / "data"
    part = root / ".downloads/dtd/dtd.tar.gz.part"
    command = [sys.executable, "-c", FETCH, str(REPOSITORY), url, md5_of(big), str(root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert server.started.wait(300)
        while process.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(300) == status
        said = process.stderr.read()
    assert ("the same command goes on from here" in said) == (status > 0)
    assert not (root / "dtd").exists()
    have = part.stat().st_size
    server.pages["big"].stall = 0.0
    first = file_at("dtd.tar.gz", PLACES, url, md5=md5_of(big))
    assert fetch(dtd_from(first, served[0].files[1]), "dtd", "--yes")[0] == 0
    assert server.asked("big")[1].range == f"bytes={have}-"
    assert len(listing(root / "dtd/images")) == 6
