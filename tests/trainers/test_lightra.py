import math

import pytest
import torch
from torch.nn import functional as F

import clip
from clip import attach_residual_attention, freeze_except
from tests.clip.adapters.test_lightra import plain_formula
from tests.trainers.plain import write_released
from trainers.lightra import LightRACLIP, lightra_loss

METHOD = "LightRA"


def plain_tower(transformer, x, mask, residual):
    """A CLIP tower written out; ``residual`` chooses student or teacher."""
    for block in transformer.resblocks:
        y = block.ln_1(x)
        if residual:
            x = x + plain_formula(block.attn, block.attn.residual, y, mask)
        else:
            x = x + torch.nn.functional.multi_head_attention_forward(
                *[y.transpose(0, 1)] * 3, block.attn.embed_dim, block.attn.num_heads,
                block.attn.in_proj_weight, block.attn.in_proj_bias, None, None, False, 0.0,
                block.attn.out_proj.weight, block.attn.out_proj.bias,
                attn_mask=mask, need_weights=False,
            )[0].transpose(0, 1)  # fmt: skip
        x = x + block.mlp(block.ln_2(x))
    return x


def plain_features(backbone, images, tokens, residual):
    model, visual = backbone.model, backbone.model.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = (
        torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
        + visual.positional_embedding
    )
    x = plain_tower(visual.transformer, visual.ln_pre(x), None, residual)
    image = visual.ln_post(x[:, 0]) @ visual.proj
    t = model.token_embedding(tokens) + model.positional_embedding
    t = model.ln_final(plain_tower(model.transformer, t, model.attn_mask, residual))
    text = t[torch.arange(len(t)), tokens.argmax(-1)] @ model.text_projection
    return image / image.norm(dim=-1, keepdim=True), text / text.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("c", "w"), [(3.5, 9.0), (1.0, 0.5)])
