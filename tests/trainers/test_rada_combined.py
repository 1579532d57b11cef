"""RAda's combinations: with prompts, with adapters, with LightRA."""

import pytest
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch.nn import functional as F

from clip import adapters_disabled
from clip.text import unit_norm
from dassl.engine import trainable_state
from tests.trainers.heads.test_rational import plain

NAMES = ("RAdaPrompt", "RAdaAdapter", "LightRAda")
FORMS = (*NAMES, "RAdaPrompt/ivlp", "RAdaPrompt/mask_recipe")
NO_PROMPTS = (
    *("TRAINER.RAdaPrompt.PROMPT_DEPTH_TEXT", "0"),
    *("TRAINER.RAdaPrompt.PROMPT_DEPTH_VISION", "0"),
)


def masked_loss(trainer, f, h, label):
    model, cfg = trainer.model, trainer.cfg
    logits, penalty, _ = plain(
        model.head, f, h, model.scale, temp=1.0, joint=True, num_heads=8, reg="l2"
    )
    return F.cross_entropy(logits, label) + cfg.ALPHA * penalty


@torch.no_grad()
def frozen_text(trainer):
    """Raw features of 80 templates without prompts, mean of each class: (K, D)."""
    backbone = trainer.model.backbone
    with adapters_disabled(backbone):
        return torch.stack(
            [
                backbone.model.encode_text(
                    backbone.tokenize([template(name) for template in OPENAI_IMAGENET_TEMPLATES])
                ).mean(0)
                for name in (n.replace("_", " ") for n in trainer.dm.dataset.classnames)
            ]
        )


def expected_loss(trainer, image, label):
    """The loss from whole, uncut texts and the formula of the mask."""
    model, backbone = trainer.model, trainer.model.backbone
    f = unit_norm(backbone.encode_image(image))

    def text(tokens):
        return unit_norm(backbone.model.encode_text(tokens))

    if trainer.cfg.TRAINER.NAME == "RAdaPrompt" and trainer.options.FROZEN_TEXT:
        g = backbone.model.encode_text(model.bank.tokens)
        h = unit_norm((g + frozen_text(trainer)) / 2)
        return masked_loss(trainer, f, h, label)
    if trainer.cfg.TRAINER.NAME != "LightRAda":
        return masked_loss(trainer, f, text(model.bank.tokens), label)
    state = trainer.prompt_generator.get_state()
    tokens = model.bank.tokens[model.bank.sample(trainer.prompt_generator)]
    trainer.prompt_generator.set_state(state)
    with torch.no_grad(), adapters_disabled(backbone):
        f0, h0 = unit_norm(backbone.encode_image(image)), text(tokens)
    h, s = text(tokens), model.scale
    mixed = s * (3.5 * f @ h.T + f0 @ h.T + f @ h0.T) / 5.5
    distance = 2 - (f * f0).sum(-1).mean() - (h * h0).sum(-1).mean()
    return F.cross_entropy(mixed, label) + 9 * distance + masked_loss(trainer, f, h, label)


