"""Frozen-feature methods on Shapes: how they are fitted, and chosen on what."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.engine import build_trainer, read_result
from tests.trainers.frozen.runs import SMALL  # noqa: F401 - the fixture `build` reads it
from tests.trainers.plain import SMALL as ONE_SHOT
from tests.trainers.plain import check_step, learning_rates, tokens_of

METHOD = "GDA"


def views_of(trainer, count):
    """Plain loop: features (V, N, D) of the images of the first epochs, in the data's order."""
    found = []
    for epoch in range(count):
        trainer.train_loader_x.sampler.set_epoch(epoch)
        features = torch.zeros(len(trainer.dm.dataset.train_x), 128)
        for batch in trainer.train_loader_x:
            with torch.no_grad():
                features[batch["index"]] = trainer.model.backbone.encode_image(batch["img"])
        found.append(features)
    return torch.stack(found)


# ---------------------------------------------------------------------- features


def test_views_are_what_the_epochs_of_the_plain_loop_show(build):
    trainer = build()
    views, label = trainer.recipe.features.views(2)
    assert label.tolist() == [item.label for item in trainer.dm.dataset.train_x]
    torch.testing.assert_close(views, views_of(trainer, 2), rtol=1e-4, atol=1e-5)
    assert not torch.equal(views[0], views[1])


def test_features_from_pictures_are_those_of_the_cache_and_are_not_kept(build, tmp_path):
    plain = build(output="plain")
    cached = build(
        *("FEATURE_CACHE.ENABLED", "True", "FEATURE_CACHE.DIR", str(tmp_path / "cache")),
        output="cached",
    )
    for trainer in (plain, cached):
        trainer.train()
    for name, value in plain.model.head.state_dict().items():
        assert torch.equal(value, cached.model.head.state_dict()[name]), name
    assert len(list((tmp_path / "cache").iterdir())) >= 3
    assert not Path(plain.cfg.FEATURE_CACHE.DIR).is_relative_to(tmp_path)


