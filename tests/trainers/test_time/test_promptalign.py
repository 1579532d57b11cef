"""PromptAlign (arXiv:2311.01459): alignment, token statistics, episodes by hand, bad input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import clip
from dassl.engine import build_trainer
from scripts import promptalign_statistics
from tests.trainers.plain import coupled, plain_text, tokens_of, unit, vit_b16
from tests.trainers.test_time.starts import (
    FINE_GRAINED,
    entropy_of_mean,
    make_run,
    record_gradients,
    steps_by_hand,
    views_of,
    views_options,
)
from trainers.finetuning.stages import FirstStageError
from trainers.test_time import token_statistics as module
from trainers.test_time.promptalign import alignment
from trainers.test_time.token_statistics import FILE_NAME, token_statistics
from trainers.test_time.towers import block_inputs

TEXT = "backbone.text_prompts.vectors"


@pytest.fixture
def maple(make_config):
    """A finished run of MaPLe."""
    return make_run(make_config, "MaPLe")


@pytest.fixture
def build(make_config):
    """(trailing options, output) -> PromptAlign on ShapesV2."""

    def make(*options, output="run"):
        words = views_options("PromptAlign")
        cfg = make_config(
            "PromptAlign/ttt", *words, *options, dataset="shapes_v2", output=output
        )  # fmt: skip
        trainer = build_trainer(cfg)
        trainer.set_model_mode("eval")
        return trainer

    return make


@pytest.fixture
def few_images(monkeypatch):
    """Statistics over the first 8 training images of any dataset: (count of how often)."""
    whole, made = module.training_batches, []

    def few(cfg, dataset, device):
        made.append(len(dataset.train_x))
        dataset._train_x = dataset.train_x[:8]
        return whole(cfg, dataset, device)

    monkeypatch.setattr(module, "training_batches", few)
    monkeypatch.setattr(promptalign_statistics, "training_batches", few)
    return made


def prompted_image(model, image, sets):
    """CLIP's vision tower with prompts (n, W) behind the patches: features, blocks' inputs."""
    visual, n, inputs = model.visual, len(sets[0]), []
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([cls, x], 1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, sets[0].expand(len(x), -1, -1)], 1))
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(sets):
            x = torch.cat([x[:, :-n], sets[i].expand(len(x), -1, -1)], 1)
        inputs.append(x)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj, inputs


def test_alignment_is_the_plain_formula():
    tokens = [
        torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]]),
        torch.tensor([[[0.0, 0.0]], [[1.0, 2.0]]]),
    ]
    mean = torch.tensor([[[2.5, 4.0]], [[0.5, 3.0]]])
    variance = torch.tensor([[[1.0, 3.0]], [[0.0, 1.0]]])
    # Block 0: means 2, 4, variances 1, 4; block 1: means 0.5, 1, variances 0.25, 1.
    expected = (0.5 + 0) / 2 + (0 + 1) / 2 + (0 + 2) / 2 + (0.25 + 0) / 2
    assert alignment(tokens, mean, variance).item() == pytest.approx(expected)


def test_inputs_of_blocks_and_statistics_equal_a_plain_computation(maple):
    model = maple.model.double().eval()
    images = torch.randn(7, 3, 48, 48, dtype=torch.double)
    learned = {n: p.detach() for n, p in model.named_parameters()}
    feature, inputs = prompted_image(clip.load("shapes").double().model, images, coupled(learned))
    torch.testing.assert_close(model.raw_image_features(images), feature)
    with block_inputs(model.backbone, range(3)) as found:
        model.backbone.encode_image(images)
    for number in range(3):
        torch.testing.assert_close(found[number], inputs[number])
    statistics = token_statistics(model, images.split([3, 1, 3]), "some")
    for number in range(3):
        mean = inputs[number].sum(0) / 7
        variance = ((inputs[number] - mean) ** 2).sum(0) / 7
        torch.testing.assert_close(statistics.mean[number], mean.float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            statistics.variance[number], variance.float(), rtol=1e-6, atol=1e-6
        )
    assert (statistics.images, statistics.dataset) == (7, "some")
    for number, prompts in enumerate(coupled(learned)[1:], 1):  # as in the released code
        slots = statistics.mean[number, -2:], statistics.variance[number, -2:]
        torch.testing.assert_close(slots, (prompts.float(), torch.zeros_like(slots[1])))
    kept = found[0]
    model.backbone.encode_image(images)
    assert found[0] is kept  # hooks are gone behind the with


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("steps", [1, 2])
def test_episodes_equal_the_formula(build, maple, few_images, monkeypatch, form, steps):
    trainer = build(
        *("FIRST_STAGE.DIR", maple.output_dir, "TRAINER.PromptAlign.ALIGN", form),
        *("TRAINER.PromptAlign.STEPS", str(steps), "TRAINER.PromptAlign.LR", "0.04"),
    )
    targets = trainer.statistics
    trainer.model.double()
    state = dict(trainer.model.named_parameters())
    names = [n for n in state if "_prompts." in n]
    tokens, model = tokens_of(trainer), clip.load("shapes").double().model
    torch.manual_seed(1)
    pictures = torch.randn(2, 3, 3, 48, 48, dtype=torch.double)
    recorded = record_gradients(monkeypatch)
    found = trainer.recipe.predict_episodes(pictures)
    for number, views in enumerate(pictures):
        values = [state[n].detach().clone().requires_grad_() for n in names]

        def run(x, values=values):
            learned = dict(zip(names, values, strict=True))
            f, inputs = prompted_image(model, x, coupled(learned))
            h = plain_text(model, tokens, learned[TEXT])
            return model.logit_scale.exp() * unit(f) @ unit(h).T, inputs

        def loss(_, views=views, run=run):
            logits, inputs = run(views[1:])
            terms = []
            for block in range(3 if form == "paper" else 2):
                mu = inputs[block].mean(0)
                var = ((inputs[block] - mu) ** 2).mean(0)
                terms.append((mu - targets.mean[block]).abs().mean())
                terms.append((var - targets.variance[block]).abs().mean())
            weight = 100 / 3 if form == "paper" else 100 / 3 * 0.5
            assert weight * sum(terms) > 0.1
            return entropy_of_mean(logits) + weight * sum(terms)

        grads = steps_by_hand(values, loss, steps=steps, lr=0.04)
        wanted = run(views[:1])[0][0].detach()
        mine = recorded[number * steps : (number + 1) * steps]
        for ours, theirs in zip(mine, grads, strict=True):
            for name, a, b in zip(names, ours, theirs, strict=True):
                assert b.abs().max() > 0, name
                torch.testing.assert_close(
                    a, b, rtol=1e-6, atol=1e-9 * float(b.abs().max()), msg=name
                )
        torch.testing.assert_close(found[number], wanted, rtol=1e-6, atol=1e-6)


def test_penalty_reaches_deep_prompts_in_their_own_block(build, maple, few_images):
    trainer = build("FIRST_STAGE.DIR", maple.output_dir)
    trainer.statistics  # noqa: B018 - made in single precision, of the trained prompts
    model = trainer.model.double()
    torch.manual_seed(2)
    for parameter in model.backbone.text_prompts.parameters():  # as after a first step
        parameter.data += 0.01 * torch.randn_like(parameter)
    learned = {n: p.requires_grad_() for n, p in model.named_parameters() if "_prompts." in n}
    views = torch.randn(3, 3, 48, 48, dtype=torch.double)
    with block_inputs(model.backbone, trainer.blocks) as tokens:
        model.backbone.encode_image(views)
    penalty = trainer.penalty([tokens[block] for block in trainer.blocks])
    ours = torch.autograd.grad(penalty, list(learned.values()), allow_unused=True)

    sets = coupled(learned)
    _, inputs = prompted_image(clip.load("shapes").double().model, views, sets)
    targets, terms = trainer.statistics, []
    for block in (0, 1):
        mu = inputs[block].mean(0)
        variance = ((inputs[block] - mu) ** 2).mean(0)
        terms += [(mu - targets.mean[block]).abs().mean()]
        terms += [(variance - targets.variance[block]).abs().mean()]
    plain = 0.5 * 100 / 3 * sum(terms)
    torch.testing.assert_close(penalty, plain, rtol=1e-10, atol=0)
    theirs = torch.autograd.grad(plain, list(learned.values()), allow_unused=True)
    for name, a, b in zip(learned, ours, theirs, strict=True):
        if ".maps.2." in name:  # of block 2, whose input is not aligned
            assert (a, b) == (None, None)
            continue
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * float(b.abs().max()), msg=name)
    # The map of block 1 has no say but in its own two slots: the gradient is their mean's sign.
    apart = (sets[1] - targets.mean[1, -2:]).sign().sum(0) / targets.mean[1].numel()
    torch.testing.assert_close(
        ours[list(learned).index("backbone.vision_prompts.maps.1.bias")], 0.5 * 100 / 3 * apart
    )


def test_images_do_not_depend_on_each_other(build, maple, few_images):
    trainer = build("FIRST_STAGE.DIR", maple.output_dir)
    state = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    views = views_of(trainer, (0, 46, 151))
    forward = trainer.model_inference(views)
    for other in (
        trainer.model_inference(views.flip(0)).flip(0),
        torch.cat([trainer.model_inference(one[None]) for one in views]),
    ):
        torch.testing.assert_close(forward.softmax(-1), other.softmax(-1), atol=1e-5, rtol=0)
    assert all(torch.equal(v, state[n]) for n, v in trainer.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in trainer.model.parameters())
    pictures = torch.randn(2, 3, 48, 48)
    assert torch.equal(trainer.model_inference(pictures), maple.model.eval()(pictures))


def test_statistics_are_made_once_and_again_for_other_prompts(
    build, maple, few_images, make_config
):
    path = Path(maple.output_dir, FILE_NAME)
    first = build("FIRST_STAGE.DIR", maple.output_dir)
    first.load_model("")
    assert few_images == [960]  # all of Shapes, although the run had one shot
    assert (first.statistics.images, first.statistics.dataset) == (8, "Shapes")
    written = path.read_bytes()
    second = build(output="second")
    second.load_model(maple.output_dir)
    assert len(few_images) == 1
    assert torch.equal(second.statistics.mean, first.statistics.mean)
    assert second.extra_result()["token_statistics"]["images"] == 8
    make_run(make_config, "MaPLe", seed=4)
    third = build(output="third")
    third.load_model(maple.output_dir)
    assert len(few_images) == 2
    assert path.read_bytes() != written
    assert (third.statistics.mean - first.statistics.mean).abs().max() > 1e-3


def test_statistics_of_another_format(build, maple, few_images, capsys):
    trainer = build("FIRST_STAGE.DIR", maple.output_dir)
    path, key = Path(maple.output_dir, FILE_NAME), "TRAINER.PromptAlign.STATISTICS"
    made = trainer.statistics
    assert trainer.extra_result()["token_statistics"]["format"] == 2
    content = torch.load(path)
    first = {name: value for name, value in content.items() if name != "format"}
    for number, old in ((1, first), (3, {**content, "format": 3})):
        torch.save({**old, "mean": old["mean"] + 1}, path)
        said = rf"{FILE_NAME} has token statistics of format {number}, not of 2; repeat .*\.py"
        with pytest.raises(ValueError, match=f"{key}: .*{said}"):
            build(key, str(path), output=f"named{number}").load_model(maple.output_dir)
        capsys.readouterr()
        again = build(output=f"again{number}")
        again.load_model(maple.output_dir)
        out = capsys.readouterr().out
        assert f'{FILE_NAME}" has token statistics of format {number}, not of 2: they are' in out
        assert torch.equal(again.statistics.mean, made.mean)
        assert torch.load(path)["format"] == 2


def test_command_makes_the_same_statistics(build, maple, few_images, tmp_path, shapes_root):
    output = tmp_path / "named.pt"
    words = ["--model-dir", maple.output_dir, "--root", shapes_root, "--device", "cpu"]
    assert promptalign_statistics.main([*words, "--output", str(output)]) == 0
    assert not Path(maple.output_dir, FILE_NAME).exists()
    named = build("FIRST_STAGE.DIR", maple.output_dir,
                  "TRAINER.PromptAlign.STATISTICS", str(output))  # fmt: skip
    own = build("FIRST_STAGE.DIR", maple.output_dir, output="own")
    assert few_images == [960]
    torch.testing.assert_close(named.statistics.mean, own.statistics.mean)
    torch.testing.assert_close(named.statistics.variance, own.statistics.variance)
    assert named.statistics.model == own.statistics.model
    assert promptalign_statistics.main([*words, "--", "DATASET.NUM_SHOTS", "2"]) == 0
    assert few_images[-1] == 80


def test_command_says_what_is_missing(maple, tmp_path, capsys):
    Path(maple.output_dir, "result.json").unlink()
    for directory, said in (
        (maple.output_dir, "no complete result.json.*--dataset-config-file"),
        (str(tmp_path / "none"), "--model-dir: no directory"),
    ):
        assert promptalign_statistics.main(["--model-dir", directory]) == 1
        assert re.search(said, capsys.readouterr().err)


def test_statistics_that_cannot_be_used(build, maple, few_images, tmp_path, make_config):
    trainer = build("FIRST_STAGE.DIR", maple.output_dir)
    file = tmp_path / "statistics.pt"
    other = make_run(make_config, "MaPLe", seed=5, output="other")
    elsewhere = build("FIRST_STAGE.DIR", other.output_dir, output="elsewhere")
    elsewhere.statistics.save(file)
    key = r"TRAINER.PromptAlign.STATISTICS"
    named = ("FIRST_STAGE.DIR", maple.output_dir, key, str(file))
    with pytest.raises(ValueError, match=f"{key}.*made with another model"):
        build(*named, output="a").load_model("")
    torch.save({"mean": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match=f"{key}.*holds no token statistics"):
        build(*named, output="b").load_model("")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{key}: no file .*promptalign_statistics"):
        build(*named, output="c").load_model("")
    Path(maple.output_dir, "result.json").unlink()
    with pytest.raises(FirstStageError, match="no complete result.json.*--dataset-config-file"):
        trainer.load_model("")


def test_nothing_to_start_from(build):
    trainer = build()
    for use in (lambda: trainer.load_model(""), trainer.test):
        with pytest.raises(FirstStageError, match=r"PromptAlign .* finished run of MaPLe"):
            use()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ALIGN", "papers", "'papers'.*paper"),
        ("BETA", "-1", "got -1"),
        ("LAYERS", "1", "got 1"),
        ("VIEWS", "1", "got 1"),
    ],
)
def test_settings_that_cannot_work(build, key, value, said):
    with pytest.raises(ValueError, match=rf"TRAINER.PromptAlign.{key}.*{said}"):
        build(f"TRAINER.PromptAlign.{key}", value)


def test_settings_are_the_released_ones(make_config):
    for dataset in ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r", "imagenet"):
        cfg = make_config("PromptAlign/ttt", dataset=dataset)
        options = cfg.TRAINER.PromptAlign
        assert (options.LR, options.WEIGHT_DECAY, options.STEPS) == (4e-2, 0.01, 1)
        assert (options.VIEWS, options.SELECT, options.ENTROPY) == (64, 0.1, "marginal")
        assert (options.BETA, options.ALIGN) == (100.0, "released")
        assert "AUGMIX" not in options
    for dataset in FINE_GRAINED:
        assert make_config("PromptAlign/ttt", dataset=dataset).TRAINER.PromptAlign.LR == 5e-4
    maple = cfg.TRAINER.MaPLe
    assert (maple.N_CTX, maple.PROMPT_DEPTH, maple.CTX_INIT) == (2, 3, "a photo of a")
    first = make_config(cfg.FIRST_STAGE.CONFIG, dataset="imagenet")
    assert first.TRAINER.MaPLe == maple
    assert (first.OPTIM.MAX_EPOCH, first.OPTIM.LR) == (2, 2.6e-3)


def test_adapted_parameters_and_blocks_on_vit_b16(make_config, monkeypatch):
    monkeypatch.setattr(clip, "load", lambda *args, **kwargs: vit_b16())
    trainer = build_trainer(make_config("PromptAlign/ttt", dataset="shapes_v2"))
    assert trainer.recipe.adapted_parameters() == 1_185_024
    assert trainer.blocks == range(2)
    assert not any(p.requires_grad for p in trainer.model.parameters())
