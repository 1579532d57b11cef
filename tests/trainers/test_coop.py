"""CoOp: its formula on uncut texts, its settings, its released files."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch.nn import functional as F

from clip import attach_context
from tests.trainers.baselines import (
    around_names,
    assert_sgd,
    epoch_rates,
    write_released,
)
from tests.trainers.plain import unit
from trainers.coop import ContextCLIP

METHOD = "CoOp"


def section(**values):
    return [word for key, value in values.items() for word in (f"TRAINER.CoOp.{key}", str(value))]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize(
    "context", [{"CTX_INIT": "a photo of a"}, {"CTX_INIT": "", "N_CTX": 5}, {"CSC": True}]
)
def test_logits_loss_and_gradients_equal_the_formula(build, position, context):
    if "CSC" in context:
        context = {"CTX_INIT": "", "N_CTX": 3, **context}
    trainer = build(*section(CLASS_TOKEN_POSITION=position, **context))
    model = trainer.model.double()
    torch.manual_seed(1)
    parameter = model.backbone.text_prompts.vectors
    parameter.data += 0.3 * torch.randn_like(parameter)
    plain = parameter.detach().clone().requires_grad_(True)
    image = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    label = torch.tensor([0, 19, 7])

    out = trainer.forward_loss(image, label)
    (gradient,) = torch.autograd.grad(out.loss, parameter)

    clip_model, n_ctx = model.backbone.model, parameter.shape[1]
    if "CSC" in context:
        assert plain.shape == (20, 3, 128)
    del clip_model.token_embedding._forward_hooks[
        next(iter(clip_model.token_embedding._forward_hooks))
    ]
    names = trainer.dm.dataset.classnames
    vectors = plain if "CSC" in context else plain[0]
    h = unit(around_names(clip_model, names, n_ctx, vectors, position))
    logits = clip_model.logit_scale.exp() * unit(clip_model.encode_image(image)) @ h.T
    loss = F.cross_entropy(logits, label)
    torch.testing.assert_close(out.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.loss, loss, rtol=1e-9, atol=1e-9)
    (expected,) = torch.autograd.grad(loss, plain)
    assert expected.abs().flatten(2).amax(2).min() > 0
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize(("init", "classes"), [("", 0), ("a photo of a", 0), ("", 6)])
def test_names_end_where_the_release_cuts_them(tiny_backbone, position, init, classes):
    """CLIP's tokenizer makes one token of ")." and cuts other signs another way before a stop."""
    names = ["cat", "kite (bird of prey)", "St. Bernard", "Dr.", "cat#", "cat!#"]
    backbone = tiny_backbone.double()
    plain = copy.deepcopy(backbone.model)
    context = attach_context(backbone, n_ctx=4, init=init, position=position, num_classes=classes)
    context.vectors.data = torch.randn_like(context.vectors)
    vectors = context.vectors.data if classes else context.vectors.data[0]
    bank = ContextCLIP(backbone, names).bank
    found = bank.encode(backbone, torch.arange(len(names)), unit=False)
    expected = around_names(plain, names, 4, vectors, position)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"CSC": True, "CTX_INIT": "", "N_CTX": 2}])
def test_evaluation_gives_the_logits_of_training(build, options):
    trainer = build(*section(**options))
    image, label = torch.randn(2, 3, 48, 48), torch.tensor([0, 1])
    trained = trainer.forward_loss(image, label).logits
    torch.testing.assert_close(trainer.model.eval()(image), trained, rtol=1e-5, atol=1e-4)


def test_starts_as_clip_from_words(build):
    trainer = build()
    backbone, names = trainer.model.backbone, trainer.dm.dataset.classnames
    tokens = open_clip.tokenize([f"a photo of a {name}." for name in names])
    plain = unit(build(output="other").load_backbone().encode_text(tokens))
    torch.testing.assert_close(trainer.model.eval().class_weights(), plain, rtol=1e-5, atol=1e-6)
    assert backbone.text_prompts.vectors.shape == (1, 4, 128)


