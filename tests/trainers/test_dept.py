"""DePT on each of its hosts: formula, the classes its probe serves, rates, files."""

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clip
from dassl.engine import build_trainer
from tests.trainers.baselines import (
    around_names,
    assert_sgd,
    epoch_rates,
)
from tests.trainers.plain import (
    SMALL,
    check_step,
    cosine_loss,
    coupled,
    plain_image,
    plain_text,
    tokens_of,
    unit,
)
from trainers.dept import HOSTS
from trainers.heads.probe import Probe

FILES = {
    "CoOp": "base2novel",
    "CoCoOp": "base2novel_cocoop",
    "KgCoOp": "base2novel_kgcoop",
    "MaPLe": "base2novel_maple",
}


@pytest.fixture
def build(make_config):
    """(host, trailing options) -> trainer on Shapes."""

    def make(host="CoOp", *options, output="run", dataset="shapes"):
        file = f"DePT/{FILES[host]}"
        return build_trainer(make_config(file, *SMALL, *options, output=output, dataset=dataset))

    return make


@pytest.mark.parametrize("host", ["CoOp", "CoCoOp", "KgCoOp"])
def test_logits_loss_and_gradients_equal_the_formula(build, host):
    trainer = build(host)
    torch.manual_seed(1)
    model = trainer.model.double()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data += 0.2 * torch.randn_like(parameter)
    image = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    label = torch.tensor([0, 19, 7])
    out = trainer.forward_loss(image, label)
    ours = torch.autograd.grad(out.loss, list(parameters.values()))

    own = {n: p.detach().clone().requires_grad_(True) for n, p in parameters.items()}
    by_end = {
        n.rsplit(".", 1)[-1] if "probe" in n else n.split("prompts.")[1]: p for n, p in own.items()
    }
    plain = trainer.load_backbone().double().model
    names, ctx = trainer.dm.dataset.classnames, by_end["vectors"][0]
    raw = plain.encode_image(image)
    f, s = unit(raw), plain.logit_scale.exp()
    if host == "CoCoOp":
        layers = [by_end[f"meta_net.linear{i}.{k}"] for i in (1, 2) for k in ("weight", "bias")]
        pi = F.linear(F.linear(f, *layers[:2]).relu(), *layers[2:])
        h = torch.stack([around_names(plain, names, 4, ctx + shift) for shift in pi])
        logits, chosen = s * (f[:, None] * unit(h)).sum(-1), h[[0, 1, 2], label]
    else:
        h = around_names(plain, names, len(ctx), ctx)
        logits, chosen = s * f @ unit(h).T, h[label]
    features = torch.cat(
        [
            by_end["text_scale"] * chosen + by_end["text_shift"],
            by_end["image_scale"] * raw + by_end["image_shift"],
        ]
    )
    rows = features @ by_end["weight"].T + by_end["bias"]
    ce = F.cross_entropy(logits, label)
    probe_ce = -rows.log_softmax(1)[range(6), torch.cat([label, label])].mean()
    loss = 0.3 * ce + 0.7 * probe_ce
    if host == "KgCoOp":
        h0 = plain.encode_text(open_clip.tokenize([f"a photo of a {name}." for name in names]))
        penalty = 2 * (1 - (unit(h) * unit(h0)).sum(-1).mean())
        torch.testing.assert_close(out.parts["penalty"], penalty, rtol=1e-9, atol=1e-9)
        loss = loss + penalty
    torch.testing.assert_close(out.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.parts["probe_ce"], probe_ce, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.loss, loss, rtol=1e-9, atol=1e-9)
    for name, got, expected in zip(
        own, ours, torch.autograd.grad(loss, list(own.values())), strict=True
    ):
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)

    evaluated = model.eval()(image)
    mixed = 0.3 * logits + 0.7 * rows_of_images(by_end, raw)
    torch.testing.assert_close(evaluated, mixed, rtol=1e-9, atol=1e-9)
    model.probe.enabled = False
    torch.testing.assert_close(model(image), logits, rtol=1e-9, atol=1e-9)


def rows_of_images(own, raw):
    return (own["image_scale"] * raw + own["image_shift"]) @ own["weight"].T + own["bias"]


@pytest.mark.parametrize("host", list(FILES))
def test_rates(build, make_config, host):
    trainer = build(host)
    groups = trainer._optims["DePT"].param_groups
    rate = 2e-3 if host == "CoCoOp" else 3.5e-3
    cfg = make_config(f"DePT/{FILES[host]}", dataset="dtd")
    assert_sgd(cfg)
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == (1 if host == "CoCoOp" else 4)
    assert epoch_rates(cfg)[:3] == pytest.approx([1e-5, rate, rate * 0.9755283], rel=1e-6)
    assert len(epoch_rates(cfg)) == 10
    assert [group["lr"] for group in groups] == pytest.approx([1e-5, 1e-5])
    assert trainer._scheds["DePT"].base_lrs == pytest.approx([rate, 6.5 * rate])
    assert len(groups[1]["params"]) == 6


def trained(build, directory="base"):
    trainer = build(output=directory)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    trainer.save_model(0, trainer.output_dir)
    return trainer


