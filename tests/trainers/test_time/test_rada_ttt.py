"""Test-time training: formulas, episodes by hand, independence of images, and what is refused."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import clip
from dassl.data.samplers.epochs import SeededIndex
from dassl.engine import build_trainer, read_result
from tests.conftest import config_of_run
from tests.dassl.torch_files import SPOILED, spoil
from tests.trainers.plain import SMALL
from tests.trainers.test_time.starts import (
    context_by_hand,
    record_gradients,
    views_of,
    views_options,
)
from trainers.heads import RationalHead
from trainers.test_time import towers
from trainers.test_time.episodes import ENTROPIES, marginal_entropy, mean_entropy, most_confident
from trainers.test_time.rada_ttt import adapted_logits

SCALE = torch.tensor(30.0, dtype=torch.float64)
SETTINGS = {"selected": 3, "entropy": "marginal", "steps": 3, "lr": 8e-4, "weight_decay": 0.01}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def make_head(trained: bool, **options) -> RationalHead:
    torch.manual_seed(2)
    head = RationalHead(32, num_heads=4, **options).double()
    if trained:
        for parameter in head.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return head.requires_grad_(False)


def by_hand(
    start: RationalHead, views: torch.Tensor, text: torch.Tensor, scale=SCALE, **s
) -> torch.Tensor:
    """One image, V views (V, D): logits (K,) after an episode, by autograd and torch's AdamW."""
    head = copy.deepcopy(start).requires_grad_()
    optimizer = torch.optim.AdamW(head.parameters(), lr=s["lr"], weight_decay=s["weight_decay"])
    chosen = None
    for _ in range(s["steps"]):
        logits = head(views, text, scale).logits
        if chosen is None:
            p = logits.softmax(-1)
            chosen = (-(p * p.log()).sum(-1)).argsort()[: s["selected"]]
        p = logits[chosen].softmax(-1)
        if s["entropy"] == "marginal":
            loss = -(p.mean(0) * p.mean(0).log()).sum()
        else:
            loss = -(p * p.log()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head(views[:1], text, scale).logits[0].detach()


class TestFormulas:
    logits = torch.tensor([[[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]]], dtype=torch.float64)

    def test_entropies_are_the_plain_formulas(self):
        p = self.logits.exp() / self.logits.exp().sum(-1, keepdim=True)
        mean = p[0].mean(0)
        expected = -sum(x * math.log(x) for x in mean.tolist())
        assert marginal_entropy(self.logits).item() == pytest.approx(expected, abs=1e-12)
        apart = [-sum(x * math.log(x) for x in row.tolist()) for row in p[0]]
        assert mean_entropy(self.logits).item() == pytest.approx(sum(apart) / 2, abs=1e-12)

    def test_the_two_agree_on_equal_views_only(self):
        twice = self.logits[:, :1].expand(1, 5, 3)
        assert marginal_entropy(twice).item() == pytest.approx(mean_entropy(twice).item())
        assert marginal_entropy(self.logits) > mean_entropy(self.logits) + 0.05

    @pytest.mark.parametrize("name", ENTROPIES)
    def test_certain_views_have_finite_gradients(self, name):
        logits = torch.tensor([[[5000.0, 0.0, 0.0], [4000.0, 0.0, 1.0]]], requires_grad=True)
        entropy = ENTROPIES[name](logits)
        entropy.sum().backward()
        assert entropy.item() == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(logits.grad).all()

    def test_views_of_least_entropy_are_chosen(self):
        sharpness = torch.tensor([1.0, 9.0, 3.0, 9.0, 0.0, 5.0])
        logits = sharpness[None, :, None] * torch.tensor([1.0, 0.0, 0.0])
        assert most_confident(logits, 3).tolist() == [[1, 3, 5]]

    def test_paper_keeps_six_of_64(self, make_config):
        trainer = build_trainer(make_config("RAdaTTT/ttt", "TRAINER.RAdaTTT.VIEWS", "64",
                                            "TRAINER.RAdaTTT.SELECT", "0.1"))  # fmt: skip
        assert trainer.recipe.selected == 6


class TestEpisodes:
    image, text = unit(5, 12, 32, seed=3), unit(9, 32, seed=4)

    @pytest.mark.parametrize("trained", [False, True])
    @pytest.mark.parametrize(
        ("head", "settings"),
        [
            ({}, {}),
            ({}, {"entropy": "mean", "weight_decay": 0.0}),
            ({"softmax": "row", "temperature": 0.5}, {"steps": 1}),
            ({"layers": 3}, {"lr": 5e-3}),
            ({"queries": ("rational",)}, {"steps": 5}),
            ({"queries": ("image",)}, {}),
            ({"queries": ("text",), "layers": 2}, {}),
        ],
    )
    def test_equal_torch_autograd_and_adamw(self, trained, head, settings):
        start, settings = make_head(trained, **head), SETTINGS | settings
        found = adapted_logits(start, self.image, self.text, SCALE, **settings)
        for views, logits in zip(self.image, found, strict=True):
            expected = by_hand(start, views, self.text, **settings)
            torch.testing.assert_close(logits, expected, atol=1e-7, rtol=1e-7)
            still = start(views[:1], self.text, SCALE).logits[0]
            assert (logits - still).abs().max() > 1e-4

    @pytest.mark.parametrize("trained", [False, True])
    def test_side_by_side_equals_one_by_one_in_single_precision(self, trained):
        start = make_head(trained).float()
        image, text, scale = self.image.float(), self.text.float(), SCALE.float()
        together = adapted_logits(start, image, text, scale, **SETTINGS)
        alone = [adapted_logits(start, one[None], text, scale, **SETTINGS) for one in image]
        torch.testing.assert_close(
            together.softmax(-1), torch.cat(alone).softmax(-1), atol=1e-5, rtol=0
        )

    def test_only_the_output_projection_has_a_gradient_at_first(self):
        head = make_head(False).requires_grad_()
        marginal_entropy(head(self.image[0], self.text, SCALE).logits).backward()
        found = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
        assert found == {"layers.0.out.weight", "layers.0.out.bias"}

    def test_three_steps_lower_the_entropy_and_change_predictions(self):
        start = make_head(False)
        image = unit(60, 12, 32, seed=5)
        image = F.normalize(image[:, :1] + 0.5 * image, dim=-1)
        text = unit(40, 32, seed=6)
        before = start(image[:, 0], text, SCALE).logits
        settings = SETTINGS | {"lr": 3e-3}
        after = adapted_logits(start, image, text, SCALE, **settings)
        changed = (before.argmax(-1) != after.argmax(-1)).sum()
        assert 0 < changed < 30
        first = adapted_logits(start, image, text, SCALE, **settings | {"steps": 1})
        assert (after - before).abs().mean() > 1.5 * (first - before).abs().mean()

    @pytest.mark.parametrize("trained", [False, True])
    def test_nothing_is_kept(self, trained):
        start = make_head(trained)
        weights = copy.deepcopy(start.state_dict())
        first = adapted_logits(start, self.image[:2], self.text, SCALE, **SETTINGS)
        adapted_logits(start, self.image[2:], self.text, SCALE, **SETTINGS)
        again = adapted_logits(start, self.image[:2], self.text, SCALE, **SETTINGS)
        assert torch.equal(first, again)
        assert all(torch.equal(value, weights[n]) for n, value in start.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in start.parameters())


@pytest.fixture
def build(make_config):
    """(method, trailing options, output) -> trainer on ShapesV2, 4 views, 2 kept."""

    def make(name: str, *options: str, output: str = "run"):
        cfg = make_config(
            f"{name}/ttt", *views_options(name), *options, dataset="shapes_v2", output=output
        )  # fmt: skip
        trainer = build_trainer(cfg)
        trainer.set_model_mode("eval")
        return trainer

    return make


@pytest.mark.parametrize("name", ["RAdaTTT", "TPT"])
class TestTrainers:
    rows = (0, 24, 46, 99, 151)

    def test_order_of_images_does_not_matter(self, name, build):
        trainer = build(name)
        with torch.no_grad():
            forward = trainer.model_inference(views_of(trainer, self.rows))
            backward = trainer.model_inference(views_of(trainer, self.rows[::-1]))
            alone = [trainer.model_inference(views_of(trainer, [row])) for row in self.rows]
        for other in (backward.flip(0), torch.cat(alone)):
            torch.testing.assert_close(forward.softmax(-1), other.softmax(-1), atol=1e-5, rtol=0)

    def test_batches_of_any_size_give_the_same(self, name, build):
        views = views_of(build(name), self.rows)
        found = [
            build(name, f"TRAINER.{name}.BATCH", size, output=size).model_inference(views)
            for size in ("1", "2", "16")
        ]
        for other in found[1:]:
            torch.testing.assert_close(found[0].softmax(-1), other.softmax(-1), atol=1e-5, rtol=0)

    def test_pictures_of_one_call_of_the_encoder_are_bounded(self, name, build, monkeypatch):
        trainer = build(name, f"TRAINER.{name}.ENCODER_BATCH", "6")
        whole = build(name, output="whole")
        views = views_of(trainer, self.rows)
        seen = []
        encode = trainer.model.backbone.encode_image
        monkeypatch.setattr(
            trainer.model.backbone, "encode_image", lambda x: seen.append(len(x)) or encode(x)
        )
        found = trainer.recipe.encode(views)
        assert seen == [6, 6, 6, 2]  # 5 images of 4 views
        torch.testing.assert_close(found, whole.recipe.encode(views), atol=1e-6, rtol=0)

    def test_worker_processes_draw_the_same_views(self, name, build):
        loaders = [
            build(name, "DATALOADER.NUM_WORKERS", n, output=n).test_loader for n in ("0", "2")
        ]
        alone, workers = (next(iter(loader)) for loader in loaders)
        assert alone["img"].shape == (16, 4, 3, 48, 48)
        assert alone["img"].dtype == torch.uint8
        assert alone["impath"] == workers["impath"]
        assert torch.equal(alone["img"], workers["img"])

    def test_the_model_stays_as_it_is(self, name, build):
        trainer = build(name)
        state = copy.deepcopy(trainer.model.state_dict())
        pictures = torch.randn(2, 3, 48, 48)
        before = trainer.model_inference(pictures)
        first = trainer.model_inference(views_of(trainer, self.rows))
        assert torch.equal(first, trainer.model_inference(views_of(trainer, self.rows)))
        assert torch.equal(before, trainer.model_inference(pictures))
        assert all(torch.equal(v, state[n]) for n, v in trainer.model.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in trainer.model.parameters())

    def test_an_episode_changes_the_prediction_of_the_clean_view(self, name, build):
        trainer = build(name)
        views = views_of(trainer, self.rows)
        adapted = trainer.model_inference(views)
        features = trainer.recipe.encode(views)[:, 0]
        plain = trainer.model.scale * features @ trainer.model.class_weights().T
        moved = (adapted - plain).abs().amax(-1)
        assert (moved > 1e-3).all()

    def test_views_belong_to_the_image_and_the_seed(self, name, build):
        trainer, other = build(name), build(name, "SEED", "2", output="other")
        dataset = trainer.test_loader.dataset
        same = dataset[SeededIndex(3, 1)]["img"], dataset[SeededIndex(3, 99)]["img"]
        assert torch.equal(*same)
        assert dataset[3]["img"].shape == (4, 3, 48, 48)
        differing = other.test_loader.dataset[SeededIndex(3, 1)]["img"]
        assert torch.equal(same[0][0], differing[0])
        assert all(not torch.equal(same[0][v], differing[v]) for v in (1, 2, 3))
        assert not torch.equal(same[0][1], same[0][2])

    def test_first_view_is_what_other_methods_see(self, name, build, make_config):
        trainer = build(name)
        plain = build_trainer(
            make_config("ZeroshotCLIP/base2novel", dataset="shapes_v2", output="plain")
        )
        pictures = torch.stack([plain.test_loader.dataset[row]["img"] for row in self.rows])
        with torch.no_grad():
            expected = F.normalize(plain.model.backbone.encode_image(pictures), dim=-1)
        found = trainer.recipe.encode(views_of(trainer, self.rows))[:, 0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    def test_adapted_parameters(self, name, build):
        expected = {"RAdaTTT": 6 * (128**2 + 128), "TPT": 4 * 128}[name]
        trainer = build(name)
        trainer.model_inference(views_of(trainer, self.rows[:2]))
        found = trainer.extra_result()["test_time"]
        assert found["adapted_parameters"] == expected
        assert found["selected_views"] == 2
        assert 0 < found["encoder_share"] < 1

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("VIEWS", "1"), ["VIEWS", "2 to 65536", "got 1"]),
            (("VIEWS", "5", "SELECT", "0.1"), ["SELECT", "keeps none", "0.2", "10"]),
            (("SELECT", "0"), ["SELECT", "got 0"]),
            (("SELECT", "1.5"), ["SELECT", "got 1.5"]),
            (("ENTROPY", "margin"), ["ENTROPY", "margin", "marginal"]),
            (("STEPS", "0"), ["STEPS", "got 0"]),
            (("BATCH", "0"), ["BATCH", "got 0"]),
            (("ENCODER_BATCH", "0"), ["ENCODER_BATCH", "got 0"]),
            (("LR", "0"), ["LR", "got 0"]),
        ],
    )
    def test_settings_that_cannot_work(self, name, build, options, said):
        words = [f"TRAINER.{name}.{w}" if w.isupper() else w for w in options]
        with pytest.raises(ValueError, match=f"TRAINER.{name}") as error:
            build(name, *words)
        for part in said:
            assert part in str(error.value)

    def test_cached_features_are_no_views(self, name, build):
        with pytest.raises(ValueError, match="FEATURE_CACHE.ENABLED.*views"):
            build(name, "FEATURE_CACHE.ENABLED", "True")
        options = ("FEATURE_CACHE.ENABLED", "True", "FEATURE_CACHE.REQUIRED", "False")
        trainer = build(name, *options)
        assert any("no feature cache" in note for note in trainer.notes)
        images = next(iter(trainer.test_loader))["img"]
        assert images.ndim == 5, "views, as without the option"

    def test_pictures_of_any_kind_are_needed(self, name, build):
        with pytest.raises(ValueError, match=r"INPUT\.NO_TRANSFORM"):
            build(name, "INPUT.NO_TRANSFORM", "True")

    def test_result_of_a_run(self, name, make_config, shapes_root, tmp_path):
        for label in ("solid_blue_square", "dotted_red_square", "striped_pink_star"):
            source = sorted(Path(shapes_root, "shapes/v2/test", label).glob("*.png"))[:2]
            folder = tmp_path / "data/pictures/test" / label
            folder.mkdir(parents=True)
            for path in source:
                shutil.copy(path, folder)
        shutil.copy(source[0], folder / "again.png")
        cfg = make_config(
            f"{name}/ttt", *views_options(name), "MODEL.BACKBONE.NAME", "shapes",
            "DATASET.DIR", "pictures", "DATALOADER.NUM_WORKERS", "1", dataset="folder",
            flags=("--root", str(tmp_path / "data")),
        )  # fmt: skip
        build_trainer(cfg).train()
        result = read_result(cfg.OUTPUT_DIR)
        assert result["num_test"] == 7
        assert result["metrics"]["accuracy"] > 100 / 3
        assert result["trainable_parameters"] == 0
        assert result["test_time"]["selected_views"] == 2


