"""Downloads from a server that drops, redirects, changes and refuses."""

import errno
import random
import time

import pytest

from scripts.data_tools import http as data_http
from scripts.data_tools.http import FetchError, Policy, download

DATA = random.Random(0).randbytes(50_000)
QUICK = Policy(attempts=3, wait=0.001, longest_wait=0.01, timeout=5)
ONCE = Policy(attempts=1, wait=0.001, timeout=5)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.zip"


def only(target):
    """The file is there and nothing else."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_whole_file(server, target):
    rooms = []
    download(server.add("a", DATA), target, QUICK, reserve=rooms.append)
    assert target.read_bytes() == DATA
    assert only(target)
    assert rooms == [len(DATA)]
    assert len(server.requests) == 1


def test_empty_file(server, target):
    download(server.add("a", b""), target, QUICK)
    assert target.read_bytes() == b""
    assert only(target)


def test_dropped_connection_is_resumed_by_range(server, target, capfd):
    rooms = []
    url = server.add("a", DATA, cut=[20_000, 10_000])
    download(url, target, QUICK, reserve=rooms.append)
    assert target.read_bytes() == DATA
    assert [request.range for request in server.requests] == [
        None, "bytes=20000-", "bytes=30000-",
    ]  # fmt: skip
    assert [request.if_range for request in server.requests] == [None, '"1"', '"1"']
    assert rooms == [50_000, 30_000, 20_000]
    assert "the connection ended after 20,000 of 50,000 bytes; again in" in capfd.readouterr().err


def test_progress_renews_the_patience(server, target):
    url = server.add("a", DATA, cut=[5_000] * 9)
    download(url, target, Policy(attempts=2, wait=0.001))
    assert target.read_bytes() == DATA
    assert len(server.requests) == 10


def test_next_call_goes_on_where_the_last_one_stopped(server, target):
    url = server.add("a", DATA, cut=[20_000, 0])
    with pytest.raises(FetchError, match=r"ended after 20,000 of 50,000 bytes \(1 attempts\)"):
        download(url, target, ONCE)
    assert not target.exists()
    download(url, target, ONCE)
    assert server.requests[-1].range == "bytes=20000-"
    assert target.read_bytes() == DATA
    assert only(target)


def test_stopped_before_the_new_name(server, target):
    """All bytes were there, the program was killed before it renamed the file."""
    url = server.add("a", DATA, cut=[49_999, 0])
    with pytest.raises(FetchError):
        download(url, target, ONCE)
    part = target.with_name("file.zip.part")
    part.write_bytes(DATA)
    count = len(server.requests)
    download(url, target, ONCE)
    assert target.read_bytes() == DATA
    assert len(server.requests) == count


def test_part_of_another_address_is_not_used(server, target):
    with pytest.raises(FetchError):
        download(server.add("a", b"x" * 9_000, cut=[4_000, 0]), target, ONCE)
    download(server.add("b", DATA), target, QUICK)
    assert server.asked("b")[0].range is None
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("note", ["", "[]", '{"url": 3}', None])
def test_part_that_nobody_knows_is_not_used(server, target, note):
    target.with_name("file.zip.part").write_bytes(b"x" * 100)
    if note is not None:
        target.with_name("file.zip.part.json").write_text(note)
    download(server.add("a", DATA), target, QUICK)
    assert target.read_bytes() == DATA
    assert only(target)


def test_server_without_ranges_starts_over(server, target):
    url = server.add("a", DATA, ranges=False, cut=[20_000])
    download(url, target, QUICK)
    assert target.read_bytes() == DATA
    assert len(server.requests) == 2


def test_server_without_ranges_that_always_drops_is_given_up(server, target):
    url = server.add("a", DATA, ranges=False, cut=[20_000] * 50)
    with pytest.raises(FetchError, match="3 attempts"):
        download(url, target, QUICK)
    assert len(server.requests) == 4


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("size", [50_000, 40_000])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": '"1"'}, {"etag": '"2"'}),
        (
            {"etag": "", "modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
            {"etag": "", "modified": "Wed, 22 Oct 2025 07:28:00 GMT"},
        ),
        (
            {"etag": 'W/"1"', "modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
            {"etag": 'W/"1"', "modified": "Wed, 22 Oct 2025 07:28:00 GMT"},
        ),
    ],
)
def test_changed_file_starts_over(server, target, before, after, size, heeds_if_range):
    url = server.add("a", b"x" * 50_000, cut=[20_000, 0], **before)
    with pytest.raises(FetchError):
        download(url, target, ONCE)
    server.add("a", DATA[:size], heeds_if_range=heeds_if_range, **after)
    download(url, target, QUICK)
    assert server.asked("a")[-1].range == (None if not heeds_if_range else "bytes=20000-")
    assert target.read_bytes() == DATA[:size]


def test_other_length_under_the_same_tag_starts_over(server, target):
    url = server.add("a", b"x" * 50_000, cut=[20_000, 0])
    with pytest.raises(FetchError):
        download(url, target, ONCE)
    server.add("a", DATA[:40_000])
    download(url, target, QUICK)
    assert target.read_bytes() == DATA[:40_000]


def test_file_that_shrank_below_the_part_starts_over(server, target):
    url = server.add("a", b"x" * 50_000, cut=[20_000, 0])
    with pytest.raises(FetchError):
        download(url, target, ONCE)
    server.add("a", DATA[:7_000], heeds_if_range=False)
    download(url, target, QUICK)
    assert [request.range for request in server.requests[-2:]] == ["bytes=20000-", None]
    assert target.read_bytes() == DATA[:7_000]


@pytest.mark.parametrize("tag", ["", 'W/"1"'])
def test_without_a_validator_nothing_is_resumed(server, target, tag):
    """A later part may be of another file, and no checksum need be known that would tell."""
    url = server.add("a", DATA, etag=tag, cut=[20_000])
    download(url, target, QUICK)
    assert [request.range for request in server.requests] == [None, None]
    assert target.read_bytes() == DATA


def test_redirects_are_followed_with_the_range(server, target):
    server.add("far/b", DATA, cut=[20_000])
    server.add("c", b"", redirect="/far/b")
    url = server.add("a", b"", redirect=server.url("c"))
    download(url, target, QUICK)
    assert target.read_bytes() == DATA
    assert [request.range for request in server.asked("far/b")] == [None, "bytes=20000-"]


def test_circle_of_redirects_is_refused(server, target):
    url = server.add("a", b"", redirect="/a")
    with pytest.raises(FetchError, match="302"):
        download(url, target, QUICK)
    assert len(server.requests) < 20


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusal_is_final(server, target, status):
    url = server.add("a", DATA, status=[status] * 9)
    with pytest.raises(FetchError, match=f"HTTP {status}"):
        download(url, target, QUICK)
    assert len(server.requests) == 1
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_passes(server, target, status):
    url = server.add("a", DATA, status=[status, status])
    download(url, target, QUICK)
    assert target.read_bytes() == DATA
    with pytest.raises(FetchError, match=rf"HTTP {status} .*\(3 attempts\)"):
        download(server.add("b", DATA, status=[status] * 9), target, QUICK)
    assert len(server.asked("b")) == 3


@pytest.mark.parametrize("when", ["number", "date"])
def test_server_says_how_long_to_wait(server, target, monkeypatch, when):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 7))
    headers = {"Retry-After": "7" if when == "number" else later}
    url = server.add("a", DATA, status=[503], headers=headers)
    download(url, target, Policy(wait=1))
    assert [wait for wait in waits if wait] == [pytest.approx(7, abs=2)]


def test_waits_are_doubled_up_to_a_bound(server, target, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    url = server.add("a", DATA, status=[500] * 9)
    with pytest.raises(FetchError):
        download(url, target, Policy(attempts=5, wait=1, longest_wait=3))
    assert waits == [1, 2, 3, 3]


def test_silence_is_a_dropped_connection(server, target):
    url = server.add("a", DATA[:3_000], stall=1.0)
    policy = Policy(attempts=2, wait=0.001, timeout=0.3)
    start = time.monotonic()
    server.pages["a"].ranges = False
    with pytest.raises(FetchError, match="timed out"):
        download(url, target, policy)
    assert time.monotonic() - start < 5


def test_nobody_listens(server, target):
    url = server.url("a").replace(str(server.port), "9")
    with pytest.raises(FetchError, match=r"refused.*\(3 attempts\)"):
        download(url, target, QUICK)


def test_web_page_is_not_the_file(server, target):
    url = server.add("a", b"<html>Please log in</html>", kind="text/html; charset=utf-8")
    with pytest.raises(FetchError, match="a web page came instead of the file"):
        download(url, target, QUICK)
    assert not list(target.parent.iterdir())


def test_server_that_tells_no_length(server, target):
    download(server.add("a", DATA, length=False), target, QUICK)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "a"])
def test_other_schemes_are_refused(target, url):
    with pytest.raises(FetchError, match="only http and https"):
        download(url, target, QUICK)


def test_no_room(server, target):
    def reserve(missing):
        raise OSError(f"{missing} are needed")

    with pytest.raises(OSError, match="50000 are needed"):
        download(server.add("a", DATA), target, QUICK, reserve=reserve)
    assert len(server.requests) == 1


def test_full_disk_is_no_fault_of_the_server(server, target, monkeypatch):
    """It must not be tried again, nor the next address."""

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data_http, "open", lambda *args: Full(), raising=False)
    with pytest.raises(OSError, match="No space left"):
        download(server.add("a", DATA), target, QUICK)
    assert len(server.requests) == 1


def test_missing_directory_is_no_fault_of_the_server(server, tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(NotADirectoryError):
        download(server.add("a", DATA), tmp_path / "file" / "a.zip", QUICK)