def test_loss_and_gradients_equal_the_plain_formula(tiny_backbone, c, w):
    tiny_backbone.double()
    attach_residual_attention(tiny_backbone)
    freeze_except(tiny_backbone)
    torch.manual_seed(3)
    for name, parameter in clip.adapter_parameters(tiny_backbone).items():
        parameter.data = torch.randn_like(parameter.double()) * (
            0.5 if name.endswith("value") else 1
        )
    prompts = [["a cat", "a cat that sleeps"], ["one dog"], ["a very long bird, in the sky"]]
    model = LightRACLIP(tiny_backbone, prompts, renormalize=False)
    images, label = torch.randn(4, 3, 32, 32, dtype=torch.double), torch.tensor([0, 2, 1, 1])
    index = torch.tensor([1, 2, 3])
    parameters = list(clip.adapter_parameters(tiny_backbone).values())

    f0, h0 = model.frozen_image_features(images), model.frozen_text_features()[index]
    f, h = model.image_features(images), model.bank.encode(tiny_backbone, index)
    out = lightra_loss(f, h, f0, h0, label, model.scale, c, w)
    fast = torch.autograd.grad(out.loss, parameters)

    tokens = model.bank.tokens[index]
    pf, ph = plain_features(tiny_backbone, images, tokens, residual=True)
    with torch.no_grad():
        pf0, ph0 = plain_features(tiny_backbone, images, tokens, residual=False)
    s = tiny_backbone.logit_scale.exp().item()
    logits = s * (c * pf @ ph.T + pf0 @ ph.T + pf @ ph0.T) / (c + 2)
    ce = -torch.log_softmax(logits, 1)[torch.arange(4), label].mean()
    text = 1 - (ph * ph0).sum(-1).mean()
    vision = 1 - (pf * pf0).sum(-1).mean()
    loss = ce + w * (text + vision)

    torch.testing.assert_close(out.logits, logits, rtol=1e-6, atol=1e-6)
    for got, expected in (
        (out.loss, loss),
        (out.parts["ce"], ce),
        (out.parts["text"], text),
        (out.parts["vision"], vision),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    for a, b in zip(fast, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


def test_evaluation_averages_unit_features_without_renormalising(tiny_backbone):
    attach_residual_attention(tiny_backbone)
    prompts = [["a cat", "many cats"], ["a dog"]]
    images = torch.randn(3, 3, 32, 32)
    s = tiny_backbone.logit_scale.exp().item()
    f = F.normalize(tiny_backbone.encode_image(images), dim=-1)
    h = [F.normalize(tiny_backbone.encode_text(clip.tokenize(p)), dim=-1).mean(0) for p in prompts]
    released = LightRACLIP(tiny_backbone, prompts, renormalize=False).eval()(images)
    paper = LightRACLIP(tiny_backbone, prompts, renormalize=True).eval()(images)
    torch.testing.assert_close(released, s * f @ torch.stack(h).T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        paper, s * f @ F.normalize(torch.stack(h), dim=-1).T, rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(released, paper)


def test_settings_are_the_published_ones(make_config):
    expected = {
        "base2novel": (0.005, 20, 9.0),
        "few_shot": (0.0075, 30, 6.0),
        "cross_dataset": (0.001, 20, 20.0),
    }
    for protocol, (lr, epochs, weight) in expected.items():
        cfg = make_config(
            f"LightRA/{protocol}", dataset="oxford_pets" if protocol != "few_shot" else "eurosat"
        )
        assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == ("adamw", lr, 5e-4)
        assert (cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == (epochs, 16)
        assert (cfg.OPTIM.LR_SCHEDULER, cfg.OPTIM.WARMUP_EPOCH) == ("cosine", -1)
        assert cfg.MODEL.BACKBONE.NAME == "ViT-B/16"
        assert cfg.INPUT.SIZE == (224, 224)
        assert cfg.TRAINER.LightRA.COS_WEIGHT == 3.5
        assert cfg.TRAINER.LightRA.LOSS_WEIGHT == (1.0 if protocol == "few_shot" else weight)
    assert make_config("LightRA/few_shot", dataset="dtd").TRAINER.LightRA.LOSS_WEIGHT == 15.0


RELEASED_YAML = """
DATALOADER:
  TRAIN_X: {BATCH_SIZE: 16}
  TEST: {BATCH_SIZE: 100}
  NUM_WORKERS: 8
INPUT:
  SIZE: (224, 224)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]
OPTIM: {NAME: "adamw", LR: 0.005, WEIGHT_DECAY: 0.0005, MAX_EPOCH: 20, LR_SCHEDULER: "cosine"}
TRAIN: {PRINT_FREQ: 20}
MODEL: {BACKBONE: {NAME: "ViT-B/16"}}
DATASET: {SUBSAMPLE_CLASSES: base, PROMPT_PATH: p.json, PROMPT_TEMPLATE: "A photo of a {},"}
TRAINER:
  LightRA: {N_CTX_VISION: 4, N_CTX_TEXT: 4, PREC: "amp", VISION_DEPTH: 12, TEXT_DEPTH: 12,
            COS_WEIGHT: 3.5, LOSS_WEIGHT: 9}
"""


def test_a_released_yaml_works_unchanged(make_config, tmp_path):
    path = tmp_path / "released.yaml"
    path.write_text(RELEASED_YAML)
    cfg = make_config(None, flags=("--config-file", str(path), "--trainer", "LightRA"))
    assert cfg.TRAINER.LightRA.LOSS_WEIGHT == 9.0
    assert cfg.MODEL.BACKBONE.NAME == "ViT-B/16"


def released_state(trainer):
    """What the release writes: one (2, N, W) tensor per layer, W laid out as (H, Dh)."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for tower in ("visual", "text"):
        transformer = getattr(
            trainer.model.backbone, f"{tower.replace('visual', 'vision')}_transformer"
        )
        for i in range(len(transformer.resblocks)):
            state[f"{tower}ResidualAttention.{i}.prefix_pool"] = torch.randn(
                2, 4, 128, generator=generator
            )
    return state


def test_released_checkpoint_loads_and_evaluates(build, tmp_path):
    trainer = build()
    state = released_state(trainer)
    folder = write_released(tmp_path / "released", "ResidualAttention", state, 20)
    before = trainer.test()
    trainer.load_model(folder, epoch=20)
    after = trainer.test()
    block = trainer.model.backbone.model.transformer.resblocks[1].attn
    pool = state["textResidualAttention.1.prefix_pool"]
    assert torch.equal(block.residual.key[1, 2], pool[0, 2, 64:])
    assert torch.equal(block.residual.value[0, 3], pool[1, 3, :64])
    assert before != after


def test_released_checkpoint_of_another_depth_is_refused(build, tmp_path):
    trainer = build("TRAINER.LightRA.TEXT_DEPTH", "1")
    state = released_state(trainer)
    folder = write_released(tmp_path / "released", "ResidualAttention", state, 20)
    with pytest.raises(ValueError, match=r"resblocks\.1\.attn\.residual"):
        trainer.load_model(folder, epoch=20)


def test_half_precision_keeps_small_distances(build):
    """bf16 has 8 bits: unit vectors rounded to it are never closer than 0.004, or equal."""
    trainer = build("TRAINER.LightRA.PREC", "bf16")
    for parameter in clip.adapter_parameters(trainer.model).values():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    with trainer.autocast():
        out = trainer.forward_loss(torch.randn(2, 3, 48, 48), torch.tensor([0, 1]))
    assert out.loss.dtype == torch.float32
    assert out.parts["text"].dtype == out.parts["vision"].dtype == torch.float32
    assert 0 < out.parts["text"] < 0.1


def test_text_cache_follows_training(build):
    trainer = build()
    first = trainer.test()
    weights = trainer.model.class_weights()
    trainer.train()
    assert not torch.equal(weights, trainer.model.class_weights())
    assert math.isfinite(first)


def test_training_and_frozen_features_use_the_same_prompts(build):
    trainer = build()
    trainer.set_model_mode("train")
    out = trainer.forward_loss(torch.randn(2, 3, 48, 48), torch.tensor([0, 1]))
    # at zero the student is the teacher: no distance, and logits are CLIP's
    assert out.parts["text"].abs() < 1e-6
    assert out.parts["vision"].abs() < 1e-6
    assert torch.allclose(out.loss, out.parts["ce"], atol=1e-5)
