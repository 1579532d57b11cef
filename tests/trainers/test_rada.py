"""RAda: its training step, its released checkpoints, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from clip.text import unit_norm
from dassl.engine import trainable_state
from tests.trainers.heads.test_rational import plain
from tests.trainers.plain import check_released, write_released

METHOD = "RAda"
JOINT = ("TRAINER.RADA.SOFTMAX", "joint")  # as released


def shake(trainer) -> None:
    """Weights away from zero."""
    torch.manual_seed(3)
    for parameter in trainer.model.head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


def released_state(trainer) -> dict[str, torch.Tensor]:
    """The trainer's mask under the released names, among weights of a CLIP."""
    layer = trainer.model.head.layers[0]
    parts = {
        "q_proj1": layer.query["image"],
        "q_proj2": layer.query["text"],
        "q_proj3": layer.query["rational"],
        "k_proj": layer.key,
        "v_proj": layer.value,
        "out_proj": layer.out,
    }
    state = {f"mha.{n}.{k}": v.data.clone() for n, m in parts.items() for k, v in
             m.named_parameters()}  # fmt: skip
    clip = trainer.model.backbone.model.state_dict()
    state |= {f"image_encoder.{k.removeprefix('visual.')}": v.half() for k, v in clip.items()
              if k.startswith("visual.")}  # fmt: skip
    state["logit_scale"] = torch.tensor(4.6)
    state["prompt_learner.token_prefix"] = torch.zeros(20, 1, 128)
    return state


@pytest.mark.parametrize("softmax", ["row", "joint"])
def test_training_step_equals_the_formula(build, softmax):
    trainer = build("ALPHA", "0.7", "TEMP", "0.5", "TRAINER.RADA.SOFTMAX", softmax)
    shake(trainer)
    model, backbone = trainer.model, trainer.model.backbone
    image, label = torch.randn(3, 3, 48, 48), torch.tensor([0, 5, 19])
    names = trainer.dm.dataset.classnames
    tokens = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in names])
    f, h = unit_norm(backbone.encode_image(image)), unit_norm(backbone.model.encode_text(tokens))
    logits, penalty, _ = plain(
        model.head, f, h, model.scale, temp=0.5, joint=softmax == "joint", num_heads=8, reg="l2"
    )
    out = trainer.forward_loss(image, label)
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
    expected = F.cross_entropy(logits, label) + 0.7 * penalty
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-5)
    assert out.parts.keys() == {"ce", "mask"}


def test_starts_as_clip_to_the_last_bit(build):
    image = torch.randn(4, 3, 48, 48)
    rada = build().model.eval()
    options = ("TRAINER.ZeroshotCLIP.TEMPLATE", "a photo of a {}.")
    clip = build(*options, method="ZeroshotCLIP/base2novel", output="clip").model.eval()
    assert torch.equal(rada(image), clip(image))


def test_text_is_encoded_once(build, count_calls):
    trainer = build("OPTIM.MAX_EPOCH", "2")
    calls = count_calls(trainer.model.bank, "encode_all")
    trainer.train()
    assert len(calls) == 1


def test_six_projections_train_and_nothing_else(build):
    trainer = build()
    width = trainer.model.backbone.embed_dim
    state = trainable_state(trainer.model)
    assert all(name.startswith("head.") for name in state)
    assert sum(t.numel() for t in state.values()) == 6 * (width**2 + width)


@pytest.mark.parametrize("context", ["a photo of a", "a_picture_of", ""])
def test_context_words_make_the_prompts(build, context):
    trainer = build("TRAINER.RADA.CTX_INIT", context)
    tokens = trainer.model.bank.tokens
    name = trainer.dm.dataset.classnames[0].replace("_", " ")
    if context:
        words = context.replace("_", " ")
        assert len(tokens) == 20
        expected = trainer.model.backbone.tokenize([f"{words} {name}."])
        assert torch.equal(tokens[:1], expected)
    else:
        assert len(tokens) > 20, "the dataset's descriptions"


def test_released_checkpoints_load_and_evaluate(build, tmp_path):
    source = build(*JOINT)
    shake(source)
    folder = write_released(tmp_path / "released", "RAda", released_state(source), 13)
    check_released(source, build(*JOINT, output="loaded"), folder, epoch=13)


def test_released_checkpoints_need_the_released_softmax(build, tmp_path):
    folder = write_released(tmp_path / "released", "RAda", released_state(build()), 13)
    row = build(output="row")
    with pytest.raises(ValueError, match="one softmax over all scores.*set SOFTMAX.* to joint"):
        row.load_model(folder, epoch=13)


def test_the_released_number_of_layers_has_no_effect_and_is_said(build, capsys):
    trainer = build("TRAINER.RADA.PROJ_LAYERS", "4")  # what the released YAML has
    assert len(trainer.model.head.layers) == 1
    printed = capsys.readouterr().out
    assert "RAda: PROJ_LAYERS 4 has no effect, as in the released code; the mask has 1" in printed
    build("TRAINER.RADA.MASK_LAYERS", "2", output="two")
    assert "PROJ_LAYERS 1 has" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), ("one per row, as the paper reads", "l2, the mean of (M - 1)^2")),
        (("TRAINER.RADA.REG", "l2_sum"), ("squared norm of M - 1, K D times the mean",)),
        (JOINT, ("over all K x K scores of a head, as in the released code",)),
        (("TRAINER.RADA.REG", "linf"), ("linf, as the released rada.py runs",)),
    ],
)
def test_the_log_says_which_form_of_the_mask_runs(build, capsys, options, said):
    build(*options)
    printed = capsys.readouterr().out
    for words in said:
        assert f"{words}" in printed
    build("TRAINER.RADA.HEAD", "mlp", output="mlp")  # which has no attention
    assert "SOFTMAX)" not in capsys.readouterr().out


def test_a_checkpoint_of_another_width_says_so(build, tmp_path):
    state = {
        name: torch.zeros([32] * tensor.ndim) if name.startswith("mha.") else tensor
        for name, tensor in released_state(build()).items()
    }
    folder = write_released(tmp_path / "released", "RAda", state, 13)
    with pytest.raises(ValueError, match=r"D = 32, the backbone's have 128; set --backbone"):
        build(*JOINT, output="other").load_model(folder, epoch=13)


@pytest.mark.parametrize(("saved", "now"), [(1, 2), (3, 1)])
def test_a_checkpoint_with_another_number_of_layers_says_so(build, tmp_path, saved, now):
    trainer = build("TRAINER.RADA.MASK_LAYERS", str(saved))
    trainer.train()
    other = build("TRAINER.RADA.MASK_LAYERS", str(now), output="other")
    other.any_config = True
    expected = rf"has {saved} attention layers, the model's has {now}; set MASK_LAYERS.*to {saved}"
    with pytest.raises(ValueError, match=expected):
        other.load_model(trainer.output_dir)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.RADA.HEAD", "mpl"), "TRAINER.RADA.HEAD must be one of.*got 'mpl'.*'mlp'"),
        (("TRAINER.RADA.HEADS", "7"), "HEADS.*not divisible by 7"),
        (("TRAINER.RADA.HEAD", "text", "TRAINER.RADA.HEADS", "7"), "HEADS.*not divisible by 7"),
        (("TEMP", "0.0"), "TEMP must be a finite number above 0, got 0.0"),
        (("TRAINER.RADA.QUERIES", "['vision']"), "QUERIES must be .* one of image, text, rational"),
    ],
)
def test_bad_settings_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(*options)
