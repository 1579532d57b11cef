"""Releases' forms compute what ours do, and what the command makes of the measurements."""

import json

import pytest
import torch

import clip
from clip.backbones import Backbone
from scripts import bench
from scripts.benchmarks import cases, released
from scripts.benchmarks.cases import CASES
from scripts.benchmarks.release_forms import limits
from scripts.benchmarks.release_forms.contexts import CoOp
from scripts.benchmarks.release_forms.step import tokens_of
from scripts.benchmarks.release_forms.towers import ReleasedCLIP

CLASSES, BATCH = 3, 2
LABELS = list(dict.fromkeys(case.label for case in CASES))
TEXTS = ["a", "a photo of a cat.", "a dog", "two", " ".join(["word"] * 90), "a photo of a dog."]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Texts and pictures of three classes."""
    root = tmp_path_factory.mktemp("released")
    cases.write_inputs(root, CLASSES, BATCH)
    return root


@pytest.fixture
def tiny_cases(monkeypatch):
    """Each label once, with three classes and two images; one image where a method takes one."""
    first = {case.label: case for case in reversed(CASES)}
    small = {
        label: case._replace(classes=CLASSES, batch=1 if label in ("CoCoOp", "TPT") else BATCH)
        for label, case in first.items()
    }
    monkeypatch.setattr(cases, "CASES", list(small.values()))
    return small


class TestForms:
    @pytest.mark.parametrize("label", LABELS)
    def test_release_computes_what_ours_does(self, label, tiny_cases, inputs, tiny_checkpoint):
        gap = released.check(tiny_cases[label], inputs, tiny_checkpoint, "cpu")
        assert 0 <= gap <= released.TOLERANCE

    def test_a_difference_is_an_error(self, tiny_cases, inputs, tiny_checkpoint):
        class Other(CoOp):
            def loss(self):
                return 1.001 * super().loss()

        wrong = tiny_cases["CoOp"]._replace(release=Other)
        with pytest.raises(ValueError, match=r"^CoOp/3/2: step 1: ours and the release's way diff"):
            released.check(wrong, inputs, tiny_checkpoint, "cpu")

    def test_a_difference_of_gradients_is_an_error(self, tiny_cases, inputs, tiny_checkpoint):
        class Other(CoOp):
            def text_features(self):
                return super().text_features().detach()  # nothing is learned

            def loss(self):
                return super().loss() + 0 * sum(p.sum() for p in self.learned.values())

        wrong = tiny_cases["CoOp"]._replace(release=Other)
        with pytest.raises(ValueError, match="CoOp/3/2: step 2"):
            released.check(wrong, inputs, tiny_checkpoint, "cpu")

    def test_frozen_weights_are_shared(self, tiny_backbone):
        state, towers = tiny_backbone.model.state_dict(), ReleasedCLIP(tiny_backbone)
        for tower, prefix in ((towers.visual, "visual."), (towers.text, "")):
            for name, weight in tower.state_dict().items():
                assert weight.data_ptr() == state[prefix + name].data_ptr(), name
            assert not any(p.requires_grad for p in tower.parameters())


class TestLimit:
    @pytest.fixture
    def towers(self, tiny_backbone):
        return ReleasedCLIP(tiny_backbone)

    def test_image_pass_is_the_encoder(self, towers, tiny_backbone):
        image = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = tiny_backbone.encode_image(image)
            torch.testing.assert_close(towers.visual(image), expected, atol=1e-5, rtol=1e-4)
        bare = limits.image_pass(towers.visual, image, trained=True)
        torch.testing.assert_close(bare.detach(), expected, atol=1e-5, rtol=1e-4)
        assert bare.requires_grad, "to the input of the blocks"

    def test_text_pass_is_the_encoder(self, towers, tiny_backbone):
        tokens = tokens_of(TEXTS, towers.text)
        lengths = (tokens.argmax(-1) + 1).tolist()
        assert (min(lengths), max(lengths)) == (3, 77)
        order = sorted(range(len(TEXTS)), key=lengths.__getitem__)
        with torch.no_grad():
            expected = tiny_backbone.encode_text(tokens)
            torch.testing.assert_close(towers.text.encode(tokens), expected, atol=1e-5, rtol=1e-4)
            bare = limits.text_pass(towers.text, tokens)
        torch.testing.assert_close(bare, expected[order], atol=1e-5, rtol=1e-4)

    def test_prompts_are_tokens_of_the_image(self, towers):
        image, seen = torch.randn(1, 3, 32, 32), []
        towers.visual.transformer.resblocks[0].ln_1.register_forward_hook(
            lambda _, args, __: seen.append(args[0].shape[1])
        )
        limits.image_pass(towers.visual, image, more=3)
        assert seen == [1 + 4 + 3]

    @pytest.mark.parametrize("label", ["CoCoOp", "HPT", "TPT"])
    def test_passes_of_a_step(self, label, tiny_cases, inputs, tiny_checkpoint, monkeypatch):
        passes = []

        def image_pass(_, image, more=0, *, trained=False):
            passes.append(("image", len(image), more, trained))
            return torch.zeros(1, requires_grad=True)

        def text_pass(_, tokens, *, trained=False):
            passes.append(("text", len(tokens), trained))
            return torch.zeros(1, requires_grad=True)

        monkeypatch.setattr(limits, "image_pass", image_pass)
        monkeypatch.setattr(limits, "text_pass", text_pass)
        released.prepared(tiny_cases[label], "limit", inputs, tiny_checkpoint, "cpu")[0]()
        expected = {
            "CoCoOp": [("image", 1, 0, False), ("text", 3, True)],
            "HPT": [("image", 2, 0, False), ("image", 2, 2, True), ("text", 3, True)],
            "TPT": [("image", 64, 0, False), ("text", 3, False), ("text", 3, True)],
        }
        assert passes == expected[label]


class TestCases:
    def test_table(self):
        names = [case.name for case in CASES]
        assert len(set(names)) == len(names)
        for k, b in ((24, 4), (100, 4), (500, 4), (24, 16), (100, 16), (500, 16)):
            assert f"LightRA/{k}/{b}" in names
        for k, b in ((50, 1), (500, 1), (1000, 1), (50, 32), (500, 32), (1000, 32)):
            assert f"RAda-head/{k}/{b}" in names
        assert {"RAda/100/1", "CoCoOp/100/1", "TPT/100/1", "TPT/1000/1"} <= set(names)
        methods = {"CoOp", "KgCoOp", "MaPLe", "PromptSRC", "CoPrompt", "HPT", "LightRA-text"}
        assert methods <= set(LABELS)
        assert set(limits.PASSES) == set(LABELS) - {"RAda-head"}, "a head runs no encoder"

    def test_chosen_by_name_or_label(self):
        found = cases.named_cases(["MaPLe/100/4", "TPT"])
        assert [case.name for case in found] == ["MaPLe/100/4", "TPT/100/1", "TPT/1000/1"]
        with pytest.raises(ValueError, match="--cases: 'MaPLe/7' is no case; there are LightRA/24"):
            cases.named_cases(["MaPLe/7"])

    def test_texts_have_the_lengths_of_real_ones(self, tmp_path):
        cases.write_inputs(tmp_path, 100, 4)
        described = json.loads((tmp_path / "one.json").read_text())
        texts = [f"a photo of a {name}, {text}" for name, [text] in described.items()]
        lengths = (clip.tokenize(texts).argmax(-1) + 1).float()
        assert 33 < lengths.mean() < 40
        assert 50 < lengths.max() < 60
        names = (clip.tokenize(cases.class_names(1000)).argmax(-1) - 1).float()
        assert 1.5 < names.mean() < 2.5
        assert (names <= 4).float().mean() > 0.95
        assert len(set(cases.class_names(1000))) == 1000

    def test_head_has_the_width_of_a_vit(self, tmp_path):
        cases.write_head_towers(tmp_path / "head.pt")
        assert clip.load(str(tmp_path / "head.pt")).embed_dim == cases.EMBED_DIM


class TestMeasure:
    @pytest.mark.parametrize("way", ["ours", "release", "limit"])
    @pytest.mark.parametrize("label", ["MaPLe", "LightRA-text"])
    def test_each_way(self, label, way, tiny_cases, inputs, tiny_checkpoint, monkeypatch):
        monkeypatch.setattr(released, "LEAST_SECONDS", 0)
        # This process's own memory holds what other tests have left.
        monkeypatch.setattr(released, "resident_mib", lambda: 200)
        monkeypatch.setattr(released, "peak_mib", lambda _: 250)
        name = tiny_cases[label].name
        found = released.measure(name, way, str(inputs), tiny_checkpoint, "cpu", 1)
        assert found["seconds"] > 0
        assert found["mib"] == 50, "on top of the libraries"

    def test_short_steps_are_repeated(self, tiny_cases, inputs, tiny_checkpoint, monkeypatch):
        asked = []
        monkeypatch.setattr(released, "median_seconds", lambda _, n, __: asked.append(n) or 0.3)
        for steps in (1, 9):
            name = tiny_cases["RAda-head"].name
            released.measure(name, "ours", str(inputs), tiny_checkpoint, "cpu", steps)
        assert asked == [1, 6, 1, 9]

    def test_our_evaluation_encodes_each_time(
        self, tiny_cases, inputs, tiny_checkpoint, count_calls
    ):
        case = tiny_cases["LightRA-text"]
        trainer = cases.build(case, inputs, tiny_checkpoint, "cpu")
        step = cases.our_step(case, trainer, cases.batch_of(case, trainer))
        encoded = count_calls(Backbone, "encode_text")
        step()
        once = len(encoded)
        step()
        assert len(encoded) == 2 * once > 0


def command(monkeypatch, answers, *words):
    """Run the command with what processes answer: (case, way) -> measurement or error."""
    asked = []

    def measure_apart(command, task, threads):
        asked.append((task["name"], task["way"], task["root"].rpartition("/")[2]))
        return answers(task["name"], task["way"], len(asked))

    monkeypatch.setattr(released, "measure_apart", measure_apart)
    monkeypatch.setattr(cases, "write_inputs", lambda *_: None)
    status = bench.main(["released", "--backbone", "shapes", "--cases", *words])
    return status, asked


class TestCommand:
    def test_in_turn_with_medians(self, monkeypatch, capsys, tmp_path):
        seconds = iter([6, 12, 3, 2, 8, 2, 9, 15, 3])

        def answers(name, way, number):
            if way == "check":
                return {"difference": 1e-7}
            return {"seconds": next(seconds), "mib": {"release": 400}.get(way, 100 + number)}

        words = ["MaPLe", "--rounds", "3", "--json", str(tmp_path / "rows.json")]
        status, asked = command(monkeypatch, answers, *words)
        assert status == 0
        assert [way for _, way, _ in asked] == ["check", *["ours", "release", "limit"] * 3]
        (row,) = json.loads((tmp_path / "rows.json").read_text())
        assert row["difference"] == 1e-7
        assert (row["ours"], row["release"], row["limit"]) == (6, 12, 3)
        assert (row["ratio"], row["to_limit"]) == (0.5, 2)
        assert (row["ours_mib"], row["release_mib"], row["memory_ratio"]) == (108, 400, 0.27)
        lines = capsys.readouterr().out.splitlines()
        for heading, _ in released.COLUMNS.values():
            assert heading in lines[0]
        assert lines[-1].split() == "MaPLe 100 4 6 12 3 0.50 2.00 108 400 0.27".split()

    def test_nothing_is_timed_after_a_difference(self, monkeypatch, capsys):
        status, asked = command(monkeypatch, lambda *_: {"error": "ValueError: they differ"}, "HPT")
        assert status == 1
        assert asked == [("HPT/100/4", "check", "100")]
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2].split() == ["HPT", "100", "4", *"--------"]
        assert lines[-1] == "HPT (K 100, batch 4): check: ValueError: they differ"

    def test_ours_goes_on_where_the_release_takes_too_much(self, monkeypatch, capsys):
        def answers(name, way, number):
            failed = {"error": "can't allocate memory"}
            return failed if way == "release" else {"difference": 0, "seconds": 2, "mib": 3}

        status, asked = command(monkeypatch, answers, "TPT/1000/1", "--rounds", "2")
        assert status == 1
        timed = [way for _, way, _ in asked[1:]]
        assert timed == ["ours", "release", "limit", "ours", "limit"]
        assert [folder for *_, folder in asked] == ["100", *["1000"] * 5], "checked with fewer"
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2].split() == "TPT 1000 1 2 - 2 - 1.00 3 - -".split()
        assert lines[-1] == "TPT (K 1000, batch 1): release: can't allocate memory"

    def test_a_head_has_no_limit(self, monkeypatch):
        answer = {"difference": 0, "seconds": 2, "mib": 3}
        status, asked = command(monkeypatch, lambda *_: answer, "RAda-head/50/1", "--rounds", "1")
        assert status == 0
        assert [way for _, way, _ in asked] == ["check", "ours", "release"]

    @pytest.mark.usefixtures("forked_processes")
    def test_a_process_of_its_own(self, capsys):
        words = ["released", "--cases", "RAda-head/50/1", "--rounds", "1", "--threads", "1"]
        words += ["--device", "cpu", "--memory", "0.001", "--backbone", "shapes"]
        assert bench.main(words) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("RAda-head (K 50, batch 1): check: ")
        assert "memory" in last.lower()

    def test_wrong_words(self, capsys):
        assert bench.main(["released", "--cases", "MaPle"]) == 1
        assert "--cases: 'MaPle' is no case" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            bench.main(["released", "--rounds", "0"])
        assert "--rounds must be at least 1, got 0" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            bench.main([])
        with pytest.raises(SystemExit):
            bench.main(["release"])
        assert "choose from" in capsys.readouterr().err
