"""KgCoOp and ProGrad, whose teacher is CLIP with a template: formulas, settings, released files."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.nn import functional as F

from dassl.engine import build_trainer
from scripts.benchmarks.tools import begin_training
from tests.trainers.baselines import (
    around_names,
    assert_sgd,
    epoch_rates,
    write_released,
)
from tests.trainers.plain import SMALL, unit
from trainers import prograd
from trainers.base.templates import HINT_FIRST, KGCOOP
from trainers.losses import soft_cross_entropy, with_gradient
from trainers.prograd import aligned_gradient


@pytest.fixture
def build(make_config):
    """(method, trailing options) -> trainer on Shapes."""

    def make(name, *options, output="run", dataset="shapes"):
        cfg = make_config(f"{name}/base2novel", *SMALL, *options, output=output, dataset=dataset)
        return build_trainer(cfg)

    return make


def put_back(trainer, start):
    """Forget what was stepped: the context is where it started, without gradients."""
    trainer._aside = None
    context = trainer.model.backbone.text_prompts.vectors
    context.data, context.grad = start.clone(), None


def one_step(trainer, seed=1):
    """A step in double precision from a context away from its start, to which it is put back."""
    torch.manual_seed(seed)
    model = trainer.model.double()
    parameter = model.backbone.text_prompts.vectors
    parameter.data += 0.2 * torch.randn_like(parameter)
    image = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    label = torch.randint(20, (3,))
    out = trainer.forward_loss(image, label)
    (3 * out.loss).backward()  # a gradient scaler's factor
    before = parameter.data.clone()
    trainer.model_update()
    assert not torch.equal(parameter.data, before)
    parameter.data.copy_(before)
    return image, label, out, parameter.grad / 3


def plain_logits(trainer, image, template):
    """A leaf that stands for the context; student's and teacher's logits and class weights."""
    plain = trainer.load_backbone().double().model
    names = trainer.dm.dataset.classnames
    ctx = trainer.model.backbone.text_prompts.vectors.detach().clone().requires_grad_(True)
    f, s = unit(plain.encode_image(image)), plain.logit_scale.exp()
    h = unit(around_names(plain, names, ctx.shape[1], ctx[0]))
    h0 = unit(plain.encode_text(open_clip.tokenize([template.format(n) for n in names])))
    return ctx, s * f @ h.T, s * f @ h0.T, h, h0


@pytest.mark.parametrize("dataset", ["shapes", "shapes_counts"])
def test_kgcoop_equals_the_formula(build, dataset):
    template = {"shapes": "a photo of a {}.", "shapes_counts": "a photo of {}."}[dataset]
    trainer = build("KgCoOp", "DATASET.SUBSAMPLE_CLASSES", "all", dataset=dataset)
    torch.manual_seed(0)
    model = trainer.model.double()
    parameter = model.backbone.text_prompts.vectors
    parameter.data += 0.2 * torch.randn_like(parameter)
    image = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    label = torch.tensor([0, 2, 1])
    out = trainer.forward_loss(image, label)
    ctx, z, _, h, h0 = plain_logits(trainer, image, template)
    ce, distance = F.cross_entropy(z, label), 1 - (h * h0).sum(-1).mean()
    torch.testing.assert_close(out.logits, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.parts["ce"], ce, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.parts["knowledge"], distance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.loss, ce + 8 * distance, rtol=1e-9, atol=1e-9)
    assert distance > 1e-4
    (expected,) = torch.autograd.grad(ce + 8 * distance, ctx)
    (gradient,) = torch.autograd.grad(out.loss, parameter)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("strength", "temperature"), [(1.0, 1.0), (0.8, 2.0)])
@pytest.mark.parametrize("agree", [False, True])
def test_prograd_equals_the_formula(build, strength, temperature, agree):
    options = ("TRAINER.ProGrad.LAMBDA", str(strength), "TRAINER.ProGrad.T", str(temperature))
    trainer = build("ProGrad", *options)
    start = trainer.model.double().backbone.text_prompts.vectors.detach().clone()
    # Seeds of batches with and without a conflict.
    for seed in range(30):
        put_back(trainer, start)
        image, label, out, gradient = one_step(trainer, seed)
        if bool(trainer._conflict) != agree:
            break
    ctx, z, z0, _, _ = plain_logits(trainer, image, "a photo of a {}.")
    task = F.cross_entropy(z, label)
    p0, log_p = (z0 / temperature).softmax(1), (z / temperature).log_softmax(1)
    teacher = -(p0 * log_p).sum(1).mean() * temperature**2
    a, b = (torch.autograd.grad(x, ctx, retain_graph=True)[0] for x in (task, teacher))
    dot = (a * b).sum()
    assert bool(dot >= 0) == agree
    expected = a if agree else a - strength * dot / b.norm() ** 2 * b
    torch.testing.assert_close(out.logits, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.loss, task, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.parts["teacher"], teacher, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)
    if not agree:
        assert not torch.allclose(gradient, a, rtol=1e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_prograd_aligns_the_gradients_of_the_whole_batch(build, monkeypatch, processes):
    """Parts of a batch conflict where the batch does not, and the other way round."""
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(6, 3, 48, 48, generator=generator)
    label = torch.randint(20, (6,), generator=generator)
    batch = {"img": image, "label": label, "domain": torch.zeros(6, dtype=torch.long)}

    trainers = {
        options: build("ProGrad", *options, output=f"run{len(options)}")
        for options in ((), ("OPTIM.ACCUMULATE", "2"))
    }
    start = trainers[()].model.double().backbone.text_prompts.vectors.detach().clone()

    def gradient_of(*options, seed):
        trainer = trainers[options]
        begin_training(trainer)
        parameter = trainer.model.double().backbone.text_prompts.vectors
        put_back(trainer, start)
        torch.manual_seed(seed)
        parameter.data += 0.2 * torch.randn_like(parameter)
        if not options:
            trainer.forward_backward({**batch, "img": image.double()})
            return parameter.grad, trainer._conflict
        parts = []
        for rows in (slice(0, 2), slice(2, 6)):
            out = trainer.forward_loss(image[rows].double(), label[rows])
            share = (rows.stop - rows.start) / 6
            (out.loss * share * processes).backward()
            if processes == 2:  # DDP leaves the mean in .grad, other gradients are each one's own
                parts.append((parameter.grad.clone(), trainer._aside.grad.clone()))
                parameter.grad = trainer._aside.grad = None
        if processes == 2:
            parameter.grad = (parts[0][0] + parts[1][0]) / 2
            trainer._aside.grad = parts[0][1]
            monkeypatch.setattr(
                prograd, "gather_features", lambda own: torch.cat([own, parts[1][1][None]])
            )
        trainer.model_update()
        return parameter.grad, trainer._conflict

    seen = set()
    for seed in range(12):
        expected, conflict = gradient_of(seed=seed)
        found, same = gradient_of("OPTIM.ACCUMULATE", "2", seed=seed)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert conflict == same
        seen.add(conflict)
        monkeypatch.undo()
        if len(seen) == 2:
            break
    assert seen == {0.0, 1.0}


def test_a_step_of_prograd_in_parts(build):
    """The engine's own, with OPTIM.ACCUMULATE, gives the same context and says the same."""
    found = []
    for parts in ("1", "3"):
        trainer = build("ProGrad", "OPTIM.ACCUMULATE", parts, output=f"parts{parts}")
        begin_training(trainer)
        parameter = trainer.model.double().backbone.text_prompts.vectors
        torch.manual_seed(6)  # a batch in conflict
        parameter.data += 0.2 * torch.randn_like(parameter)
        image, label = torch.randn(6, 3, 48, 48).double(), torch.randint(20, (6,))
        batch = {"img": image, "label": label, "domain": torch.zeros(6, dtype=torch.long)}
        if parts == "3":  # what a step that came to no end has left changes nothing
            trainer.forward_loss(image[:1], label[:1]).loss.backward()
        numbers = [trainer.forward_backward(batch) for _ in range(3)]
        found.append((parameter.data, numbers))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-12)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one == pytest.approx(other)
        assert one["conflict"] == 1
    assert {"loss", "ce", "teacher", "conflict"} < found[0][1][0].keys()


