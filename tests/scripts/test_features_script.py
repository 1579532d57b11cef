import json
import os
import subprocess

import numpy as np
import pytest

from dassl.data.features.cache import FeatureCache, list_cache
from scripts import features
from tests.conftest import REPOSITORY


@pytest.fixture
def cache(tmp_path):
    directory = tmp_path / "cache"
    for rows, (dataset, split, view) in (
        (200, ("Pets", "val", {})),
        (400, ("Dtd", "train", {"view": 10})),
        (400, ("Dtd", "train", {"view": 2})),
        (800, ("Dtd", "test", {})),
    ):
        values = np.zeros((rows, 128), np.float32)
        FeatureCache(directory).fetch(
            {"dataset": dataset, "split": split, "backbone": "ViT-B/16", **view},
            rows,
            lambda writer, values=values: writer.add(range(len(values)), values),
        )
    return directory


def run(capsys, *arguments):
    capsys.readouterr()
    code = features.main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def test_list_is_a_table_in_order(cache, capsys):
    code, text, _ = run(capsys, "list", "--dir", cache)
    rows = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows[0] == ["dataset", "split", "backbone", "images", "size", "age"]
    assert [row[:5] for row in rows[2:6]] == [
        ["Dtd", "test", "ViT-B/16", "800", "0.4 MiB"],
        ["Dtd", "train, view 2", "ViT-B/16", "400", "0.2 MiB"],
        ["Dtd", "train, view 10", "ViT-B/16", "400", "0.2 MiB"],
        ["Pets", "val", "ViT-B/16", "200", "0.1 MiB"],
    ]
    assert all(row[5].endswith(" s") for row in rows[2:6])
    assert text.endswith("\n\n4 entries, 0.9 MiB\n")
    assert code == 0


def test_list_as_json(cache, capsys):
    code, text, _ = run(capsys, "list", "--dir", cache, "--json")
    first = json.loads(text)[0]
    assert first["bytes"] == sum(
        os.path.getsize(os.path.join(first["path"], name)) for name in os.listdir(first["path"])
    )
    assert (first["dataset"], first["split"], first["images"]) == ("Dtd", "test", 800)
    assert first["unreadable"] == 0
    assert first["key"]["backbone"] == first["backbone"] == "ViT-B/16"
    assert code == 0


def test_clear_says_what_was_freed(cache, capsys):
    (cache / "notes.txt").write_text("mine")
    code, text, _ = run(capsys, "clear", "--dir", cache, "--dataset", "Dtd")
    assert code == 0
    assert text.count("removed Dtd-") == 3
    assert "3 entries removed, 0.8 MiB freed" in text
    assert "left alone, no cache entries: notes.txt" in text
    assert [entry.key["dataset"] for entry in list_cache(cache)] == ["Pets"]

    code, text, _ = run(capsys, "clear", "--dir", cache)
    assert "1 entries removed, 0.1 MiB freed" in text
    assert os.listdir(cache) == ["notes.txt"]


def test_refusals(cache, tmp_path, capsys):
    code, _, error = run(capsys, "clear", "--dir", cache, "--dataset", "Dtx")
    assert (code, len(list_cache(cache))) == (1, 4)
    assert "--dataset: no features of 'Dtx'; there are Dtd, Pets" in error

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    for command in ("clear", "list"):
        code, text, error = run(capsys, command, "--dir", tmp_path / "none")
        assert code == 1
        assert "--dir: no folder" in error
    code, _, error = run(capsys, "clear", "--dir", tmp_path / "photos")
    assert code == 1
    assert "holds no cache entry; left alone, no cache entries: a.jpg" in error
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]


def test_ages():
    ages = [features.age(seconds) for seconds in (-1, 59.9, 60, 3599, 7300, 200_000)]
    assert ages == ["0 s", "59 s", "1 min", "59 min", "2 h", "2 d"]


def test_runs_from_anywhere(cache, forking_python):
    command = [str(forking_python), str(REPOSITORY / "scripts/features.py"), "list"]
    done = subprocess.run(
        [*command, "--dir", "cache"], cwd=cache.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "4 entries, 0.9 MiB" in done.stdout
