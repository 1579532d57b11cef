"""TPT from trained prompts: episodes by hand, independence of images, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import clip
from dassl.engine import build_trainer
from tests.dassl.torch_files import SPOILED, spoil
from tests.trainers.baselines import write_released
from tests.trainers.plain import coupled, plain_image, plain_text, tokens_of, unit, vit_b16
from tests.trainers.test_time.starts import (
    FINE_GRAINED,
    context_by_hand,
    entropy_of_mean,
    least_entropy,
    make_run,
    record_gradients,
    steps_by_hand,
    views_of,
    views_options,
)
from trainers.finetuning.stages import FirstStageError

METHODS = ("CoOp", "CoCoOp", "MaPLe")
TEXT = "backbone.text_prompts.vectors"


@pytest.fixture
def trained(make_config):
    """(method, trailing options) -> a finished run."""
    return lambda method, *options, **more: make_run(make_config, method, *options, **more)


@pytest.fixture
def build(make_config):
    """(start, trailing options, output) -> TPT on ShapesV2."""

    def make(start, *options, output="run", dataset="shapes_v2"):
        file = f"TPT/ttt_{start.lower()}"
        cfg = make_config(file, *views_options("TPT"), *options, dataset=dataset, output=output)
        trainer = build_trainer(cfg)
        trainer.set_model_mode("eval")
        return trainer

    return make


@pytest.fixture
def started(build, trained):
    """(start, trailing options) -> TPT with a start."""
    return lambda start, *o: build(start, "FIRST_STAGE.DIR", trained(start).output_dir, *o)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp"])
def test_contexts_equal_the_formula(started, monkeypatch, method, steps):
    trainer = started(method, "TRAINER.TPT.STEPS", str(steps))
    trainer.model.double()
    prompts = trainer.model.backbone.text_prompts
    dim = trainer.model.backbone.embed_dim
    torch.manual_seed(0)
    f = torch.randn(2, 1, dim).double() + 0.5 * torch.randn(2, 4, dim).double()
    f = 3 * f if method == "CoCoOp" else unit(f)
    recorded = record_gradients(monkeypatch)
    found = trainer.recipe.predict_episodes(f)
    expected = []
    for views, logits in zip(f, found, strict=True):
        start = prompts.vectors[0]
        if method == "CoCoOp":  # the clean view's feature as it is, not of unit norm
            one, two = prompts.meta_net.linear1, prompts.meta_net.linear2
            hidden = (one.weight @ views[0] + one.bias).clamp(min=0)
            start = start + two.weight @ hidden + two.bias
        wanted, grads, _ = context_by_hand(trainer, unit(views), start, steps)
        torch.testing.assert_close(logits, wanted, rtol=1e-7, atol=1e-7)
        expected += grads
    for ours, theirs in zip(recorded, expected, strict=True):
        torch.testing.assert_close(ours[0].squeeze(0), theirs[0], rtol=1e-6, atol=1e-10)


def test_a_feature_of_another_length_is_another_start_from_cocoop(started):
    trainer = started("CoCoOp")
    views = views_of(trainer, (3,))
    f = trainer.recipe.encode(views)
    lengths = f.norm(dim=-1)
    assert (lengths - 1).abs().min() > 0.1
    found = trainer.recipe.predict_episodes(f)
    assert (found - trainer.recipe.predict_episodes(unit(f))).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [1, 2])
def test_maple_equals_the_formula(started, monkeypatch, steps):
    trainer = started("MaPLe", "TRAINER.TPT.STEPS", str(steps))
    trainer.model.double()
    state = dict(trainer.model.named_parameters())
    names = [n for n in state if "_prompts." in n]
    tokens, model = tokens_of(trainer), clip.load("shapes").double().model
    torch.manual_seed(1)
    pictures = torch.randn(2, 3, 3, 48, 48, dtype=torch.double)
    recorded = record_gradients(monkeypatch)
    found = trainer.recipe.predict_episodes(pictures)
    assert len(recorded) == 2 * steps
    for number, views in enumerate(pictures):
        values = [state[n].detach().clone().requires_grad_() for n in names]

        def classify(x, values=values):
            learned = dict(zip(names, values, strict=True))
            f = plain_image(model, x, coupled(learned))
            h = plain_text(model, tokens, learned[TEXT])
            return model.logit_scale.exp() * unit(f) @ unit(h).T

        grads = steps_by_hand(
            values,
            lambda _, views=views, run=classify: entropy_of_mean(run(views[1:])),
            steps=steps,
            lr=5e-3,
        )
        wanted = classify(views[:1])[0].detach()
        torch.testing.assert_close(found[number], wanted, rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(recorded[number * steps :], grads, strict=False):
            for name, a, b in zip(names, ours, theirs, strict=True):
                assert b.abs().max() > 0, name
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_images_do_not_depend_on_each_other(started, method):
    trainer = started(method)
    state = copy.deepcopy(trainer.model.state_dict())
    rows = (0, 46, 151)
    forward = trainer.model_inference(views_of(trainer, rows))
    backward = trainer.model_inference(views_of(trainer, rows[::-1]))
    alone = [trainer.model_inference(views_of(trainer, [row])) for row in rows]
    for other in (backward.flip(0), torch.cat(alone)):
        torch.testing.assert_close(forward.softmax(-1), other.softmax(-1), atol=1e-5, rtol=0)
    assert torch.equal(forward, trainer.model_inference(views_of(trainer, rows)))
    assert all(torch.equal(v, state[n]) for n, v in trainer.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in trainer.model.parameters())


def test_views_for_maple_are_the_surest_of_the_start(started):
    trainer = started("MaPLe")
    views = views_of(trainer, (1, 100))
    pictures = trainer.recipe.encode(views)
    mean, std = (torch.tensor(v)[:, None, None] for v in (
        trainer.cfg.INPUT.PIXEL_MEAN, trainer.cfg.INPUT.PIXEL_STD))  # fmt: skip
    for one, chosen in zip(views, pictures, strict=True):
        plain = (one / 255 - mean) / std
        rows = least_entropy(trainer.model(plain), 2)
        torch.testing.assert_close(chosen, plain[[0, *rows.tolist()]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_name_a_start(build, trained, method):
    run = trained(method)
    named = build(method, "FIRST_STAGE.DIR", run.output_dir)
    loaded = build(method, output="other")
    loaded.load_model(run.output_dir)
    for trainer in (named, loaded):
        state = trainer.model.state_dict()
        for name, value in run.model.state_dict().items():
            assert torch.equal(value, state[name])
        assert trainer.extra_result()["start"]["directory"] == run.output_dir
    loaded.evaluator.process(torch.eye(40)[:2], torch.tensor([0, 1]))
    found = loaded.evaluator.evaluate()
    loaded.record.add_test("test", found, loaded.evaluator.per_class(), 0.0)
    again = build(method, output="again")
    again.load_model(loaded.output_dir)
    assert again.recipe.start_directory == run.output_dir


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_start_from(build, method):
    trainer = build(method)
    for use in (
        lambda: trainer.load_model(""),
        lambda: trainer.model_inference(torch.zeros(1, 3, 48, 48)),
    ):
        with pytest.raises(FirstStageError, match=rf"finished run of {method}.*--model-dir"):
            use()


def test_starts_that_do_not_fit(build, trained, tmp_path):
    coop, maple = trained("CoOp"), trained("MaPLe")
    with pytest.raises(FirstStageError, match="FIRST_STAGE.DIR must be .* run of MaPLe.*No check"):
        build("MaPLe", "FIRST_STAGE.DIR", coop.output_dir)
    with pytest.raises(FirstStageError, match="--model-dir must be .* run of CoOp.*no directory"):
        build("CoOp").load_model(tmp_path / "none")
    with pytest.raises(FirstStageError, match=r"TRAINER.MaPLe.PROMPT_DEPTH 3, here it is 2"):
        build("MaPLe", "FIRST_STAGE.DIR", maple.output_dir, "TRAINER.MaPLe.PROMPT_DEPTH", "2")
    with pytest.raises(FirstStageError, match=r"TRAINER.CoOp.CTX_INIT 'a photo of a', here"):
        build("CoOp", "FIRST_STAGE.DIR", coop.output_dir, "TRAINER.CoOp.CTX_INIT", "a drawing")
    with pytest.raises(ValueError, match=r"TRAINER\.CoOp\.CSC is True"):
        build("CoOp", "TRAINER.CoOp.CSC", "True", "TRAINER.CoOp.CTX_INIT", "")
    with pytest.raises(ValueError, match=r"TRAINER\.TPT\.START.*'Coop'"):
        build("CoOp", "TRAINER.TPT.START", "Coop")


@pytest.mark.parametrize("change", [{"backbone": "ViT-B/16"}, {"method": "KgCoOp"}])
def test_start_of_another_origin(build, trained, change):
    run = trained("CoOp")
    (path,) = Path(run.output_dir).glob("*/model.pth.tar-1")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "meta": {**content["meta"], **change}}, path)
    ((what, value),) = change.items()
    with pytest.raises(FirstStageError, match=f"trained with {what} '{value}'"):
        build("CoOp", "FIRST_STAGE.DIR", run.output_dir)


def test_spoiled_starts_are_refused(build, trained):
    directory = trained("CoOp").output_dir
    (file,) = Path(directory).glob("*/model.pth.tar-*")
    whole = file.read_bytes()
    for how, said in SPOILED.items():
        file.write_bytes(whole)
        spoil(file, how)
        with pytest.raises(FirstStageError, match=f'FIRST_STAGE.DIR.*"{file}" .*{said}'):
            build("CoOp", "FIRST_STAGE.DIR", directory)


def test_start_on_a_replaced_backbone(build, trained):
    run = trained("CoOp")
    (path,) = Path(run.output_dir).glob("*/model.pth.tar-1")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "meta": {**content["meta"], "backbone_sha256": "0" * 64}}, path)
    with pytest.raises(FirstStageError, match="the file of the backbone 'shapes' is another one"):
        build("CoOp", "FIRST_STAGE.DIR", run.output_dir)


def test_released_context_is_a_start(build, tmp_path):
    context = torch.randn(4, 128)
    state = {"ctx": context, "token_prefix": torch.zeros(9, 1, 128),
             "token_suffix": torch.zeros(9, 72, 128)}  # fmt: skip
    trainer = build("CoOp")
    trainer.load_model(write_released(tmp_path, "prompt_learner", state, 50), epoch=50)
    assert torch.equal(trainer.model.backbone.text_prompts.vectors[0], context.half().float())
    state["ctx"] = torch.randn(16, 128)
    longer = write_released(tmp_path / "other", "prompt_learner", state, 50)
    with pytest.raises(FirstStageError, match="context has 16 vectors"):
        trainer.load_model(longer, epoch=50)


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_the_papers(make_config, method):
    cfg = make_config(f"TPT/ttt_{method.lower()}", dataset="imagenet_a")
    options = cfg.TRAINER.TPT
    assert (options.LR, options.WEIGHT_DECAY, options.STEPS) == (5e-3, 0.01, 1)
    assert (options.VIEWS, options.SELECT, options.ENTROPY) == (64, 0.1, "marginal")
    assert tuple(cfg.INPUT.RRCROP_SCALE) == (0.08, 1.0)
    source = make_config(cfg.FIRST_STAGE.CONFIG, dataset="imagenet")
    assert cfg.TRAINER[method] == source.TRAINER[method]


@pytest.mark.parametrize("file", ["ttt", "ttt_coop", "ttt_cocoop", "ttt_maple"])
def test_augmix_on_fine_grained_datasets_only(make_config, file):
    for dataset in FINE_GRAINED:
        assert make_config(f"TPT/{file}", dataset=dataset).TRAINER.TPT.AUGMIX
    for dataset in ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"):
        assert not make_config(f"TPT/{file}", dataset=dataset).TRAINER.TPT.AUGMIX


def test_augmix_changes_all_views_but_the_first(make_config):
    found = {}
    for word in ("True", "False"):
        cfg = make_config("TPT/ttt", *views_options("TPT"), "TRAINER.TPT.AUGMIX", word,
                          dataset="shapes_v2", output=word)  # fmt: skip
        trainer = build_trainer(cfg)
        found[word] = views_of(trainer, (7,))[0]
        assert torch.equal(found[word], views_of(trainer, (7,))[0])
    assert torch.equal(found["True"][0], found["False"][0])
    assert all(not torch.equal(found["True"][v], found["False"][v]) for v in (1, 2, 3))


@pytest.mark.parametrize(
    ("method", "number"), [("CoOp", 2_048), ("CoCoOp", 2_048), ("MaPLe", 1_185_024)]
)
def test_adapted_parameters_on_vit_b16(make_config, monkeypatch, method, number):
    monkeypatch.setattr(clip, "load", lambda *args, **kwargs: vit_b16())
    trainer = build_trainer(make_config(f"TPT/ttt_{method.lower()}", dataset="shapes_v2"))
    assert trainer.recipe.adapted_parameters() == number
    assert not any(p.requires_grad for p in trainer.model.parameters())