def test_probe_serves_the_classes_it_was_trained_on(build):
    first = trained(build)
    probe, host = first.model.probe, first.model.host
    image = torch.randn(2, 3, 48, 48)

    again = build(output="again")
    assert again.probe_counts()
    again.load_model(first.output_dir)
    assert torch.equal(again.model.eval()(image), first.model.eval()(image))

    new = build("CoOp", "DATASET.SUBSAMPLE_CLASSES", "new", output="new")
    new.load_model(first.output_dir)  # as many classes, but others
    assert torch.equal(new.model.eval()(image), new.model.host(image))
    assert torch.equal(new.model.probe.weight, probe.weight)

    whole = build("CoOp", "DATASET.SUBSAMPLE_CLASSES", "all", output="all")
    whole.load_model(first.output_dir)  # 40 classes, 20 of which are not known
    assert torch.equal(whole.model.eval()(image), whole.model.host(image))
    assert whole.model.host.bank.num_classes == 40
    assert torch.equal(
        whole.model.backbone.text_prompts.vectors, host.backbone.text_prompts.vectors
    )

    back = build(output="back")
    back.save_model(0, back.output_dir)
    whole.save_model(0, whole.output_dir)
    half = build(output="half")
    half.load_model(whole.output_dir)
    assert not half.model.probe.knows_classes()


@pytest.mark.parametrize(
    ("file", "dataset", "options", "counts"),
    [
        ("base2novel", "shapes", ("DATASET.SUBSAMPLE_CLASSES", "base"), True),
        ("base2novel", "shapes", ("DATASET.SUBSAMPLE_CLASSES", "new"), False),
        ("few_shot", "shapes", (), False),
        ("few_shot", "shapes", ("TRAINER.DePT.PROBE", "trained"), True),
        ("few_shot", "imagenet", (), True),
        ("cross_dataset", "imagenet_a", (), True),
        ("cross_dataset", "dtd", (), False),
        ("cross_dataset", "shapes_sketch", (), True),
    ],
)
def test_where_the_probe_counts(build, make_config, monkeypatch, file, dataset, options, counts):
    trainer = build()
    monkeypatch.setattr(trainer, "load_backbone", lambda: clip.load("shapes"))
    trainer.cfg = make_config(f"DePT/{file}", *options, dataset=dataset)
    assert trainer.probe_counts() == counts
    model, image = trainer.build_model(), torch.randn(2, 3, 48, 48)
    host = model.host(image)
    assert torch.equal(model(image), host) != counts


def test_rows_are_found_by_class_name(build):
    whole = build("CoOp", "DATASET.SUBSAMPLE_CLASSES", "all", output="all")
    whole.model.probe.weight.data.normal_()
    whole.save_model(0, whole.output_dir)
    names = whole.dm.dataset.classnames
    new = build("CoOp", "DATASET.SUBSAMPLE_CLASSES", "new", output="new")
    new.load_model(whole.output_dir)
    rows = [names.index(name) for name in new.dm.dataset.classnames]
    assert min(rows) >= 20
    assert torch.equal(new.model.probe.weight, whole.model.probe.weight[rows])
    assert torch.equal(new.model.probe.bias, whole.model.probe.bias[rows])
    assert new.model.probe.knows_classes()


def test_rows_of_imagenets_variants_go_by_label(build):
    """Two names of ImageNet are those of two classes each."""
    trainer = build()
    names = ["missile", "crane", "missile", *trainer.dm.dataset.classnames[3:]]
    trainer.model.probe = Probe([names[2], names[5]], 128)
    dataset = trainer.dm.dataset
    dataset.imagenet_names, dataset.imagenet_labels = names, [[2], [5]]
    weight = torch.randn(20, 128)
    converted = trainer.convert_state_dict(
        {
            "probe.weight": weight,
            "probe.bias": torch.zeros(20),
            "probe.classes": Probe(names, 128).classes,
        }
    )
    assert torch.equal(converted["probe.weight"], weight[[2, 5]])
    assert torch.equal(converted["probe.classes"], trainer.model.probe.classes)


def test_probe_starts_as_a_linear_layer():
    torch.manual_seed(3)
    probe = Probe(["a", "b"], 8)
    torch.manual_seed(3)
    linear = nn.Linear(8, 2)
    x = torch.randn(5, 8)
    assert torch.equal(probe.of_image(x), linear(x))
    assert torch.equal(probe.of_text(x), linear(x))


@pytest.mark.parametrize("options", [(), ("TRAINER.MaPLe.PROMPT_DEPTH", "1")])
def test_step_on_maple_equals_the_formula(build, options):
    trainer = build("MaPLe", *options)
    tokens = tokens_of(trainer)

    def expected(model, learned, image, label):
        raw = plain_image(model, image, coupled(learned, "host."))
        h = plain_text(model, tokens, learned["host.backbone.text_prompts.vectors"])
        logits, ce = cosine_loss(model, unit(raw), unit(h), label)
        own = {n.removeprefix("probe."): p for n, p in learned.items() if n.startswith("probe.")}
        of_text = own["text_scale"] * h[label] + own["text_shift"]
        rows = torch.cat([of_text @ own["weight"].T + own["bias"], rows_of_images(own, raw)])
        twice = torch.cat([label, label])
        probe_ce = -rows.log_softmax(1)[range(len(rows)), twice].mean()
        loss = 0.3 * ce + 0.7 * probe_ce
        return {"logits": logits, "loss": loss, "ce": ce, "probe_ce": probe_ce}

    check_step(trainer, expected)


def test_feature_cache_goes_with_frozen_image_features(build):
    build("CoOp", "FEATURE_CACHE.ENABLED", "True")
    with pytest.raises(ValueError, match="DePT changes what the image encoder computes"):
        build("MaPLe", "FEATURE_CACHE.ENABLED", "True", output="other")


def test_unknown_host(build):
    with pytest.raises(ValueError, match=r"TRAINER\.DePT\.HOST must be one of .*'CoOpp'.*'CoOp'"):
        build("CoOp", "TRAINER.DePT.HOST", "CoOpp")


def test_every_host_has_a_config():
    assert set(HOSTS) == set(FILES)