def test_mirrored_images_are_seen_as_test_images_are(build):
    trainer = build()
    features, label = trainer.recipe.features.unaugmented()
    mirrored, _ = trainer.recipe.features.unaugmented(mirrored=True)
    from PIL import Image

    image = trainer.dm.tfm_test(Image.open(trainer.dm.dataset.train_x[0].impath).convert("RGB"))
    with torch.no_grad():
        expected = trainer.model.backbone.encode_image(torch.stack([image, image.flip(-1)]))
    torch.testing.assert_close(
        torch.stack([features[0], mirrored[0]]), expected, rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------------- fitting


def test_keys_are_means_of_features_that_keep_their_lengths(build):
    trainer = build(method="TipAdapter/few_shot")
    trainer.fit()
    expected = F.normalize(views_of(trainer, 2).mean(0), dim=-1)
    torch.testing.assert_close(trainer.model.head.keys.data, expected, rtol=1e-4, atol=1e-5)


def test_tip_adapters_search_is_the_releases(build):
    trainer = build(
        *("TRAINER.TipAdapter.BETA_STEPS", "4", "TRAINER.TipAdapter.ALPHA_STEPS", "3"),
        method="TipAdapter/few_shot",
    )
    trainer.fit()
    features, label = trainer.recipe.validation()
    trainer.choose(features, label)
    head, f = trainer.model.head, unit_norm(features)
    text, scale = trainer.model.class_weights(), trainer.model.scale
    best, expected = -1, (0.0, 0.0)
    for beta in [0.1 + i * (7 - 0.1) / 4 for i in range(4)]:
        for alpha in [0.1 + i * (3 - 0.1) / 3 for i in range(3)]:
            cache = (-beta * (1 - f @ head.keys.T)).exp() @ F.one_hot(head.label, 20).float()
            logits = scale * f @ text.T + alpha * cache
            found = int((logits.argmax(1) == label).sum())
            if found > best:
                best, expected = found, (alpha, beta)
    assert (head.alpha.item(), head.beta.item()) == pytest.approx(expected)


def test_strengths_are_the_zero_shot_probabilities_of_the_own_class(build):
    trainer = build(method="CLAP/few_shot")
    trainer.fit()
    views = unit_norm(views_of(trainer, 2))
    zero_shot = build(method="ZeroshotCLIP/few_shot", output="zero")
    text = zero_shot.model.eval().class_weights()
    probability = (zero_shot.model.scale * views @ text.T).softmax(-1)  # (V, N, K)
    expected = torch.zeros(20)
    for n, item in enumerate(trainer.dm.dataset.train_x):  # one image of each class
        expected[item.label] = probability[:, n, item.label].mean()
    torch.testing.assert_close(trainer.model.head.strength, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["TaskRes", "ZSLP", "CLAP", "TipAdapterF"])
def test_a_step_equals_the_formula(build, method):
    trainer = build(method=f"{method}/few_shot")
    trainer.model.head.float()
    head = trainer.model.head
    if method == "CLAP":
        head.strength.copy_(torch.rand(20))

    def expected(plain, copies, image, label):
        v = plain.encode_image(image)
        f, s = v / v.norm(dim=-1, keepdim=True), plain.logit_scale.exp()
        h = plain.encode_text(tokens_of(trainer, "a photo of a {}."))
        parts = {}
        if method == "TipAdapterF":
            h = h / h.norm(dim=-1, keepdim=True)
            onehot = F.one_hot(head.label, 20).double()
            near = (-1.0 * (1 - f @ copies["head.keys"].T)).exp()
            logits = s * f @ h.T + head.alpha * near @ onehot
        else:
            alpha = {"TaskRes": 0.5}.get(method, 1.0)
            w = h + alpha * copies["head.residual"]
            logits = s * f @ (w / w.norm(dim=-1, keepdim=True)).T
        ce = -torch.log_softmax(logits, 1)[range(len(label)), label].mean()
        loss = ce
        if method == "CLAP":
            penalty = (head.strength * copies["head.residual"].square().sum(1)).sum() / 20
            parts, loss = {"ce": ce, "penalty": penalty}, ce + penalty
        return {"logits": logits, "loss": loss, **parts}

    check_step(trainer, expected)


def test_the_best_step_of_lp_plus_plus_is_kept(build):
    options = ("TRAINER.LPPlusPlus.STEPS", "40")
    trainer = build(*options, method="LPPlusPlus/few_shot")
    trainer.fit()
    steps = int(trainer.model.head.steps)
    other = build(
        *("TRAINER.LPPlusPlus.STEPS", str(steps), "VAL.POLICY", "none"),
        method="LPPlusPlus/few_shot",
        output="other",
    )
    other.model.head.load_state_dict({**other.model.head.state_dict(), "bias": start_bias(build)})
    other.fit()
    torch.testing.assert_close(trainer.model.head.weight, other.model.head.weight)


def start_bias(build):
    """The bias that a run of the seed starts from."""
    return build(method="LPPlusPlus/few_shot", output="start").model.head.bias.data


def test_the_probes_sweep_tries_eight_values_a_decade(build, monkeypatch):
    tried = []

    def regress(x, label, c, start, iterations):
        tried.append(c)
        return start[0] + 1e-3 * torch.randn_like(start[0]), start[1]

    monkeypatch.setattr("trainers.frozen.linear_probe.regress", regress)
    scores = iter([3, 4, 5, 6, 5, 4, 3, 7, 1, 8, 1, 9, 1, 2, 1, 1, 1])
    monkeypatch.setattr("trainers.frozen.linear_probe.told_right", lambda *_: next(scores))
    trainer = build(method="LinearProbe/few_shot")
    trainer.fit()
    powers = [round(float(torch.tensor(c).log10()), 3) for c in tried]
    assert powers[:7] == [-6, -4, -2, 0, 2, 4, 6]
    assert powers[7:] == [-1, 1, -1.5, -0.5, -1.75, -1.25, -1.875, -1.625]
    assert trainer.recipe.numbers() == {"c": pytest.approx(10**-1.75, rel=1e-4)}


def test_cross_modal_variants(build):
    grid = ("TRAINER.CrossModalLP.ITERATIONS", "60", "VAL.POLICY", "none")
    plain = build(*grid, method="CrossModalLP/few_shot", output="plain")
    wise = build(*grid, "TRAINER.CrossModalLP.WISE", "True", method="CrossModalLP/few_shot")
    for trainer in (plain, wise):
        trainer.fit()
    start = F.normalize(plain.model.class_weights(), dim=-1)
    assert not torch.equal(plain.model.head.weight, start)
    torch.testing.assert_close(wise.model.head.weight, (plain.model.head.weight + start) / 2)


def test_schedules_are_the_releases(make_config):
    cfg = make_config("TipAdapterF/few_shot", *ONE_SHOT[:4], "OPTIM.MAX_EPOCH", "2")
    trainer = build_trainer(cfg)
    (group,) = trainer._optims["TipAdapterF"].param_groups
    assert (group["eps"], group["weight_decay"], group["lr"]) == (1e-4, 0.01, 1e-3)
    # The release drops no short batch; 20 images here.
    batch = ("DATALOADER.TRAIN_X.BATCH_SIZE", "16")
    trainer = build_trainer(make_config("TipAdapterF/few_shot", *ONE_SHOT[:4], *batch))
    assert [len(batch["label"]) for batch in trainer.train_loader_x] == [16, 4]
    cfg = make_config("CLAP/few_shot", *ONE_SHOT[:4])
    assert (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.WEIGHT_DECAY, cfg.OPTIM.LR) == (300, 0.0, 0.1)
    rates = learning_rates(build_trainer(make_config("TaskRes/few_shot", *ONE_SHOT[:4])))
    assert rates[:2] == pytest.approx([1e-5, 2e-3])
    assert len(rates) == 100


# ---------------------------------------------------------------------- what is chosen on what


@pytest.mark.parametrize(
    ("policy", "images"), [("min4", 4 * 20), ("shots", 5 * 20), ("full", 6 * 20), ("none", 4 * 20)]
)
def test_policies_draw_their_validation_images(make_config, policy, images):
    options = ("DATASET.NUM_SHOTS", "5", "DATASET.SUBSAMPLE_CLASSES", "base")
    config = make_config("GDA/few_shot", *options, "VAL.POLICY", policy)
    from dassl.data import DataManager

    dataset = DataManager(config).dataset
    plain = DataManager(make_config("ZeroshotCLIP/few_shot", *options)).dataset
    assert [i.impath for i in dataset.train_x] == [i.impath for i in plain.train_x]
    assert len(dataset.val) == images


@pytest.mark.parametrize("policy", ["none", "min4", "released"])
def test_the_result_says_what_was_chosen_and_on_what(build, policy, capsys):
    trainer = build("VAL.POLICY", policy, "DATASET.SUBSAMPLE_CLASSES", "base")
    trainer.train()
    result = read_result(trainer.output_dir)
    images = {"none": None, "min4": 20, "released": 100}[policy]
    found = result["validation"]
    assert (found["policy"], found.get("images")) == (policy, images)
    assert found["chosen"] == {"alpha": pytest.approx(trainer.model.head.alpha.item(), rel=1e-5)}
    if policy == "none":
        assert found["chosen"] == {"alpha": 1.0}
    noted = [note for note in result["notes"] if "TEST images" in note]
    assert bool(noted) == (policy == "released")
    assert f"VAL.POLICY {policy}: " in capsys.readouterr().out


def test_without_validation_images_there_is_nothing_to_choose_on(build):
    trainer = build()
    trainer.val_loader = None
    with pytest.raises(ValueError, match=r"VAL.POLICY is min4, but Shapes has no valid.*set VAL.P"):
        trainer.train()
    trainer = build("VAL.POLICY", "none", output="none")
    trainer.val_loader = None
    trainer.train()
    assert read_result(trainer.output_dir)["validation"]["chosen"] == {"alpha": 1.0}


@pytest.mark.parametrize(
    "method", ["GDA", "TipAdapter", "TipAdapterF", "LPPlusPlus", "LinearProbe", "CrossModalLP"]
)
def test_imagenet_takes_the_published_defaults(make_config, method):
    options = ("MODEL.BACKBONE.NAME", "shapes")
    for protocol in ("few_shot", "base2novel", "cross_dataset"):
        cfg = make_config(f"{method}/{protocol}", *options, dataset="imagenet")
        assert cfg.VAL.POLICY == "none"


def test_a_choice_of_the_epoch_is_refused(build):
    with pytest.raises(ValueError, match="best_val, but GDA chooses.*set last_step"):
        build("TEST.FINAL_MODEL", "best_val")


def test_several_processes_are_refused(build, monkeypatch):
    monkeypatch.setattr("trainers.frozen.recipe.world_size", lambda: 2)
    with pytest.raises(ValueError, match="GDA is fitted to all training features at once"):
        build()