def test_aligned_gradient():
    a, b = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])
    full, conflict = aligned_gradient(a, b, 1.0)
    assert torch.equal(full, torch.tensor([1.0, 0.0]))
    assert conflict == 1
    assert torch.equal(aligned_gradient(a, b, 0.5)[0], torch.tensor([1.0, -0.5]))
    for harmless in (-b, torch.zeros(2), torch.tensor([1.0, 1.0]), torch.full((2,), torch.nan)):
        gradient, conflict = aligned_gradient(a, harmless, 1.0)
        assert conflict == 0
        if harmless.isfinite().all():
            assert torch.equal(gradient, a)


def test_soft_cross_entropy_has_the_gradient_of_the_divergence():
    torch.manual_seed(0)
    z, z0 = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    divergence = F.kl_div((z / 3).log_softmax(1), (z0 / 3).softmax(1), reduction="batchmean") * 9
    ours, theirs = (
        torch.autograd.grad(x, z)[0] for x in (soft_cross_entropy(z, z0, 3.0), divergence)
    )
    torch.testing.assert_close(ours, theirs)


def test_with_gradient():
    parameter = torch.zeros(2, requires_grad=True)
    value = with_gradient(torch.tensor(7.0), parameter, torch.tensor([1.0, torch.inf]))
    assert value == 7
    (4 * value).backward()
    assert torch.equal(parameter.grad, torch.tensor([4.0, torch.inf]))


