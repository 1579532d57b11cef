"""Files of arrays: every format, as its own library writes it, and what is refused of it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dassl.data.features import arrays as module
from dassl.data.features.arrays import MissingPackageError, read_arrays, write_arrays

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError:  # an extra; requirements-dev.txt has it
    pa = parquet = None

needs_arrow = pytest.mark.skipif(pa is None, reason="pyarrow is not installed")

NAMES = ("features", "labels", "classnames")
FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3) + 0.1
VIEWS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
LABELS = np.array([0, 1, 1, 0])
CLASSES = ["cat", "déjà vu"]
CLASS_LABEL = {"info": {"features": {"labels": {"names": CLASSES, "_type": "ClassLabel"}}}}


def table(features=FEATURES, huggingface=False, rows=slice(None)):
    """As pandas or ``datasets`` make one: lists of floats of no declared length."""
    columns = {"features": features[rows].tolist(), "labels": LABELS[rows].tolist()}
    kinds = pa.list_(pa.float32()) if features.ndim == 2 else pa.list_(pa.list_(pa.float32()))
    schema = pa.schema([("features", kinds), ("labels", pa.int64())])
    if huggingface:
        schema = schema.with_metadata({"huggingface": json.dumps(CLASS_LABEL)})
    return pa.table(columns, schema=schema)


def write_stream(path: Path, content) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)


def save_to_disk(folder: Path) -> Path:
    """The layout of ``datasets.Dataset.save_to_disk``, in two files."""
    folder.mkdir(parents=True)
    files = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for file, rows in zip(files, (slice(0, 1), slice(1, 4)), strict=True):
        write_stream(folder / file, table(huggingface=True, rows=rows))
    state = {"_data_files": [{"filename": file} for file in files], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps(CLASS_LABEL["info"]))
    return folder


def write_foreign(path: Path, features=FEATURES) -> None:
    """Write a file with the library that its format belongs to."""
    if path.suffix == ".npz":
        np.savez_compressed(path, features=features, labels=LABELS, classnames=CLASSES)
    elif path.suffix in (".pt", ".pth"):
        content = {"features": torch.from_numpy(features), "labels": torch.from_numpy(LABELS)}
        torch.save({**content, "classnames": CLASSES}, path)
    elif path.suffix == ".safetensors":
        content = {"features": torch.from_numpy(features), "labels": torch.from_numpy(LABELS)}
        save_file(content, path, metadata={"classnames": json.dumps(CLASSES), "format": "pt"})
    elif path.suffix == ".parquet":
        parquet.write_table(table(features, huggingface=True), path)
    elif path.suffix == ".feather":
        content = table(features, huggingface=True)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, content.schema) as writer:
            writer.write_table(content)
    else:
        write_stream(path, table(features, huggingface=True))


TABLES = [pytest.param(name, marks=needs_arrow) for name in (".parquet", ".arrow", ".feather")]
SUFFIXES = (".npz", ".pt", ".pth", ".safetensors", *TABLES)


@pytest.mark.parametrize("features", [FEATURES, VIEWS], ids=["rows", "views"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_arrays(tmp_path, suffix, features):
    path = tmp_path / f"file{suffix}"
    write_foreign(path, features)
    found, present = read_arrays(path, NAMES)
    assert found["features"].dtype == np.float32
    assert np.array_equal(found["features"], features)
    assert np.array_equal(found["labels"], LABELS)
    assert found["classnames"] == CLASSES
    assert {"features", "labels"} <= set(present)
    torch.from_numpy(found["features"])[0] = 0  # it is ours to write to


@needs_arrow
def test_folder_of_hugging_face(tmp_path):
    found, _ = read_arrays(save_to_disk(tmp_path / "birds/train"), NAMES)
    assert np.array_equal(found["features"], FEATURES)
    assert np.array_equal(found["labels"], LABELS)
    assert found["classnames"] == CLASSES
    (tmp_path / "birds/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="several splits; name one, such as birds/train"):
        read_arrays(tmp_path / "birds", NAMES)
    with pytest.raises(ValueError, match="a folder without state.json"):
        read_arrays(tmp_path, NAMES)


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_a_lone_array_stands_for_the_first_name(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    if suffix == ".npy":
        np.save(path, FEATURES)
    else:
        torch.save(torch.from_numpy(FEATURES), path)
    found, present = read_arrays(path, NAMES)
    assert found.keys() == {"features"}
    assert present == ["features"]
    assert np.array_equal(found["features"], FEATURES)


@pytest.mark.parametrize(
    ("text", "expected"), [("0\n1\n\n12", [0, 1, 12]), ("cat\n7", ["cat", "7"])]
)
def test_lines_are_labels(tmp_path, text, expected):
    (tmp_path / "labels.txt").write_text(text)
    found, _ = read_arrays(tmp_path / "labels.txt", ("labels",))
    assert list(found["labels"]) == expected


def test_types_that_numpy_lacks_or_others_wrote(tmp_path):
    np.savez(
        tmp_path / "big.npz", features=FEATURES.astype(">f4"), classnames=np.array([b"caf\xc3\xa9"])
    )
    found, _ = read_arrays(tmp_path / "big.npz", NAMES)
    assert torch.from_numpy(found["features"]).tolist() == FEATURES.tolist()
    assert found["classnames"] == ["café"]
    half = torch.from_numpy(FEATURES).bfloat16()
    save_file({"features": half}, tmp_path / "half.safetensors")
    torch.save({"features": half}, tmp_path / "half.pt")
    for name in ("half.safetensors", "half.pt"):
        found, _ = read_arrays(tmp_path / name, NAMES)
        assert np.array_equal(found["features"], half.float().numpy())


@needs_arrow
def test_names_by_number(tmp_path):
    names = pa.array(["cat", "dog", "cat"]).dictionary_encode()
    parquet.write_table(pa.table({"labels": names}), tmp_path / "names.parquet")
    assert read_arrays(tmp_path / "names.parquet", NAMES)[0]["labels"] == ["cat", "dog", "cat"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", TABLES[0]])
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / "deep" / f"file{suffix}"
    arrays = {"features": VIEWS, "labels": LABELS, "paths": ["a b.jpg", "é.jpg", "c", "d"]}
    arrays |= {"classnames": CLASSES, "logit_scale": np.float32(4.6052)}
    write_arrays(path, arrays)
    found, present = read_arrays(path, tuple(arrays))
    assert set(present) == set(arrays)
    assert np.array_equal(found["features"], VIEWS)
    assert found["features"].dtype == np.float32
    assert np.array_equal(found["labels"], LABELS)
    assert (found["paths"], found["classnames"]) == (arrays["paths"], CLASSES)
    assert np.float32(found["logit_scale"]) == np.float32(4.6052)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half written


def test_other_suffixes(tmp_path):
    (tmp_path / "file.csv").write_text("a")
    with pytest.raises(ValueError, match=r"'\.csv'; read are \.npz, .*save_to_disk"):
        read_arrays(tmp_path / "file.csv", NAMES)
    with pytest.raises(ValueError, match=r"'\.pt'; written are \.npz, \.safetensors, \.parquet"):
        write_arrays(tmp_path / "file.pt", {"features": FEATURES})


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".npy"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_half_written_files_are_one_line(tmp_path, suffix, share):
    path = tmp_path / f"file{suffix}"
    if suffix == ".npy":
        np.save(path, FEATURES)
    else:
        write_foreign(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="damaged, half written") as caught:
        read_arrays(path, NAMES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


def test_no_code_runs(tmp_path, capsys):
    torch.save({"features": torch.ones(2, 2), "labels": Trap()}, tmp_path / "trap.pt")
    assert read_arrays(tmp_path / "trap.pt", NAMES)[0].keys() == {"features"}
    trap = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "trap.npz", classnames=trap)
    np.save(tmp_path / "trap.npy", trap)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.npz", "trap.npy", "pickle.npy"):
        with pytest.raises(ValueError, match="pickle may run code"):
            read_arrays(tmp_path / name, ("classnames",))
    assert "code ran" not in capsys.readouterr().out


@needs_arrow
def test_cells_that_make_no_array(tmp_path):
    parquet.write_table(pa.table({"features": [[1.0, 2.0], [3.0]]}), tmp_path / "ragged.parquet")
    parquet.write_table(pa.table({"features": [[1.0], None]}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"'features' has lists of different lengths: \[1, 2\]"):
        read_arrays(tmp_path / "ragged.parquet", NAMES)
    with pytest.raises(ValueError, match=r"'features' has 1 empty cell"):
        read_arrays(tmp_path / "empty.parquet", NAMES)


@pytest.mark.parametrize(
    ("suffix", "package"),
    [pytest.param(".parquet", "pyarrow", marks=needs_arrow), (".safetensors", "safetensors")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, suffix, package):
    path = tmp_path / f"file{suffix}"
    write_foreign(path)

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(module, "import_module", missing)
    for use in (read_arrays, write_arrays):
        argument = NAMES if use is read_arrays else {"features": FEATURES}
        with pytest.raises(MissingPackageError, match=f"needs {package}: pip install {package}$"):
            use(path, argument)
