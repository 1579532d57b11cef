"""A small DTD served on this machine, a table that points at it, ways to fetch and to check."""

import dataclasses
import json

import pytest

from datasets import table
from datasets.downloads import Address, Download, RemoteFile
from datasets.rows import row_of
from scripts import data
from scripts.data_tools.http import Policy
from tests.datasets.conftest import touch, write_split  # noqa: F401 - fixtures
from tests.scripts.data_tools.data_server import Server, md5_of, tar_of

QUICK = Policy(attempts=2, wait=0.001, timeout=5)
SPLIT = "split_zhou_DescribableTextures.json"
NAMES = [f"{label}/{label}_{i}.jpg" for label in ("banded", "dotted") for i in range(3)]
PARTS = {"train": (0, 3), "val": (1, 4), "test": (2, 5)}
LISTS = {
    part: [[NAMES[i], i // 3, NAMES[i].split("/")[0]] for i in chosen]
    for part, chosen in PARTS.items()
}
DTD = tar_of({f"dtd/images/{name}": b"picture" for name in NAMES} | {"dtd/labels/x.txt": b""})
PLACES = (("dtd/images", "images"),)


@pytest.fixture
def server():
    with Server().running() as running:
        yield running


@pytest.fixture
def know(monkeypatch):
    """Let the table know the counts of a small copy of a dataset."""

    def change(name, classes=2, counts=(2, 2, 2)):
        old = row_of(name)
        row = dataclasses.replace(old, num_classes=classes, counts=counts)
        monkeypatch.setattr(getattr(table, name), "row", row)
        monkeypatch.setattr(data, "ROWS", [row if r.name == name else r for r in data.ROWS])

    return change


@pytest.fixture
def check(capsys):
    """Run the check; return the exit status, what it printed and the datasets of its JSON."""

    def run_it(*words):
        capsys.readouterr()
        status = data.main(["check", *map(str, words)])
        out = capsys.readouterr().out
        found = {}
        if "--json" in words:
            found = {entry["config"]: entry for entry in json.loads(out)["datasets"]}
        return status, out, found

    return run_it


@pytest.fixture
def fetch(tmp_path, capsys):
    """Fetch from a table; return the exit status and all that was printed."""

    def run_it(downloads, *words, root=None):
        capsys.readouterr()
        words = [*words, "--root", str(root or tmp_path / "data")]
        status = data.main(["fetch", *words], table=downloads, policy=QUICK)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run_it


def file_at(name, places, *urls, **values):
    return RemoteFile(name, tuple(Address(url) for url in urls), places, **values)


def dtd_from(*files):
    return [Download("dtd", "https://dtd.example.org", "for research", files)]


@pytest.fixture
def served(server, know):
    """DTD as it would be served, and how to get it."""
    know("DescribableTextures")
    return dtd_from(
        file_at("dtd.tar.gz", PLACES, server.add("dtd", DTD), md5=md5_of(DTD), size=len(DTD)),
        file_at(SPLIT, (("", SPLIT),), server.add("split", json.dumps(LISTS).encode())),
    )


def listing(directory):
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


WHOLE = sorted([f"dtd/images/{name}" for name in NAMES] + [f"dtd/{SPLIT}"])
KEPT = [".downloads/dtd/fetched.json"]