def test_words_count_and_surplus_tokens_stay_frozen(build):
    """Five words, six tokens: the comma is the third, and the last 'a' is left over."""
    init = "red circle, such as a"
    trainer = build(*section(CTX_INIT=init, N_CTX=9))
    backbone, names = trainer.model.backbone, trainer.dm.dataset.classnames
    words = open_clip.tokenize([init])[0, 1:7]
    table = backbone.model.token_embedding.weight
    assert torch.equal(backbone.text_prompts.vectors[0], table[words[:5]])
    tokens = trainer.model.bank.tokens
    assert (tokens[:, 6] == words[5]).all()
    plain = trainer.load_backbone().encode_text(
        open_clip.tokenize([f"{init} {name}." for name in names])
    )
    torch.testing.assert_close(
        trainer.model.eval().class_weights(), unit(plain), rtol=1e-5, atol=1e-6
    )


def test_schedule_and_settings(make_config):
    cfg = make_config("CoOp/base2novel", dataset="dtd")
    assert_sgd(cfg)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == (200, 32)
    assert cfg.TRAINER.CoOp.CTX_INIT == "a photo of a"
    cfg = make_config("CoOp/cross_dataset", dataset="imagenet")
    rates = epoch_rates(cfg)
    assert rates[:4] == pytest.approx([1e-5, 2e-3, 1.99803e-3, 1.99211e-3], rel=1e-5)
    assert len(rates) == 50
    assert rates[-1] == pytest.approx(7.9e-6, rel=1e-2)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200)])
def test_few_shot_epochs(make_config, shots, epochs):
    cfg = make_config("CoOp/few_shot", "DATASET.NUM_SHOTS", str(shots), dataset="dtd")
    assert cfg.OPTIM.MAX_EPOCH == epochs
    options = cfg.TRAINER.CoOp
    assert (options.N_CTX, options.CTX_INIT, options.CLASS_TOKEN_POSITION) == (16, "", "end")
    cfg = make_config("CoOp/few_shot", "DATASET.NUM_SHOTS", str(shots), dataset="imagenet")
    assert cfg.OPTIM.MAX_EPOCH == 50


def released(n_ctx=4, classes=1000):
    torch.manual_seed(2)
    return {
        "ctx": torch.randn(n_ctx, 128),
        "token_prefix": torch.randn(classes, 1, 128),
        "token_suffix": torch.randn(classes, 76 - n_ctx, 128),
    }


def test_released_checkpoint_loads_and_evaluates(build, tmp_path):
    state = released()
    trainer = build()
    before = trainer.test()
    trainer.load_model(write_released(tmp_path / "r", "prompt_learner", state, 50), epoch=50)
    assert torch.equal(trainer.model.backbone.text_prompts.vectors[0], state["ctx"].half().float())
    assert trainer.test() != before


def test_released_checkpoint_with_contexts_per_class(build, tmp_path):
    state = {**released(classes=20), "ctx": torch.randn(20, 4, 128)}
    trainer = build(*section(CTX_INIT="", N_CTX=4, CSC=True))
    trainer.load_model(write_released(tmp_path / "r", "prompt_learner", state, 50), epoch=50)
    assert torch.equal(trainer.model.backbone.text_prompts.vectors, state["ctx"].half().float())


def test_unfit_checkpoints_are_refused(build, tmp_path):
    trainer = build()
    for state, message in (
        (released(16), r"16 vectors, the model's 4: set TRAINER\.CoOp\.N_CTX 16"),
        ({"ctx": torch.zeros(4, 64)}, r"shape \(1, 4, 64\), the model needs \(1, 4, 128\)"),
        ({"context": torch.zeros(4, 128)}, r"Missing keys: backbone\.text_prompts\.vectors"),
        ({**released(), "meta_net.linear1.bias": torch.zeros(2)}, r"Unexpected keys.*meta_net"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.load_model(write_released(tmp_path, "prompt_learner", state, 50), epoch=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"CLASS_TOKEN_POSITION": "start"}, "POSITION must be one of end, middle, front, got"),
        ({"CTX_INIT": "", "N_CTX": 0}, "N_CTX must be a whole number 1 to 75, got 0"),
        ({"CTX_INIT": "", "N_CTX": 75}, "to 74 .*got 75"),
        ({"CTX_INIT": "a photo of a", "CSC": True}, "CSC is True.*set CTX_INIT ''"),
        ({"CTX_INIT": "a, b", "CLASS_TOKEN_POSITION": "front"}, "3 tokens for 2 words.*'end'"),
    ],
)
def test_bad_values(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(*section(**options))


def test_a_context_per_class_needs_to_know_the_classes(build):
    backbone = build(*section(CTX_INIT="", N_CTX=2, CSC=True)).model.backbone
    with pytest.raises(ValueError, match="do not say whose"):
        backbone.encode_text(backbone.tokenize(["X X red."]))
