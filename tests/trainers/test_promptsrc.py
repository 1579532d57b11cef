"""PromptSRC (arXiv:2307.06948): prompts, three regularisers, the Gaussian average."""

import functools
import math

import open_clip
import pytest
import torch

import clip
from dassl.engine import build_trainer, trainable_state
from tests.trainers.plain import (
    check_step,
    cosine_loss,
    learning_rates,
    plain_image,
    plain_text,
    tokens_of,
    unit,
)
from tests.trainers.test_ivlp import TEXT, VISION
from trainers import promptsrc
from trainers.base.averages import gaussian_weights

METHOD = "PromptSRC"


@functools.cache  # 1,200 texts through a tower in double precision
def teacher_text(names):
    """The release's 60 templates: features added up before they are normalised."""
    model = clip.load("shapes").double().model
    every = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    first = "a photo of a {}."
    templates = [first, *(t for t in every[:60] if t != first)]
    assert len(templates) == 60
    rows = []
    for name in names:
        features = plain_text(model, clip.tokenize([t.format(name) for t in templates]))
        rows.append(unit(features.mean(0, keepdim=True)))
    return torch.cat(rows).detach()


@pytest.mark.parametrize("kl_mean", ["entries", "batch"])
def test_step_equals_the_formula(build, kl_mean):
    trainer = build("TRAINER.PromptSRC.KL_MEAN", kl_mean)
    tokens, names = tokens_of(trainer), tuple(trainer.dm.dataset.classnames)

    def expected(model, learned, image, label):
        f = unit(plain_image(model, image, learned[VISION]))
        h = unit(plain_text(model, tokens, learned[TEXT]))
        f0, h0 = unit(plain_image(model, image)).detach(), teacher_text(names)
        logits, ce = cosine_loss(model, f, h, label)
        p0 = torch.softmax(model.logit_scale.exp() * f0 @ h0.T, 1)
        p = torch.softmax(logits, 1)
        divergence = (p0 * (p0.log() - p.log())).sum() / (60 if kl_mean == "entries" else 3)
        terms = {
            "ce": ce,
            "text": 25 * (h - h0).abs().mean(),
            "image": 10 * (f - f0).abs().mean(),
            "kl": divergence,
        }
        return {"logits": logits, "loss": sum(terms.values()), **terms}

    check_step(trainer, expected)


def test_gaussian_weights():
    weights = gaussian_weights(20, 15, 1)
    plain = [math.exp(-((t - 15) ** 2) / 2) for t in range(1, 21)]
    assert weights.tolist() == pytest.approx([w / sum(plain) for w in plain])
    assert weights.argmax() == 14
    assert gaussian_weights(2, 500, 1).tolist() == pytest.approx([0, 1])  # no 0 / 0
    assert gaussian_weights(3, 2, 1, first=1)[0] == 0
    assert gaussian_weights(3, 2, 1, first=1).sum() == pytest.approx(1)


EPOCHS = ("OPTIM.MAX_EPOCH", "3", "TRAINER.PromptSRC.GPA_MEAN", "2", "OPTIM.WARMUP_EPOCH", "0")


def record(trainer):
    """The prompts at the end of every epoch, before anything is done to them."""
    states, after_epoch = [], trainer.after_epoch

    def recording():
        state = trainable_state(trainer.model)
        states.append({name: value.detach().clone() for name, value in state.items()})
        after_epoch()

    trainer.after_epoch = recording
    return states


def test_the_saved_model_is_the_average_of_the_epochs(build):
    trainer = build(*EPOCHS)
    states = record(trainer)
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    weights = [math.exp(-0.5), 1, math.exp(-0.5)]
    expected = {
        name: sum(w * state[name].double() for w, state in zip(weights, states, strict=True))
        / sum(weights)
        for name in states[0]
    }
    other = build(*EPOCHS, output="other")
    other.load_model(trainer.output_dir)
    for model in (trainer.model, other.model):
        for name, value in trainable_state(model).items():
            torch.testing.assert_close(value, expected[name].float(), rtol=1e-6, atol=1e-8)
            assert not torch.equal(value, states[-1][name])
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    image = torch.randn(2, 3, 48, 48)
    assert torch.equal(trainer.model.eval()(image), other.model.eval()(image))


