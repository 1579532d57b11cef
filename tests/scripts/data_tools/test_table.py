"""The table of downloads: complete, consistent with the readers, and what DATASETS.md says."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torchvision
import torchvision.datasets

from datasets.downloads import TORCHVISION, Download, RemoteFile, download_of
from datasets.rows import DOWNLOADS, ROWS, row_of
from scripts import data
from scripts.data_tools.guide import file_line, updated
from scripts.data_tools.output import format_size, list_json
from tests.conftest import REPOSITORY

GUIDE = (REPOSITORY / "DATASETS.md").read_text()
every = pytest.mark.parametrize("download", DOWNLOADS, ids=lambda download: download.config)
FILES = [(download, file) for download in DOWNLOADS for file in download.files]


def section(download: Download) -> str:
    """DATASETS.md on one dataset."""
    text = GUIDE.split(f"### {row_of(download.config).name}\n")[1]
    return re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0]


def test_every_published_dataset_can_be_had() -> None:
    configs = [download.config for download in DOWNLOADS]
    assert sorted(configs) == sorted(row.config for row in ROWS if row.published)
    assert download_of("dtd", DOWNLOADS).config == "dtd"
    assert download_of("shapes", DOWNLOADS) is row_of("shapes").download is None


def test_documentation_is_what_the_rows_make() -> None:
    assert updated(GUIDE) == GUIDE


@pytest.mark.parametrize(
    "fact", ["4,128 / 1,649", "| 60.86 |", "`{} texture.`", "fff73e5086ae6bdbea199a49dfb8a4c1"]
)
def test_what_differs_from_the_rows_is_found(fact: str) -> None:
    assert GUIDE.count(fact) == 1
    assert updated(GUIDE.replace(fact, "1")) == GUIDE


def test_a_guide_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 places for '\| dataset \| LightRA"):
        updated(GUIDE.replace("| dataset | LightRA |", "| Dataset | LightRA |"))


@every
def test_documentation_lists_the_same_files(download: Download) -> None:
    listed = [line for line in section(download).splitlines() if line.startswith("  - `")]
    assert listed == [file_line(file) for file in download.files]


@every
def test_documentation_has_page_and_licence(download: Download) -> None:
    text = section(download)
    assert f"<{download.page}>" in text
    (licence,) = re.findall(r"^- Licence: (.*)$", text, re.MULTILINE)
    assert licence.startswith(download.licence)


def test_documentation_has_no_other_address_of_data() -> None:
    """Addresses are kept in one place; what is listed must be in the table."""
    known = {address.url for _, file in FILES for address in file.addresses}
    known |= {download.page for download in DOWNLOADS}
    getting = GUIDE.split("## Getting the data")[1].split("\n## ")[0]
    assert set(re.findall(r"<(https?://[^>]+)>", getting)) == known


@pytest.mark.parametrize(("download", "file"), FILES)
def test_files_fit_the_layout(download: Download, file: RemoteFile) -> None:
    row = row_of(download.config)
    assert re.fullmatch(r"[0-9a-f]{32}|", file.md5)
    assert len({address.url for address in file.addresses}) == len(file.addresses)
    for address in file.addresses:
        assert urlsplit(address.url).scheme in ("http", "https")
        assert address.listed_by in ("", TORCHVISION)
    assert bool(file.places) == bool(file.addresses)
    for inside, place in file.places:
        assert bool(inside) == file.is_archive
        assert place
        assert not {".", ".."} & set(Path(place).parts)
    if file.name.startswith("split_zhou_"):
        assert file.name == row.split_file
        assert file.places == (("", row.split_file),)


@every
def test_all_that_a_run_needs_is_fetched(download: Download) -> None:
    row = row_of(download.config)
    assert download.automatic or download.by_hand
    if not download.automatic:
        return
    places = {place for file in download.files if not file.optional for _, place in file.places}
    # Stanford Cars' images lie in two directories of which the reader knows none.
    images = {row.images} if row.images else {"cars_train", "cars_test"}
    assert places >= images | ({row.split_file} if row.split_file else set())


def version_of(package) -> tuple[int, ...]:
    return tuple(int(part) for part in package.__version__.split("+")[0].split(".")[:2])


@pytest.mark.parametrize(
    ("download", "file"),
    [(d, f) for d, f in FILES if any(address.listed_by == TORCHVISION for address in f.addresses)],
)
def test_torchvision_lists_what_it_is_said_to_list(download: Download, file: RemoteFile) -> None:
    source = "".join(
        path.read_text() for path in Path(torchvision.datasets.__file__).parent.glob("*.py")
    )
    if file.md5 not in source and version_of(torchvision) < (0, 29):
        pytest.skip(f"torchvision {torchvision.__version__} lists an earlier archive")
    for address in file.addresses:
        # Some addresses are put together from a folder and a name.
        folder, _, name = address.url.rpartition("/")
        assert address.url in source or (f"{folder}/" in source and f'"{name}"' in source)
    assert file.md5 in source


def test_alternatives_are_counted_once() -> None:
    assert row_of("eurosat").download.size == 94 * 10**6
    assert row_of("ucf101").download.size == 0
    assert [format_size(row_of(name).download.size) for name in ("imagenet", "dtd", "sun397")] == [
        "144 GB", "600 MB", "37 GB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (94e6, "94 MB"), (5e9, "5 GB"),
     (6.34e9, "6.3 GB"), (138e9, "138 GB")],
)  # fmt: skip
def test_sizes(size: float, text: str) -> None:
    assert format_size(size) == text


def test_list_is_a_table(capsys) -> None:
    assert data.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line for line in lines[2:] if line and line[0] != "*"}
    assert table.keys() == {row.config for row in ROWS}
    assert re.split(r"\s{2,}", table["dtd"]) == [
        "dtd", "47", "2,820/1,128/1,692", "about 600 MB", "fetch *", "for research purposes",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ]  # fmt: skip
    assert "by hand" in table["imagenet"]
    assert "fetch *" not in table["fgvc_aircraft"]  # torchvision lists its archive
    assert "960/240/1,000" in table["shapes"]
    assert "drawn on first use" in table["shapes"]
    assert "* an address of it is unverified" in lines[-1]


def test_list_as_json(capsys) -> None:
    assert data.main(["list", "--json"]) == 0
    content = {entry["config"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(content.values()) == list_json(
        sorted(ROWS, key=lambda row: list(content).index(row.config)), DOWNLOADS
    )
    assert content["imagenet"]["how"] == "by hand"
    assert content["imagenet"]["by_hand"].startswith("Register at")
    first = content["dtd"]["files"][0]
    assert (first["bytes"], first["md5"]) == (600 * 10**6, "fff73e5086ae6bdbea199a49dfb8a4c1")
    assert first["addresses"] == [
        {
            "url": "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "listed_by": "torchvision",
        }
    ]
    assert content["dtd"]["files"][1]["addresses"][0]["listed_by"] is None
    assert content["shapes"]["counts"] == [960, 240, 1000]
