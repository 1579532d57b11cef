"""``train.py --predict``, end to end: tables read back, classes, unreadable pictures, errors."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer, read_result
from dassl.results import write_result
from datasets.listing import LeftOut
from datasets.rows import ROW_OF
from scripts.training.predict_files import find_images, read_names

CLASSES = ("solid_blue_square", "dotted_red_square", "striped_pink_star")


@pytest.fixture
def pictures(shapes_root, tmp_path) -> Path:
    """Two pictures of each of three classes."""
    for label in CLASSES:
        for path in sorted(Path(shapes_root, "shapes/v2/test", label).glob("*.png"))[:2]:
            (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "pictures" / label / path.name)
    return tmp_path / "pictures"


@pytest.fixture
def predict(tmp_path):
    """(flags and words) -> exit status and, if a file was asked for, its content."""

    def run(*words: str | Path, output: str = "found.json"):
        file = tmp_path / output
        command = [str(word) for word in words] + ["--predict-output", str(file)]
        with pytest.raises(SystemExit) as stop:
            train.main([*command, "--device", "cpu", "--", "DATALOADER.NUM_WORKERS", "0"])
        if not file.is_file():
            return stop.value.code, None
        if output.endswith(".csv"):
            return stop.value.code, list(csv.DictReader(file.open()))
        return stop.value.code, json.loads(file.read_text())

    return run


@pytest.fixture
def names(tmp_path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(name.replace("_", " ") for name in CLASSES) + "\n\n")
    return file


def zero_shot(names: Path) -> tuple[str, ...]:
    return ("--backbone", "shapes", "--classnames", str(names))


def test_zero_shot_as_json(predict, pictures, names):
    status, found = predict("--predict", pictures, "--top-k", "2", *zero_shot(names))
    assert status == 0
    assert found["trainer"] == "ZeroshotCLIP"
    assert found["classnames"] == ["solid blue square", "dotted red square", "striped pink star"]
    assert found["unreadable"] == {}
    paths = [entry["image"] for entry in found["images"]]
    assert paths == sorted(str(p) for p in pictures.rglob("*.png"))
    for entry in found["images"]:
        first, second = (p["probability"] for p in entry["predictions"])
        assert 1 >= first >= second >= 0
    best = [e["predictions"][0]["class"].replace(" ", "_") for e in found["images"]]
    assert sum(name == Path(path).parent.name for name, path in zip(best, paths, strict=True)) >= 4


def test_datasets_are_what_they_were_afterwards(predict, pictures, names):
    before = dict(DATASET_REGISTRY._objects)
    assert predict("--predict", pictures, *zero_shot(names))[0] == 0
    assert DATASET_REGISTRY._objects == before
    status, _ = predict("--predict", pictures, *zero_shot(names), "--trainer", "RAdaFFTT")
    assert "RAdaFFT" in status
    assert DATASET_REGISTRY._objects == before


def test_csv_says_the_same_as_json(predict, pictures, names):
    words = ("--predict", pictures, "--top-k", "9", *zero_shot(names))
    _, rows = predict(*words, output="sub/found.CSV".lower())
    _, found = predict(*words)
    expected = [
        (entry["image"], str(rank), guess["class"], f"{guess['probability']:.6f}")
        for entry in found["images"]
        for rank, guess in enumerate(entry["predictions"], start=1)
    ]
    assert [tuple(row.values()) for row in rows] == expected
    assert list(rows[0]) == ["image", "rank", "class", "probability"]
    assert len(rows) == 6 * 3  # all classes, fewer than asked for
    for start in range(0, len(rows), 3):
        total = sum(float(row["probability"]) for row in rows[start : start + 3])
        assert total == pytest.approx(1, abs=1e-5)


@pytest.fixture
def trained(make_config):
    """A run of LightRA on 20 classes."""
    options = ("DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH",
               "1", "TRAINER.LightRA.PREC", "fp32")  # fmt: skip
    trainer = build_trainer(make_config("LightRA/base2novel", *options))
    trainer.train()
    return trainer


def test_trained_run_needs_nothing_but_its_directory(trained, predict, pictures):
    status, found = predict("--predict", pictures / CLASSES[0], "--model-dir", trained.output_dir,
                            "--top-k", "20")  # fmt: skip
    assert status == 0
    assert found["trainer"] == "LightRA"
    assert found["classnames"] == list(trained.dm.dataset.classnames)
    batch = torch.stack([trained.dm.tfm_test(_open(entry["image"])) for entry in found["images"]])
    trained.set_model_mode("eval")
    with torch.no_grad():
        expected = trained.model_inference(batch).softmax(-1)
    for entry, row in zip(found["images"], expected, strict=True):
        values = {guess["class"]: guess["probability"] for guess in entry["predictions"]}
        ordered = torch.tensor([values[name] for name in found["classnames"]])
        torch.testing.assert_close(ordered, row, atol=1e-5, rtol=0)


def _open(path: str):
    from dassl.data.wrapper import read_image

    return read_image(path)


def test_test_time_training_follows_from_the_trainer(predict, pictures, names):
    words = ("--predict", pictures, "--top-k", "3", "--seed", "1", *zero_shot(names))
    _, plain = predict(*words)
    ttt = ("--trainer", "RAdaTTT", *words)
    _, first = predict(*ttt)
    _, again = predict(*ttt)
    assert first == again
    assert first["trainer"] == "RAdaTTT"
    assert first["images"] != plain["images"]


def test_trained_mask_with_and_without_test_time_training(make_config, predict, pictures):
    options = ("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1",
               "DATALOADER.TRAIN_X.BATCH_SIZE", "8")  # fmt: skip
    run = build_trainer(make_config("RAda/base2novel", *options))
    run.train()
    words = ("--predict", pictures, "--model-dir", run.output_dir)
    status, plain = predict(*words)
    assert (status, plain["trainer"]) == (0, "RAda")
    status, adapted = predict(*words, "--trainer", "RAdaTTT")
    assert (status, adapted["trainer"]) == (0, "RAdaTTT")
    assert adapted["classnames"] == plain["classnames"]
    assert adapted["images"] != plain["images"]
    assert read_result(run.output_dir)["trainer"] == "RAda", "a prediction changes no run"


def test_unreadable_picture_is_named_and_the_others_predicted(predict, pictures, names, capsys):
    bad = pictures / CLASSES[0] / "0000_bad.png"
    bad.write_text("no picture")
    status, found = predict("--predict", pictures, *zero_shot(names))
    assert status == 1
    assert len(found["images"]) == 6
    assert list(found["unreadable"]) == [str(bad)]
    assert f"error: not predicted, {bad}" in capsys.readouterr().err
    status, found = predict("--predict", bad, *zero_shot(names), output="alone.json")
    assert status == 1
    assert found["images"] == []


def test_class_names_of_a_dataset(predict, pictures, shapes_root):
    words = ("--root", shapes_root, "--dataset-config-file", "configs/datasets/shapes_v2.yaml")
    status, found = predict("--predict", pictures / CLASSES[0], *words)
    assert status == 0
    assert len(found["classnames"]) == 40
    assert len(found["images"][0]["predictions"]) == 5


class TestPatterns:
    def test_files_folders_and_globs(self, pictures):
        (pictures / "notes.txt").write_text("")
        (pictures / ".hidden").mkdir()
        shutil.copy(next(pictures.rglob("*.png")), pictures / ".hidden" / "x.png")
        every = sorted(str(p) for p in pictures.rglob("*.png") if ".hidden" not in p.parts)
        assert len(every) == 6
        assert find_images([str(pictures)]) == every
        assert find_images([f"{pictures}/**/*"]) == every
        assert find_images([f"{pictures}/*"]) == every
        one = every[3]
        assert find_images([one, str(pictures)]) == [one, *every[:3], *every[4:]]

    def test_a_named_file_is_taken_whatever_its_suffix(self, pictures):
        other = pictures / "picture.data"
        shutil.copy(next(pictures.rglob("*.png")), other)
        assert find_images([str(other)]) == [str(other)]
        with pytest.raises(FileNotFoundError, match="matches no image"):
            find_images([f"{pictures}/*.data"])

    def test_brackets_in_a_file_name(self, pictures):
        odd = pictures / "a[1].png"
        shutil.copy(next(pictures.rglob("*.png")), odd)
        assert find_images([str(odd)]) == [str(odd)]

    def test_what_is_left_out_is_counted(self, pictures):
        for name in ("notes.txt", ".hidden.png", "__MACOSX/x.png"):
            (pictures / name).parent.mkdir(exist_ok=True)
            (pictures / name).write_text("")
        left_out = LeftOut(pictures)
        assert len(find_images([str(pictures), f"{pictures}/*"], left_out)) == 6
        assert str(left_out) == (
            "1 file(s) ending in .txt (notes.txt); "
            "1 folder(s) named like those of a system or viewer (__MACOSX); "
            "1 hidden file(s) or folder(s) (.hidden.png)"
        )

    def test_suffixes_in_any_case_and_links_to_folders(self, pictures, tmp_path):
        one = next(pictures.rglob("*.png"))
        (tmp_path / "far").mkdir()
        for name in ("a.JFIF", "b.gif", "c.jpe"):
            shutil.copy(one, tmp_path / "far" / name)
        (pictures / "link").symlink_to(tmp_path / "far")
        (pictures / "loop").symlink_to(pictures)
        found = find_images([str(pictures)])
        assert [Path(p).name for p in found if "link" in p] == ["a.JFIF", "b.gif", "c.jpe"]
        assert len(found) == 9

    def test_one_picture_in_two_spellings_is_one(self, pictures, monkeypatch):
        monkeypatch.chdir(pictures)
        one = str(next(pictures.rglob("*.png")).relative_to(pictures))
        assert find_images([one, f"./{one}", str(pictures / one)]) == [one]

    def test_a_folder_without_pictures_says_what_it_holds(self, tmp_path):
        (tmp_path / "a.heic").write_text("")
        with pytest.raises(FileNotFoundError, match=r"holds no image.*1 file\(s\) ending in .heic"):
            find_images([str(tmp_path)])


def test_photos_are_predicted_as_they_are_shown(predict, pictures, names, capsys):
    """Turned by its EXIF orientation, a picture is the picture; what is left out is told."""
    path = next(pictures.rglob("*.png"))
    picture = Image.open(path).convert("RGB")
    for number, turn in ((1, None), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = number
        stored = picture if turn is None else picture.transpose(turn)
        stored.save(pictures / f"{number}.png", exif=exif)
    (pictures / "notes.txt").write_text("")
    words = ("--predict", pictures / "1.png", pictures / "6.png", f"{pictures}/*.*")
    _, found = predict(*words, *zero_shot(names))
    assert found["images"][0]["predictions"] == found["images"][1]["predictions"]
    said = f"1 file(s) ending in .txt ({pictures}/notes.txt)"
    assert f"--predict leaves out {said}" in found["notes"]
    assert f"Note: --predict leaves out {said}" in capsys.readouterr().err


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--top-k", "0"), ["--top-k", "0"]),
            (("--predict-output", "found.xlsx"), ["--predict-output", ".xlsx", ".csv", ".json"]),
            (("--model-dir", "nowhere"), ["--model-dir", "nowhere"]),
            (("--classnames", "none.txt"), ["--classnames", "none.txt"]),
            ((), ["--classnames", "--model-dir", "--dataset-config-file"]),
            (("--trainer", "RAdaTT", "--classnames", "{names}"), ["RAdaTT", "RAdaTTT"]),
        ],
    )
    def test_flags(self, words, said, pictures, names):
        words = [word.format(names=names) for word in words]
        with pytest.raises(SystemExit) as stop:
            train.main(["--predict", str(pictures), "--backbone", "shapes", *words])
        assert str(stop.value).startswith("error: ")
        for part in said:
            assert part in str(stop.value)

    @pytest.mark.parametrize("pattern", ["none.png", "none/*.jpg", "empty"])
    def test_pattern_without_an_image(self, predict, tmp_path, names, pattern, pictures):
        (tmp_path / "empty").mkdir()
        code, found = predict("--predict", pictures, tmp_path / pattern, *zero_shot(names))
        assert "--predict" in code
        assert pattern in code
        assert found is None

    def test_run_without_a_result(self, predict, pictures, tmp_path):
        code, _ = predict("--predict", pictures, "--model-dir", tmp_path)
        assert "result.json" in code

    def test_weights_over_other_classes(self, make_config, predict, pictures, names):
        trainer = build_trainer(
            make_config("LP/fft", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1")
        )
        trainer.train()
        words = ("--predict", pictures, "--model-dir", trainer.output_dir)
        status, found = predict(*words, "--classnames", names)
        assert (status, len(found["classnames"])) == (0, 3), "they are among those it knows"
        names.write_text("solid blue square\ngolden retriever\n")
        code, _ = predict(*words, "--classnames", names)
        assert "golden retriever" in code
        assert "40" in code

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("a.txt", "\n\n", "no name"),
            ("a.json", '{"one": 1}', "list of names"),
            ("a.json", "[", "no JSON"),
        ],
    )
    def test_files_of_names(self, tmp_path, name, text, said):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"--classnames.*{said}"):
            read_names(tmp_path / name)

    def test_names_as_json(self, tmp_path):
        (tmp_path / "a.json").write_text('["red circle", "blue star"]')
        assert read_names(tmp_path / "a.json") == ["red circle", "blue star"]


class TestRunsWithoutTheirData:
    """What the folder of the weights alone has to say."""

    def only_weights(self, run, tmp_path) -> Path:
        """A copy of the run's weights; its pictures and its result stay behind."""
        copy = tmp_path / "elsewhere"
        shutil.copytree(Path(run.output_dir, run.model_name), copy / run.model_name)
        return copy

    def test_weights_alone_are_enough(self, trained, predict, pictures, tmp_path, monkeypatch):
        words = ("--predict", pictures, "--top-k", "20", "--model-dir")
        _, expected = predict(*words, trained.output_dir)
        copy = self.only_weights(trained, tmp_path)
        monkeypatch.chdir(tmp_path)
        status, found = predict(*words, copy, "--root", tmp_path / "gone", output="again.json")
        assert status == 0
        assert found["classnames"] == list(trained.dm.dataset.classnames)
        assert (found["trainer"], found["images"]) == ("LightRA", expected["images"])
        status, first = predict(*words, copy, "--load-epoch", "1", output="first.json")
        assert (status, first["images"]) == (0, expected["images"])

    def test_a_run_that_chose_on_validation_images(self, trained, predict, pictures, tmp_path):
        copy = self.only_weights(trained, tmp_path)
        file = copy / trained.model_name / "model.pth.tar-1"
        content = torch.load(file, weights_only=True)
        content["meta"]["config"]["TEST"]["FINAL_MODEL"] = "best_val"
        torch.save(content, file)
        status, _ = predict("--predict", pictures, "--model-dir", copy)
        assert status == 0

    def test_weights_that_do_not_say_how_they_were_made(self, trained, predict, pictures, tmp_path):
        copy = self.only_weights(trained, tmp_path)
        file = copy / trained.model_name / "model.pth.tar-1"
        content = torch.load(file, weights_only=True)
        del content["meta"]["config"]
        torch.save(content, file)
        code, _ = predict("--predict", pictures, "--model-dir", copy)
        assert "neither a complete result.json nor weights" in code
        assert "--config-file" in code
        words = (
            "--config-file",
            "configs/trainers/LightRA/base2novel.yaml",
            "--backbone",
            "shapes",
        )
        status, found = predict("--predict", pictures, "--model-dir", copy, *words)
        assert status == 0
        assert found["classnames"] == list(trained.dm.dataset.classnames)

    def test_descriptions_that_are_gone(self, trained, predict, pictures, tmp_path):
        copy = self.only_weights(trained, tmp_path)
        file = copy / trained.model_name / "model.pth.tar-1"
        content = torch.load(file, weights_only=True)
        content["meta"]["config"]["DATASET"]["PROMPT_PATH"] = "prompts/gone.json"
        torch.save(content, file)
        code, _ = predict("--predict", pictures, "--model-dir", copy)
        assert "prompts/gone.json" in code
        assert "DATASET.PROMPT_PATH" in code