def test_rada_from_pictures_equals_an_episode_by_hand(build):
    trainer = build("RAdaTTT")
    options = trainer.options
    settings = {"selected": 2, "entropy": "marginal", "steps": 3, "lr": options.LR,
                "weight_decay": 0.01}  # fmt: skip
    views = views_of(trainer, (1, 66, 133))
    found = trainer.model_inference(views).softmax(-1)
    text, scale = trainer.model.class_weights(), trainer.model.scale
    for one, probabilities in zip(trainer.recipe.encode(views), found, strict=True):
        expected = by_hand(trainer.model.head, one, text, scale, **settings).softmax(-1)
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2])
def test_tpt_equals_the_formula(build, monkeypatch, steps):
    """Logits, gradients and adapted tokens, with texts that a tower written out has encoded."""
    trainer = build("TPT", "TRAINER.TPT.STEPS", str(steps))
    features = trainer.recipe.encode(views_of(trainer, (1, 66, 133))).double()
    trainer.model.double()
    model = clip.load("shapes").double().model
    start = model.token_embedding.weight[clip.tokenize("a photo of a")[0, 1:5]]
    recorded, adapted = record_gradients(monkeypatch), record_texts(monkeypatch)
    found = trainer.recipe.predict_episodes(features)
    assert len(recorded) == 3 * steps
    for number, (one, logits) in enumerate(zip(features, found, strict=True)):
        wanted, grads, tokens = context_by_hand(trainer, one, start, steps)
        for ours, theirs in zip(recorded[number * steps :], grads, strict=False):
            assert theirs[0].abs().max() > 0
            torch.testing.assert_close(ours[0][0], theirs[0], rtol=1e-7, atol=1e-12)
        last = adapted[steps * (number + 1)]  # behind the start's, `steps` passes an image
        torch.testing.assert_close(last[0], tokens, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(logits, wanted, rtol=1e-7, atol=1e-7)


def record_texts(monkeypatch) -> list[torch.Tensor]:
    """The context tokens of every pass of the text encoder in TPT from now on."""
    found, call = [], towers.functional_call

    def recording(module, values, args):
        found.extend(value.detach().clone() for value in values.values())
        return call(module, values, args)

    monkeypatch.setattr(towers, "functional_call", recording)
    return found


def test_tpt_needs_words_to_start_from(build):
    with pytest.raises(ValueError, match=r"TRAINER\.TPT\.CTX_INIT is empty"):
        build("TPT", "TRAINER.TPT.CTX_INIT", "")
    with pytest.raises(ValueError, match="n_ctx is 5"):
        build("TPT", "TRAINER.TPT.N_CTX", "5")


@pytest.fixture(scope="module")
def rada(shapes_root, tmp_path_factory):
    """RAda trained on 20 classes: one shot, one epoch."""
    folder = tmp_path_factory.mktemp("rada")
    options = (*SMALL, "OPTIM.WARMUP_EPOCH", "0")
    trainer = build_trainer(config_of_run(shapes_root, folder, "RAda/base2novel", *options))
    trainer.train()
    return trainer


class TestDagger:
    """RAdaTTT from a trained adapter."""

    @pytest.fixture
    def trained(self, rada, tmp_path):
        """Its model, and a copy of its folder that a test may spoil."""
        folder = shutil.copytree(rada.output_dir, tmp_path / "trained")
        return SimpleNamespace(model=rada.model, output_dir=str(folder))

    def test_episodes_start_from_the_trained_mask(self, trained, build):
        named = build("RAdaTTT", "TRAINER.RAdaTTT.FROM", trained.output_dir)
        loaded = build("RAdaTTT", output="other")
        loaded.load_model(trained.output_dir)
        for trainer in (named, loaded):
            state = trainer.model.head.state_dict()
            for name, value in trained.model.head.state_dict().items():
                assert torch.equal(value, state[name])
            assert not any(p.requires_grad for p in trainer.model.parameters())
        assert loaded.identity.loaded_from == (trained.output_dir, None)
        views = views_of(named, (0, 24))
        adapted = named.model_inference(views)
        assert torch.equal(adapted, loaded.model_inference(views))
        fresh = build("RAdaTTT", output="fresh").model_inference(views)
        assert (adapted - fresh).abs().max() > 1e-2

    def test_a_run_of_its_own_leads_to_what_it_started_from(self, trained, build):
        first = build("RAdaTTT", output="first")
        first.load_model(trained.output_dir)
        first.evaluator.process(torch.eye(40)[:2], torch.tensor([0, 1]))
        found = first.evaluator.evaluate()
        first.record.add_test("test", found, first.evaluator.per_class(), 0.0)
        second = build("RAdaTTT", output="second")
        second.load_model(first.output_dir)
        state = second.model.head.state_dict()
        for name, value in trained.model.head.state_dict().items():
            assert torch.equal(value, state[name])

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("TRAINER.RAdaTTT.MASK_LAYERS", "2"), ["MASK_LAYERS", "1", "2"]),
            (("TRAINER.RAdaTTT.QUERIES", "['text']"), ["QUERIES", "image"]),
            (("TRAINER.RAdaTTT.HEADS", "4"), ["HEADS", "8", "4"]),
            (("TRAINER.RAdaTTT.SOFTMAX", "joint"), ["SOFTMAX", "row", "joint"]),
            (("TEMP", "0.5"), ["TEMP", "1.0", "0.5"]),
        ],
    )
    @pytest.mark.parametrize("recorded", [True, False])
    def test_mask_of_another_form(self, trained, build, options, said, recorded):
        if not recorded:
            if options[0].split(".")[-1] not in ("MASK_LAYERS", "QUERIES"):
                return  # weights alone do not tell
            Path(trained.output_dir, "result.json").unlink()
            said = said[:1]
        with pytest.raises(ValueError, match="checkpoint's mask|TRAINER.RAdaTTT.FROM") as error:
            build("RAdaTTT", "TRAINER.RAdaTTT.FROM", trained.output_dir, *options)
        for part in said:
            assert part in str(error.value)

    def test_mask_of_another_backbone_or_method(self, trained, build):
        (path,) = Path(trained.output_dir, "RAda").glob("model.pth.tar-*")
        content = torch.load(path, weights_only=True)
        for change, said in (
            ({"backbone": "ViT-B/16"}, "backbone 'ViT-B/16'.*'shapes'.*--backbone ViT-B/16"),
            ({"method": "LightRA"}, "method 'LightRA'.*'RAda'"),
            ({"backbone_sha256": "0" * 64}, "the file of the backbone 'shapes' is another one"),
        ):
            torch.save({**content, "meta": {**content["meta"], **change}}, path)
            with pytest.raises(ValueError, match=f"TRAINER.RAdaTTT.FROM.*{said}"):
                build("RAdaTTT", "TRAINER.RAdaTTT.FROM", trained.output_dir)

    def test_spoiled_masks(self, trained, build):
        (path,) = Path(trained.output_dir, "RAda").glob("model.pth.tar-*")
        whole = path.read_bytes()
        for how, said in SPOILED.items():
            path.write_bytes(whole)
            spoil(path, how)
            with pytest.raises(ValueError, match=f'RAdaTTT.FROM: "{path}" .*{said}'):
                build("RAdaTTT", "TRAINER.RAdaTTT.FROM", trained.output_dir)
        path.write_bytes(whole)

    def test_directory_without_a_mask(self, build, tmp_path):
        for place, said in (("none", "no directory"), (".", "no checkpoint RAda/model.pth.tar")):
            with pytest.raises(FileNotFoundError, match=f"TRAINER.RAdaTTT.FROM.*{said}"):
                build("RAdaTTT", "TRAINER.RAdaTTT.FROM", str(tmp_path / place))
        with pytest.raises(FileNotFoundError, match="--model-dir.*no directory"):
            build("RAdaTTT").load_model(tmp_path / "none")