@pytest.mark.parametrize("name", FORMS)
def test_loss_and_gradients_equal_the_formula(build, name):
    trainer = build(method=name)
    trainer.model.double()
    torch.manual_seed(5)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn_like(parameter)
    image = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    label = torch.tensor([0, 5, 19])
    expected = expected_loss(trainer, image, label)
    out = trainer.forward_loss(image, label)
    torch.testing.assert_close(out.loss, expected, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(out.loss, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["RAdaAdapter", "LightRAda"])
def test_starts_as_clip_to_the_last_bit(build, name):
    model = build(method=name).model.eval()
    image = torch.randn(2, 3, 48, 48)
    with adapters_disabled(model.backbone):
        expected = model.scale * model.image_features(image) @ model.class_weights().T
    assert torch.equal(model(image), expected)


@pytest.mark.parametrize(
    ("name", "options", "kinds"),
    [
        ("RAdaPrompt", (), {"text_prompts", "vision_prompts", "head"}),
        ("RAdaAdapter", (), {"multimodal_adapters", "head"}),
        ("LightRAda", (), {"residual", "head"}),
        ("RAdaPrompt", NO_PROMPTS, {"head"}),
        ("RAdaAdapter", ("TRAINER.RAdaAdapter.LAYERS", "0"), {"head"}),
    ],
)
def test_what_trains(build, name, options, kinds):
    names = trainable_state(build(*options, method=name).model)
    assert {kind for kind in kinds if any(kind in n.split(".") for n in names)} == kinds
    assert all(kinds & set(n.split(".")) for n in names)


@pytest.mark.parametrize("form", ["RAdaPrompt", "RAdaPrompt/ivlp"])
def test_class_weights_are_those_of_training(build, form):
    """Kept for evaluation until a step, with or without the frozen text features."""
    model = build(method=form).model
    trained = model.training_weights().detach()
    model.eval()
    torch.testing.assert_close(model.class_weights(), trained, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model.backbone.text_prompts.vectors.add_(torch.randn(128))  # layer norms undo a shift
    model.bank.drop_cache()
    assert (model.class_weights() - trained).abs().max() > 1e-3


def test_frozen_text_features_are_of_the_classes_of_the_run(build):
    base = build(method="RAdaPrompt").model
    new = build("DATASET.SUBSAMPLE_CLASSES", "new", method="RAdaPrompt", output="new")
    new.model.load_state_dict(trainable_state(base), strict=False)
    plain = frozen_text(new)
    g = new.model.backbone.model.encode_text(new.model.bank.tokens)
    expected = unit_norm((g + plain) / 2)
    torch.testing.assert_close(new.model.eval().class_weights(), expected, rtol=1e-4, atol=1e-5)


def test_prompts_start_from_the_first_words(build):
    trainer = build(method="RAdaPrompt")
    backbone = trainer.model.backbone
    words = backbone.tokenize(["a photo"])[0, 1:3]
    start = backbone.model.token_embedding.weight[words]
    assert torch.equal(backbone.text_prompts.vectors[0], start.detach())
    assert backbone.text_prompts.vectors.shape[1] == backbone.vision_prompts.vectors.shape[1] == 2


def test_lightrada_takes_lightras_settings_of_each_protocol(make_config):
    for protocol, weight in (("base2novel", 9.0), ("few_shot", 6.0), ("cross_dataset", 20.0)):
        cfg = make_config(f"LightRAda/{protocol}")
        assert cfg.TRAINER.LightRA.LOSS_WEIGHT == weight
    assert make_config("LightRAda/few_shot", dataset="dtd").TRAINER.LightRA.LOSS_WEIGHT == 15.0


def test_refuses_a_feature_cache(build):
    with pytest.raises(ValueError, match=r"RAdaPrompt.*FEATURE_CACHE|FEATURE_CACHE.*RAdaPrompt"):
        build("FEATURE_CACHE.ENABLED", "True", method="RAdaPrompt")


def test_prompts_without_words_start_at_random_before_placeholders(build):
    backbone = build("TRAINER.RAdaPrompt.CTX_INIT", "", method="RAdaPrompt").model.backbone
    assert not backbone.text_prompts.words
    assert 0.01 < backbone.text_prompts.vectors[0].std() < 0.03


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_with_another_number_of_layers_says_so(build, name):
    section = "RADA" if name == "LightRAda" else name
    layers = (f"TRAINER.{section}.MASK_LAYERS", "2")
    trainer = build(*layers, method=name)
    trainer.train()
    other = build(method=name, output="other")
    with pytest.raises(ValueError, match=rf"{layers[0]} was 2, is 1\."):
        other.load_model(trainer.output_dir)
    other.any_config = True
    with pytest.raises(ValueError, match="2 attention layers, the model's has 1; set MASK_LAYERS"):
        other.load_model(trainer.output_dir)
