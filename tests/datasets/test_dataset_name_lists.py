"""Lists of class names in every form that has one meaning; the others are refused."""

from pathlib import Path

import pytest

from datasets.classnames import read_class_names, read_name_list
from datasets.imagenet import read_wnid_names
from datasets.readers import read_lines
from scripts.describe import names_to_describe as read_for_descriptions
from scripts.training.predict_files import read_names as read_for_predict

THREE = ["chat noir", "café", "red, dog"]
PRESENT = ["one", "two", "three"]


def in_class_names(path: Path) -> list[str]:
    return read_class_names(path, PRESENT)


EVERY = pytest.mark.parametrize("read", [in_class_names, read_for_predict, read_for_descriptions])


@EVERY
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "chat noir\ncafé\nred, dog\n"),
        ("a.txt", "chat noir\r\n\r\n  café\t\r\nred, dog"),
        ("a.txt", "chat noir\rcafé\rred, dog\r"),
        ("a.names", '"chat noir"\n"café"\n"red, dog"\n'),
        ("a.txt", "0 chat noir\n1 café\n2 red, dog\n"),
        ("a.txt", "2,red, dog\n0,chat noir\n1,café\n"),
        ("a.txt", "1\tchat noir\n2\tcafé\n3\tred, dog\n"),
        ("a.txt", "0: chat noir\n1: café\n2: red, dog\n"),
        ("a.txt", '["chat noir", "café", "red, dog"]'),
        ("a.json", '["chat noir", "café", "red, dog"]'),
        ("a.json", '{"0": "chat noir", "2": "red, dog", "1": "café"}'),
        ("a.json", '{"chat noir": 0, "red, dog": 2, "café": 1}'),
        ("a.csv", 'name\nchat noir\ncafé\n"red, dog"\n'),
        ("a.csv", 'chat noir\ncafé\n"red, dog"\n'),
        ("a.csv", 'label,name\n1,café\n0,chat noir\n2,"red, dog"\n'),
        ("a.csv", 'Label;Class\n1;café\n0;chat noir\n2;"red, dog"\n'),
        ("a.csv", '"red, dog",2\ncafé,1\nchat noir,0\n'),
        ("a.csv", 'name,kind\nchat noir,cat\ncafé,place\n"red, dog",dog\n'),
        ("a.tsv", "id\tlabel\n1\tchat noir\n2\tcafé\n3\tred, dog\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_form_gives_the_same_names(tmp_path, read, name, text, encoding) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    assert read(path) == THREE


@EVERY
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "cat\ncaf\xe9\n".encode("latin-1"), r"line 2: not UTF-8 \(.*'café'.*iconv"),
        ("a.csv", "name\ncaf\xe9\n".encode("latin-1"), r"a\.csv, line 2: not UTF-8 \(byte 0xe9\)"),
        ("a.json", '["caf\xe9"]'.encode("latin-1"), r"is not valid JSON.*line 1: not UTF-8"),
        ("a.txt", "cat\ndog\n".encode("utf-16-le"), "line 1: holds zero bytes.*UTF-16 without"),
        ("a.txt", b"\xff\xfec\0a", "damaged UTF-16"),
        ("a.txt", b"1 euro\n2 euro\n3 euro\n", "lines begin with numbers .'1 euro'.*may be labels"),
        ("a.txt", b"0 cat\n2 dog\n5 cow\n", "lines begin with numbers .'0 cat'"),
        ("a.txt", b"4,cat\n7,dog\n", "lines begin with numbers .'4,cat'"),
        ("a.txt", b"cat, dog, cow\n", r"a\.txt:1: 'cat, dog, cow' holds several names"),
        ("a.txt", b"cat\tfeline\ndog\tcanine\n", r"a\.txt:1: .* holds several names or columns"),
        ("a.txt", b"# animals\ncat\ndog\n", r"a\.txt:1: '# animals' looks like a comment"),
        ("a.txt", b"classname\ncat\ndog\n", r"a\.txt:1: 'classname' looks like a heading"),
        ("a.txt", b"n01440764 tench\nn01443537\n", r"a\.txt:2: 'n01443537' names no wnid"),
        ("a.txt", b"n01440764 tench\nn01440764 cod\n", r"a\.txt:2: .* repeats a wnid"),
        ("a.json", b'{"0": "cat", "0": "dog"}', "the key '0' is there 2 times"),
        ("a.csv", b"cat,feline\ndog,canine\n", "which of its columns .*'cat', 'feline'"),
        ("a.csv", b"id,name\n0,cat\n5,dog\n", "labels do not run from 0 to 1"),
        ("a.csv", b"id,name\n0,cat\n1\n", r"the row \['1'\] is unlike the first"),
        ("a.csv", b'name\n"cat\n', "is not a table"),
        ("a.yaml", b"- cat\n- dog\n", r"ends in \.yaml, which is not read"),
    ],
)  # fmt: skip
def test_what_has_no_one_meaning_is_refused(tmp_path, read, name, content, said) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "CLASSNAMES" in str(error.value).upper()


def test_numbers_that_belong_to_names_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("2012 Audi TTS\n2007 Dodge Dakota\n", "7 up\ncola\n", "1 cat", "C#\n#2\n"):
        path.write_text(text)
        assert read_name_list(path, "x") == text.strip().split("\n")


def test_names_by_wnid(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("n01440764 tench\nn01443537 goldfish\nn01484850, great white shark\n")
    names = ["tench", "goldfish", "great white shark"]
    assert read_for_predict(path) == names
    assert read_for_descriptions(path) == names
    present = ["n01484850", "n01440764"]
    assert read_class_names(path, present) == ["great white shark", "tench"]
    with pytest.raises(ValueError, match="class 'owl' of the dataset is no wnid"):
        read_class_names(path, ["owl", "wren"])
    with pytest.raises(ValueError, match="class 'n01491361' of the dataset is not in it"):
        read_class_names(path, ["n01440764", "n01491361"])
    path.write_text("n01443537 goldfish\nn01440764 tench\n")
    with pytest.raises(ValueError, match="by wnid, which are not sorted"):
        read_for_predict(path)


def test_the_names_of_descriptions_are_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"cat": ["a furry pet"], "dog": ["it barks"]}')
    assert read_for_descriptions(path) == ["cat", "dog"]
    with pytest.raises(ValueError, match="must hold a list of names"):
        read_for_predict(path)


def test_a_name_that_is_missing_is_no_shorter_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('["cat", " ", "dog"]')
    with pytest.raises(ValueError, match="no name for label 1"):
        read_for_predict(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_datasets_are_read_in_the_same_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "classnames.txt"
    path.write_bytes("n01440764 tench\r\n\r\nn01443537\tpoisson doré\r\n".encode(encoding))
    assert read_lines(path, "")[1] == (f"{path}:3", "n01443537\tpoisson doré")
    assert read_wnid_names(path) == {"n01440764": "tench", "n01443537": "poisson doré"}
    path.write_bytes("n01440764 tench\nn01443537 poisson doré\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classnames\.txt, line 2: not UTF-8 .*poisson doré"):
        read_wnid_names(path)
