"""Pictures of trained runs: what is loaded, what is collected, what is drawn, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config.identity import sealed
from dassl.data.datasets import Datum
from dassl.engine import build_trainer
from scripts import visualize
from scripts.drawing import image_choice, mask_values
from scripts.drawing.image_choice import by_lot, choose_images, select
from scripts.drawing.mask_values import ValueCounts, collect_maps, collect_rows, embed
from scripts.drawing.trained_run import load_run, read_run
from scripts.training.config import build_config
from scripts.training.parser import argument_parser
from tests.conftest import REPOSITORY

QUICK = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 3, "OPTIM.WARMUP_EPOCH", 0)


def finish(method, root, output, *options, weights=None):
    """Run a method on the base classes of the suite, or evaluate the weights of another run."""
    words = ["--root", root, "--output-dir", output, "--seed", 1, "--device", "cpu"]
    words += ["--config-file", REPOSITORY / f"configs/trainers/{method}/base2novel.yaml"]
    words += ["--dataset-config-file", REPOSITORY / "configs/datasets/shapes.yaml"]
    words += [*QUICK, "DATASET.SUBSAMPLE_CLASSES", "base", *options]
    trainer = build_trainer(build_config(argument_parser().parse_args(list(map(str, words)))))
    if weights is None:
        trainer.train()
    else:
        trainer.load_model(weights)
        trainer.test()
    return trainer


@pytest.fixture(scope="module")
def rada(shapes_root, tmp_path_factory):
    """A trained RAda: its trainer and its directory."""
    directory = tmp_path_factory.mktemp("rada") / "seed1"
    return finish("RAda", shapes_root, directory, "OPTIM.LR", 0.01), directory


@pytest.fixture(scope="module")
def zeroshot(shapes_root, tmp_path_factory):
    directory = tmp_path_factory.mktemp("zeroshot") / "seed1"
    finish("ZeroshotCLIP", shapes_root, directory)
    return directory


@pytest.fixture(scope="module")
def loaded(rada):
    return load_run(rada[1], device="cpu")


@pytest.fixture
def chosen(loaded):
    return select(loaded, "test", [], seed=0)


def draw(directory, *words):
    return visualize.main(["--model-dir", str(directory), "--device", "cpu", *map(str, words)])


class TestLoading:
    def test_gives_the_trained_model_and_writes_nothing(self, rada, loaded):
        trainer, directory = rada
        images = torch.randn(2, 3, 48, 48)
        expected = trainer.model.eval()(images)
        assert torch.equal(loaded.model.eval()(images), expected)
        fresh = loaded.model.head(*self.features(loaded, images)).mask
        assert not torch.equal(fresh, torch.ones_like(fresh)), "training must have moved the mask"
        names = {path.name for path in directory.iterdir()}
        assert names == {
            "RAda",
            "fewshot_1_seed1.json",
            "identity.json",
            "predictions.csv.gz",
            "result.json",
            "tensorboard",
        }

    @staticmethod
    def features(trainer, images):
        model = trainer.model
        return model.image_features(images), model.class_weights(), model.scale

    def test_weights_of_an_evaluation_are_those_it_loaded(self, rada, shapes_root, tmp_path):
        options = ("OPTIM.LR", 0.01, "DATASET.SUBSAMPLE_CLASSES", "new")
        finish("RAda", shapes_root, tmp_path / "new", *options, weights=rada[1])
        run = load_run(tmp_path / "new", device="cpu")
        images = torch.randn(2, 3, 48, 48)
        assert set(run.dm.dataset.classnames).isdisjoint(rada[0].dm.dataset.classnames)
        for name, weight in rada[0].model.head.named_parameters():
            assert torch.equal(dict(run.model.head.named_parameters())[name], weight)
        assert run.model.eval()(images).shape == (2, 20)

    def test_root_and_seed(self, rada, shapes_root, tmp_path):
        directory = tmp_path / "moved"
        shutil.copytree(rada[1], directory)
        result = json.loads((directory / "result.json").read_text())
        result["config"]["DATASET"]["ROOT"] = "gone"
        result["config"]["SEED"] = -1  # drawn; result["seed"] says what
        (directory / "result.json").write_text(json.dumps(sealed(result)))
        run = load_run(directory, root=shapes_root, device="cpu")
        assert run.seed == 1
        assert [item.impath for item in run.dm.dataset.train_x] == [
            item.impath for item in rada[0].dm.dataset.train_x
        ]

    def test_refuses_what_is_no_finished_run(self, rada, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"--model-dir: no directory .*seed1"):
            read_run(rada[1].parent / "seed2")
        with pytest.raises(ValueError, match=r"no finished run: its result.json is missing"):
            read_run(tmp_path)
        with pytest.raises(ValueError, match=r"Runs below it: .*seed1"):
            read_run(rada[1].parent)

    def test_config_of_another_version(self, rada, tmp_path, capsys):
        shutil.copytree(rada[1], tmp_path / "old")
        result = json.loads((tmp_path / "old/result.json").read_text())
        result["config"]["OPTIM"]["LERNING_RATE"] = 1.0
        (tmp_path / "old/result.json").write_text(json.dumps(sealed(result)))
        assert draw(tmp_path / "old") == 1
        error = capsys.readouterr().err
        assert "does not fit this version" in error
        assert "OPTIM.LERNING_RATE" in error


class TestCollecting:
    @pytest.mark.parametrize("elements", [1, 20 * 128 * 3, 2**22])
    @pytest.mark.parametrize("of", ["true", "predicted"])
    def test_rows_are_those_of_the_formula(self, loaded, chosen, monkeypatch, elements, of):
        monkeypatch.setattr(mask_values, "CHUNK_ELEMENTS", elements)
        items = by_lot(chosen, 7)
        rows, counts = collect_rows(loaded, items, of)
        model = loaded.model
        with torch.no_grad():
            image = torch.stack([loaded.dm.tfm_test(Image.open(i.impath)) for i in items])
            f, h = model.image_features(image), model.class_weights()
            mask = model.head(f, h, model.scale).mask
        label = torch.tensor([item.label for item in items])
        assert rows.label.tolist() == label.tolist()
        plain = label if of == "true" else (f @ h.T).argmax(-1)
        marked = label if of == "true" else (mask * f[:, None] * h).sum(-1).argmax(-1)
        assert rows.plain.tolist() == plain.tolist()
        assert rows.marked.tolist() == marked.tolist()
        torch.testing.assert_close(torch.from_numpy(rows.rational), f * h[plain])
        own = mask[torch.arange(7), marked]
        torch.testing.assert_close(torch.from_numpy(rows.masked), own * f * h[marked])
        assert counts.total == mask.numel() == 7 * 20 * 128
        assert counts.low == pytest.approx(mask.min().item(), abs=1e-5)
        assert counts.high == pytest.approx(mask.max().item(), abs=1e-5)

    def test_maps_add_up_to_the_logits(self, loaded, chosen):
        items = by_lot(chosen, 3)
        maps = collect_maps(loaded, items)
        assert list(maps) == [0, 1, 2]
        for one in maps.values():
            logits = loaded.model.scale.item() * (one.mask * one.rational).sum(-1)
            np.testing.assert_allclose(one.logits, logits, atol=1e-3)

    def test_value_counts(self):
        counts = ValueCounts()
        rng = np.random.default_rng(0)
        values = [rng.uniform(0.5, 1.5, 1000), rng.uniform(0, 9, 1000), [0.0, 1.0, 1.0]]
        for some in values:
            counts.add(torch.tensor(np.asarray(some, dtype=np.float32)))
        assert counts.top == 16  # 2, twice as much until 9 is in
        assert (counts.total, counts.zeros, counts.ones) == (2003, 1, 2)
        edges, bars = counts.bars(limit=50)
        assert len(bars) <= 50
        assert bars.sum() == 2003
        expected, _ = np.histogram(np.concatenate(values), edges)
        # Values put into wider bins before others came stay on the right side to one fine bin.
        assert np.abs(bars - expected).sum() <= 4

    def test_one_value(self):
        counts = ValueCounts()
        counts.add(torch.ones(10))
        edges, bars = counts.bars()
        assert bars.tolist() == [10]
        assert edges[0] <= 1.0 <= edges[1]

    def test_embedding(self):
        rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
        points = embed(rows, 3)
        assert points.shape == (5, 2)
        assert np.isfinite(points).all()
        assert np.array_equal(points, embed(rows, 3))
        with pytest.raises(ValueError, match="at least 4 images, got 3"):
            embed(rows[:3], 3)


class TestChoosing:
    def test_classes(self, loaded, monkeypatch):
        names = loaded.dm.dataset.classnames
        both = select(loaded, "test", [names[3].upper(), names[1].replace(" ", "_")], 0)
        assert both.classes == [3, 1]
        assert {item.label for item in by_lot(both, 1000)} == {3, 1}
        monkeypatch.setattr(image_choice, "CLASSES_SHOWN", 6)
        few = select(loaded, "test", [], 0)
        assert len(set(few.classes)) == 6
        assert few.classes == select(loaded, "test", [], 0).classes != list(range(6))
        with pytest.raises(ValueError, match=f"Did you mean '{names[0]}'"):
            select(loaded, "test", [names[0][:-1]], 0)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_splits(self, loaded, split):
        data = loaded.dm.dataset
        found = select(loaded, split, [], 0).items
        assert found == {"train": data.train_x, "val": data.val}[split]

    def test_images(self, chosen, tmp_path):
        items = chosen.items
        assert choose_images(["4", "0", "17"], chosen) == [items[4], items[0], items[17]]
        assert choose_images(["@17"], chosen) == [items[17]]
        assert choose_images([items[5].impath], chosen) == [items[5]]
        assert len(set(choose_images(["5"], chosen))) == 5
        Image.new("RGB", (60, 50)).save(tmp_path / "own.png")
        (own,) = choose_images([str(tmp_path / "own.png")], chosen)
        assert own.label == -1

    @pytest.mark.parametrize(
        ("words", "error", "message"),
        [
            (["0", "500"], ValueError, "no image 500; the split has 100, numbered from 0 to 99"),
            (["@-1"], FileNotFoundError, "@-1 is neither"),
            (["13"], ValueError, "from 1 to 12 images can be drawn, got 13"),
            (["0"], ValueError, "from 1 to 12 images can be drawn, got 0"),
            (["nothing.png"], FileNotFoundError, "nothing.png is neither"),
        ],
    )
    def test_wrong_images(self, chosen, words, error, message):
        with pytest.raises(error, match=message):
            choose_images(words, chosen)

    def test_rows_of_many_classes(self, loaded, chosen, monkeypatch):
        monkeypatch.setattr(visualize, "ROWS_SHOWN", 5)
        item = chosen.items[0]
        logits = np.arange(20.0)
        maps = mask_values.Maps(logits, np.ones((20, 128)), np.tile(logits[:, None], 128))
        shown = visualize.heat_map(item, maps, chosen.names, [])
        assert item.label == 0
        assert shown.names == [chosen.names[label] for label in (0, 16, 17, 18, 19)]
        assert shown.rational[:, 0].tolist() == [0, 16, 17, 18, 19]
        assert shown.own == 0
        assert shown.lines[2] == f"predicted: {chosen.names[19]} (63%)"  # 1 / (1 + 1/e + ...)
        named = visualize.heat_map(item, maps, chosen.names, [7, 2])
        assert (named.names, named.own) == ([chosen.names[7], chosen.names[2]], None)


class TestDrawing:
    def test_all_figures(self, rada, tmp_path, capsys):
        run = shutil.copytree(rada[1], tmp_path / "run")
        assert draw(run, "--points", 40) == 0
        files = sorted((run / "figures").iterdir())
        assert [f.name for f in files] == ["heat_maps.png", "mask_histogram.png", "tsne.png"]
        out = capsys.readouterr().out
        for file in files:
            assert f'Drawn: "{file}"' in out
            with Image.open(file) as image:
                assert image.format == "PNG"
                assert min(image.size) > 500
                assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10

    @pytest.mark.parametrize(("of", "letter"), [("predicted", "p"), ("true", "y")])
    def test_the_figure_says_whose_rows_it_has(
        self, rada, tmp_path, monkeypatch, loaded, chosen, of, letter
    ):
        given = []
        monkeypatch.setattr(visualize, "save_scatter", lambda *words: given.append(words))
        words = ("--rows", of, "--figures", "tsne", "--points", 30, "--output", tmp_path)
        assert draw(rada[1], *words) == 0
        ((_, panels, label, _, title),) = given
        choose_images(["4"], chosen)  # the heat maps' images are drawn first
        rows, _ = collect_rows(loaded, by_lot(chosen, 30), of)
        assert label.tolist() == rows.label.tolist()
        assert f"rows of the {of} class {letter}, coloured by the true class, 30 images" in title
        plain, masked = (name for name, _ in panels)
        assert plain.startswith(f"rational matrix, R[b, {letter}]")
        assert masked.startswith(f"masked, (M * R)[b, {letter}]")
        count = f"; CLIP predicts {len(set(rows.plain.tolist()))} of 20 classes"
        assert (count in plain) == (of == "predicted")
        count = f"; predicted are {len(set(rows.marked.tolist()))} of 20"
        assert (count in masked) == (of == "predicted")

    def test_figures_are_chosen(self, rada, tmp_path):
        words = ("--figures", "histogram", "--points", 5, "--output", tmp_path)
        assert draw(rada[1], *words) == 0
        assert [f.name for f in tmp_path.iterdir()] == ["mask_histogram.png"]

    def test_without_a_mask(self, zeroshot, tmp_path, capsys):
        assert draw(zeroshot, "--output", tmp_path, "--points", 30) == 0
        assert [f.name for f in tmp_path.iterdir()] == ["tsne.png"]
        assert "ZeroshotCLIP has no mask (M = 1): only the t-SNE" in capsys.readouterr().out
        assert draw(zeroshot, "--output", tmp_path, "--images", 2) == 1
        assert "so --images cannot be drawn" in capsys.readouterr().err
        assert draw(zeroshot, "--output", tmp_path, "--figures", "tsne", "histogram") == 1
        assert "so --figures histogram cannot be drawn" in capsys.readouterr().err


def test_model_without_a_head_is_refused():
    class Other:
        cfg = type("cfg", (), {"TRAINER": type("section", (), {"NAME": "CoOp"})})
        model = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="the model of CoOp has no image_features"):
        mask_values.require_head(Other())


def test_points_must_be_positive(rada, capsys):
    with pytest.raises(SystemExit):
        draw(rada[1], "--points", 0)
    assert "--points must be at least 1, got 0" in capsys.readouterr().err


def test_unknown_label_is_drawn(loaded, tmp_path):
    """A picture from elsewhere has no true class."""
    Image.new("RGB", (100, 60), "red").save(tmp_path / "own.png")
    item = Datum(impath=str(tmp_path / "own.png"), label=-1)
    maps = collect_maps(loaded, [item])[0]
    shown = visualize.heat_map(item, maps, loaded.dm.dataset.classnames, [])
    assert shown.lines[1] == "true: unknown"
    assert shown.own is None