def test_a_resumed_run_averages_what_the_whole_run_does(build):
    whole = build(*EPOCHS)
    whole.train()

    broken = build(*EPOCHS, output="broken")
    end_epoch = broken.end_epoch

    def killed():
        end_epoch()
        if broken.epoch == 1:
            raise KeyboardInterrupt

    broken.end_epoch = killed
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = build(*EPOCHS, output="broken")
    resumed.train()
    assert resumed.start_epoch == 2
    expected = trainable_state(whole.model)
    for name, value in trainable_state(resumed.model).items():
        assert torch.equal(value, expected[name])


def test_from_a_checkpoint_without_an_average_the_rest_is_averaged(build, tmp_path):
    options = (*EPOCHS, "TRAIN.CHECKPOINT_FREQ", "1")
    first = build(*options, output="first")
    first.max_epoch = 1
    first.train()
    second = build(*options, "RESUME", first.output_dir, output="second")
    states = record(second)
    second.train()
    assert len(states) == 2
    assert "prompts are averaged from epoch 2 on" in second.notes
    weights = [1, math.exp(-0.5)]
    for name, value in trainable_state(second.model).items():
        expected = sum(w * state[name] for w, state in zip(weights, states, strict=True))
        torch.testing.assert_close(value, expected / sum(weights), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("protocol", "epochs", "third", "last"),
    [
        ("base2novel", 20, 2.48461e-3, 6.1179e-5),
        ("cross_dataset", 20, 2.48461e-3, 6.1179e-5),
        ("few_shot", 50, 2.49753e-3, 9.8566e-6),
    ],
)
def test_schedule(make_config, protocol, epochs, third, last):
    trainer = build_trainer(make_config(f"PromptSRC/{protocol}", "DATASET.NUM_SHOTS", "1"))
    rates = learning_rates(trainer)
    assert rates[:3] == pytest.approx([1e-5, 2.5e-3, third], rel=1e-5)
    assert (len(rates), rates[-1]) == (epochs, pytest.approx(last, rel=1e-4))
    group = trainer._optims["VLPromptLearner"].param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, False)
    assert trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4


@pytest.mark.parametrize(
    ("protocol", "dataset", "epochs", "mean", "std"),
    [
        ("base2novel", "dtd", 20, 15, 1),
        ("few_shot", "caltech101", 50, 30, 30),
        ("few_shot", "sun397", 50, 30, 30),
        ("few_shot", "stanford_cars", 50, 45, 5),
        ("few_shot", "eurosat", 50, 45, 5),
        ("cross_dataset", "imagenet", 20, 6, 10),
    ],
)
def test_settings_of_the_average(make_config, protocol, dataset, epochs, mean, std):
    cfg = make_config(f"PromptSRC/{protocol}", dataset=dataset)
    options = cfg.TRAINER.PromptSRC
    assert (cfg.OPTIM.MAX_EPOCH, options.GPA_MEAN, options.GPA_STD) == (epochs, mean, std)
    assert options.PROMPT_DEPTH_TEXT == (3 if protocol == "cross_dataset" else 9)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("GPA_STD", "0.0", "GPA_STD must be a finite number above 0, got 0.0"),
        ("KL_MEAN", "entry", "KL_MEAN must be one of entries, batch.*'entries'"),
    ],
)
def test_bad_values_are_refused(build, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(f"TRAINER.PromptSRC.{key}", value)


def test_teacher_is_computed_once(build, count_calls):
    calls = count_calls(promptsrc, "template_means")
    trainer = build(*EPOCHS)
    trainer.train()
    assert len(calls) == 1