def test_template_of_the_command_line(pictures, names, tmp_path, capsys):
    file = tmp_path / "found.json"
    command = ["--predict", str(pictures), *zero_shot(names), "--predict-output", str(file)]
    found = []
    for options in ([], ["DATASET.PROMPT_TEMPLATE", "a blurred {} on paper."]):
        with pytest.raises(SystemExit):
            train.main([*command, "--device", "cpu", "--", *options])
        found.append(json.loads(file.read_text()))
    assert found[0]["images"] != found[1]["images"]
    assert 'First prompt: "a blurred solid blue square on paper."' in capsys.readouterr().out


def test_a_record_with_the_shipped_template_is_no_choice(make_config, predict, pictures, capsys):
    """Runs of earlier versions recorded the dataset's own text; zero-shot CLIP reads another."""
    run = build_trainer(make_config("ZeroshotCLIP/base2novel", "DATASET.NUM_SHOTS", "1"))
    run.test()
    result = read_result(run.output_dir)
    result["config"]["DATASET"]["PROMPT_TEMPLATE"] = ROW_OF["Shapes"].template
    write_result(run.output_dir, result)
    capsys.readouterr()
    assert predict("--predict", pictures, "--model-dir", run.output_dir)[0] == 0
    assert 'First prompt: "a photo of a ' in capsys.readouterr().out


def test_names_that_are_the_same_are_noted(predict, pictures, names, capsys):
    names.write_text("Heart\nheart\nstar\n")
    _, found = predict("--predict", pictures, *zero_shot(names))
    (note,) = found["notes"]
    assert "2 of 3 classes apart" in note
    assert "'Heart' and 'heart'" in note
    assert note in capsys.readouterr().out


def test_the_last_example_of_the_readme(tmp_path, monkeypatch, capsys):
    """It works before the suite was drawn."""
    readme = Path(__file__).resolve().parents[3] / "README.md"
    section = readme.read_text().partition("## Classify your own images")[2]
    block = section.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " ")
    command = block.strip().splitlines()[-1].split()
    assert command[:3] == ["python", "train.py", "--predict"]
    words = [str(readme.parent / word) if word.startswith("configs/") else word
             for word in command[2:]]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main([*words, "--device", "cpu"])
    assert stop.value.code == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "striped_pink_star/" in line]
    assert len(rows) == len(list(tmp_path.glob("data/shapes/a/test/striped_pink_star/*.png"))) > 0