@pytest.mark.parametrize(
    ("dataset", "free"),
    [
        ("OxfordPets", 8),
        ("DescribableTextures", 13),
        ("EuroSAT", 11),
        ("UCF101", 10),
        ("Food101", 9),
        ("Shapes", 12),
    ],
)
def test_prograd_starts_from_the_template_right_aligned(build, monkeypatch, dataset, free):
    template = HINT_FIRST.get(dataset, "a photo of a {}.")
    monkeypatch.setitem(HINT_FIRST, "Shapes", template)
    model = build("ProGrad").model
    context = model.backbone.text_prompts
    assert context.vectors.shape == (1, 16, 128)
    assert not context.vectors[0, :free].any()
    words = open_clip.tokenize([template.partition("{}")[0]])[0, 1 : 1 + 16 - free]
    table = model.backbone.model.token_embedding.weight
    assert torch.equal(context.vectors[0, free:], table[words])
    # a comma leaves a token between context and name
    left_over = "," in template
    tokens = model.bank.tokens[0, 17:]
    assert (
        tokens[0] == open_clip.tokenize(["a" if "of a" in template else "of"])[0, 1]
    ) == left_over


def test_prograd_from_random_vectors(build):
    torch.manual_seed(0)
    vectors = build(
        "ProGrad", "TRAINER.ProGrad.CTX_INIT", "False"
    ).model.backbone.text_prompts.vectors
    assert vectors.std().item() == pytest.approx(0.02, rel=0.1)


def test_templates_of_the_teachers():
    assert KGCOOP["DescribableTextures"] == "a photo of a {}, a type of texture."
    assert KGCOOP["OxfordPets"] == "a photo of a {}, a type of pet."
    assert HINT_FIRST["OxfordFlowers"] == "a type of flower, a photo of a {}."
    assert HINT_FIRST["DescribableTextures"] == "a texture of {}."
    assert HINT_FIRST["EuroSAT"] == KGCOOP["EuroSAT"] == "a centered satellite photo of {}."


def test_the_teacher_is_computed_once(build, monkeypatch):
    trainer = build("KgCoOp")
    first = trainer.model.teacher_weights()
    monkeypatch.setattr(type(trainer.model.teacher_bank), "encode_all", None)
    trainer.model.backbone.text_prompts.vectors.data.normal_()
    assert trainer.model.teacher_weights() is first
    assert not first.requires_grad


def test_kgcoop_settings(make_config):
    for protocol in ("base2novel", "few_shot", "cross_dataset"):
        cfg = make_config(f"KgCoOp/{protocol}", dataset="eurosat")
        assert_sgd(cfg)
        assert (cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == (100, 128)
        options = cfg.TRAINER.KgCoOp
        assert (options.W, options.CTX_INIT, options.N_CTX) == (8.0, "a photo of a", 4)
        assert epoch_rates(cfg)[:3] == pytest.approx([1e-5, 2e-3, 1.999507e-3], rel=1e-6)


def test_prograd_settings(make_config):
    def settings(protocol, shots, dataset):
        shots = ("DATASET.NUM_SHOTS", str(shots))
        cfg = make_config(f"ProGrad/{protocol}", *shots, dataset=dataset)
        assert_sgd(cfg)
        assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 32
        assert cfg.TRAINER.ProGrad.N_CTX == 16
        assert epoch_rates(cfg)[:2] == pytest.approx([1e-5, 2e-3])
        return cfg.OPTIM.MAX_EPOCH, cfg.TRAINER.ProGrad.LAMBDA

    assert settings("base2novel", 4, "dtd") == settings("base2novel", 4, "ucf101") == (100, 1.0)
    assert settings("base2novel", 16, "dtd") == (100, 0.8)
    assert settings("cross_dataset", 4, "imagenet") == (50, 1.0)
    for shots, epochs in ((1, 50), (2, 100), (4, 100), (8, 200), (16, 200)):
        assert settings("few_shot", shots, "ucf101") == (epochs, 1.0)
        assert settings("few_shot", shots, "eurosat") == (epochs, 0.8 if shots > 4 else 1.0)
        assert settings("few_shot", shots, "imagenet") == (50, 1.0)


def released(n_ctx):
    torch.manual_seed(2)
    return {
        "ctx": torch.randn(n_ctx, 128),
        "token_prefix": torch.randn(9, 1, 128),
        "token_suffix": torch.randn(9, 76 - n_ctx, 128),
    }


@pytest.mark.parametrize(("name", "n_ctx"), [("KgCoOp", 4), ("ProGrad", 16)])
def test_released_checkpoints_load_and_evaluate(build, tmp_path, name, n_ctx):
    state = released(n_ctx)
    if name == "KgCoOp":
        state["bias_vectors"] = torch.randn(1, 512)
        state["meta_net.linear1.weight"] = torch.randn(512, 512)
        state["meta_net.linear1.bias"] = torch.randn(512)
    trainer = build(name)
    before = trainer.test()
    trainer.load_model(write_released(tmp_path / "r", "prompt_learner", state, 100), epoch=100)
    assert torch.equal(trainer.model.backbone.text_prompts.vectors[0], state["ctx"].half().float())
    assert trainer.test() != before
    other = write_released(tmp_path / "r", "prompt_learner", released(8), 100)
    with pytest.raises(ValueError, match=rf"8 vectors, the model's {n_ctx}: set TRAINER\.{name}"):
        trainer.load_model(other, epoch=100)


def test_more_words_than_vectors(build):
    with pytest.raises(ValueError, match=r"n_ctx must be from 4 .*got 3"):
        build("ProGrad", "TRAINER.ProGrad.N_CTX", "3")
