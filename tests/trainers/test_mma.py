"""MMA: its step against the plain formula, its schedule, released checkpoints, bad settings."""

import copy

import pytest
import torch
from torch.nn import functional as F

import clip
from clip.text import unit_norm
from dassl.engine import build_trainer, trainable_state
from tests.clip.adapters.test_mma import plain_features
from tests.trainers.plain import check_released, learning_rates, write_released

METHOD = "MMA"
PARTS = ("down_text", "down_vision", "shared", "up_text", "up_vision")


@pytest.mark.parametrize("rescale", [True, False])
def test_logits_loss_and_gradients_equal_the_formula(build, rescale):
    a = 0.05
    options = ("TRAINER.MMA.ADAPTER_SCALE", str(a), "TRAINER.MMA.RESCALE_GRADIENT", str(rescale))
    trainer = build(*options)
    model = trainer.model.double()
    torch.manual_seed(5)
    for parameter in clip.adapter_parameters(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    adapters = copy.deepcopy(model.backbone.multimodal_adapters)
    plain = clip.load("shapes").double()
    image, label = torch.randn(3, 3, 48, 48, dtype=torch.float64), torch.tensor([0, 5, 19])
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    tokens = plain.tokenize([f"a photo of a {name}." for name in names])
    f, h = map(unit_norm, plain_features(plain, adapters, a, image, tokens))
    logits = plain.logit_scale.exp() * f @ h.T
    loss = F.cross_entropy(logits, label)

    out = trainer.forward_loss(image, label)

    torch.testing.assert_close(out.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.loss, loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.eval()(image), logits, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(out.loss, list(model.backbone.multimodal_adapters.parameters()))
    theirs = torch.autograd.grad(loss, list(adapters.parameters()))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        expected = other / a if rescale else other
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-7 * float(mine.abs().max()))


def test_only_the_adapters_train(build):
    """ViT-B/16's count, 674,560, is pinned in tests/clip/adapters/test_mma.py."""
    state = trainable_state(build().model)
    assert set(state) == {
        f"backbone.multimodal_adapters.{i}.{part}.{kind}"
        for i in range(2)  # the text tower of the bundled model has two blocks
        for part in PARTS
        for kind in ("weight", "bias")
    }
    one = 2 * (128 * 32 + 32) + 32 * 32 + 32 + 2 * (32 * 128 + 128)
    assert sum(tensor.numel() for tensor in state.values()) == 2 * one


@pytest.mark.parametrize(("start", "blocks"), [(5, 8), (9, 4), (1, 12), (12, 1)])
def test_the_first_block_is_counted_from_one(build, monkeypatch, start, blocks):
    layers = []
    monkeypatch.setattr(
        "trainers.mma.attach_multimodal_adapters", lambda *_, **given: layers.append(given)
    )
    trainer = build("TRAINER.MMA.ADAPTER_START", str(start))
    assert [given["layers"] for given in layers] == [blocks]
    assert not trainable_state(trainer.model)


def test_the_rate_falls_from_the_first_epoch_on(make_config):
    cfg = make_config("MMA/base2novel")
    assert (cfg.OPTIM.NAME, cfg.OPTIM.MOMENTUM, cfg.OPTIM.WEIGHT_DECAY) == ("sgd", 0.9, 5e-4)
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 16
    assert cfg.TRAINER.MMA.ADAPTER_START == 5
    assert cfg.TRAINER.MMA.ADAPTER_SCALE == 0.001
    # 1.5e-3 (1 + cos(pi e / 5)) / 2, e = 0 .. 4
    assert learning_rates(build_trainer(cfg)) == pytest.approx(
        [1.5e-3, 1.356763e-3, 9.817627e-4, 5.182373e-4, 1.432373e-4]
    )


def test_imagenet_and_transfer_have_their_own_settings(make_config):
    for_imagenet = make_config(
        "MMA/base2novel", "MODEL.BACKBONE.NAME", "shapes", dataset="imagenet"
    )
    assert for_imagenet.DATALOADER.TRAIN_X.BATCH_SIZE == 128
    transfer = make_config("MMA/cross_dataset")
    assert (transfer.OPTIM.MAX_EPOCH, transfer.TRAINER.MMA.ADAPTER_START) == (1, 9)


def released(model, first: int = 5) -> dict[str, torch.Tensor]:
    """A model's adapters under the released names, with what belongs to a run's classes."""
    state = {"token_embedding": torch.zeros(20, 77, 512), "tokenized_prompts": torch.zeros(20, 77)}
    for i, adapter in enumerate(model.backbone.multimodal_adapters, first):
        for name, part in (
            (f"text_adapter.{i}.down.0", adapter.down_text),
            (f"text_adapter.{i}.up", adapter.up_text),
            (f"visual_adapter.{i}.down.0", adapter.down_vision),
            (f"visual_adapter.{i}.up", adapter.up_vision),
            (f"shared_adapter.{i}.0", adapter.shared),
        ):
            state[f"{name}.weight"] = part.weight.detach().clone()
            state[f"{name}.bias"] = part.bias.detach().clone()
    return state


def test_released_checkpoints_load_and_evaluate(build, tmp_path):
    source, loaded = build(), build("SEED", "2", output="loaded")
    for parameter in clip.adapter_parameters(source.model).values():
        parameter.data += torch.randn_like(parameter)
    folder = write_released(tmp_path / "released", "adapter_learner", released(source.model), 5)
    check_released(source, loaded, folder, epoch=5)


def test_weights_of_another_number_of_blocks_are_refused(build, tmp_path):
    state = released(build().model, first=11)
    state = {name: tensor for name, tensor in state.items() if ".11." not in name}
    with pytest.raises(ValueError, match=r"1 blocks from number 12 on.*ADAPTER_START.*to 12"):
        build(output="b").load_model(
            write_released(tmp_path / "released", "adapter_learner", state, 5), epoch=5
        )


def test_weights_of_another_width_or_method_are_refused(build, tmp_path):
    narrow = build("TRAINER.MMA.ADAPTER_DIM", "8")
    with pytest.raises(ValueError, match=r"down_text.weight.*\(8, 128\).*needs \(32, 128\)"):
        build(output="b").load_model(
            write_released(tmp_path / "narrow", "adapter_learner", released(narrow.model), 5),
            epoch=5,
        )
    folder = write_released(
        tmp_path / "other", "adapter_learner", {"prompt_learner.ctx": torch.zeros(4, 128)}, 5
    )
    with pytest.raises(ValueError, match=r"Missing keys.*Unexpected keys: prompt_learner.ctx"):
        build(output="c").load_model(folder, epoch=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.MMA.ADAPTER_START", "0"), r"ADAPTER_START.*1 to 12, got 0"),
        (("TRAINER.MMA.ADAPTER_START", "13"), r"ADAPTER_START.*1 to 12, got 13"),
        (("TRAINER.MMA.ADAPTER_DIM", "0"), "ADAPTER_DIM must be a whole number 1 .*got 0"),
        (
            ("TRAINER.MMA.ADAPTER_SCALE", "0.0"),
            "ADAPTER_SCALE must be a finite number above 0, got 0.0",
        ),
        (("FEATURE_CACHE.ENABLED", "True"), "FEATURE_CACHE.*MMA"),
    ],
)
def test_bad_settings_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(*options)


def test_the_log_names_the_rescaled_gradient(build, capsys):
    build()
    assert "divided by the scale 0.001, as MMA's release does" in capsys.readouterr().out
    build("TRAINER.MMA.RESCALE_GRADIENT", "False", output="b")
    assert "gradients of the adapters are the true ones" in capsys.readouterr().out
