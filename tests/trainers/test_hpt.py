"""HPT: its step against the plain formula, files, schedule, released checkpoints, bad settings."""

import json
import math

import open_clip
import pytest
import torch
from torch.nn import functional as F

import clip
from clip import adapters_disabled
from clip.adapters.hpt import end_states
from clip.text import unit_norm
from dassl.engine import build_trainer, trainable_state
from tests.conftest import REPOSITORY
from tests.trainers.plain import check_released, learning_rates, write_released

METHOD = "HPT"
HIERARCHY = "backbone.hierarchical_prompts."


def read(kind: str) -> dict:
    return json.loads((REPOSITORY / f"prompts/hpt/{kind}/Shapes.json").read_text())


def plain_block(block, x, mask):
    """(N, L, W), mask (L, L) or (N, L, L): attention as matrix products."""
    attention, heads = block.attn, block.attn.num_heads
    qkv = block.ln_1(x) @ attention.in_proj_weight.T + attention.in_proj_bias
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + (mask if mask.ndim == 2 else mask[:, None])
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
    x = x + y @ attention.out_proj.weight.T + attention.out_proj.bias
    return x + block.mlp(block.ln_2(x))


def plain_states(plain, sentences):
    """(S, J-1, W): whole texts through the frozen blocks, unit-norm states at the end token."""
    tokens = plain.tokenize(sentences)
    model = plain.model
    x = model.token_embedding(tokens) + model.positional_embedding
    states = []
    for block in list(model.transformer.resblocks)[:-1]:
        x = plain_block(block, x, model.attn_mask)
        states.append(unit_norm(x[range(len(x)), tokens.argmax(-1)]))
    return torch.stack(states, 1)


def counted(text, pairs):
    """(77, 77): +1 in both directions for every token pair of related phrases' first places."""
    counts, words = torch.zeros(77, 77, dtype=torch.float64), " ".join(map(str, text))
    encode = open_clip.tokenizer._tokenizer.encode
    for pair in pairs:
        places = []
        for phrase in pair:
            tokens = encode(phrase)
            before = f" {words} ".find(f" {' '.join(map(str, tokens))} ")
            start = len(words[:before].split())
            places.append(range(start, start + len(tokens)) if before >= 0 else ())
        for i in places[0]:
            for j in places[1]:
                counts[i, j] += 1
                counts[j, i] += 1
    return counts


def plain_text(plain, p, names, drawn):
    """h, with the descriptions and structures numbered ``drawn`` within their class."""
    descriptions, structures = read("descriptions"), read("structures")
    model, sentences, parts = plain.model, [], []
    for name, m in zip(names, drawn, strict=True):
        one = structures[name][m]
        entities, attributes = ", ".join(one["entities"]), ", ".join(one["attributes"])
        sentences.append(f"X X X X X X X {name}. {entities}. {attributes}.")
        parts.append(one)
    tokens = plain.tokenize(sentences)
    z = torch.stack([plain_states(plain, descriptions[name]) for name in names])  # (K, 5, J-1, W)
    high = z + z @ p["projector.weight"].T + p["projector.bias"]
    E, A = (
        torch.stack([counted(t, one[key]) for t, one in zip(tokens.tolist(), parts, strict=True)])
        for key in ("entity_pairs", "attribute_pairs")
    )
    assert E.sum() > 0
    assert A.sum() > 0
    count = len(names)
    x = model.token_embedding(tokens)
    x = torch.cat([x[:, :1], p["input"].expand(count, -1, -1), x[:, 8:]], 1)
    x = x + model.positional_embedding
    for level, block in enumerate(model.transformer.resblocks):
        if level > 0:
            prompts = [p["general"][level - 1].expand(count, -1, -1), high[:, :, level - 1]]
            x = torch.cat([x[:, :1], *prompts, x[:, 8:]], 1)
        ties = p["entity_scale"][level] * E + p["attribute_scale"][level] * A
        x = plain_block(block, x, ties + model.attn_mask)
    x = model.ln_final(x)[range(count), tokens.argmax(-1)]
    return unit_norm(x @ model.text_projection)


def plain_image(plain, image, vectors):
    visual = plain.model.visual
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
    x = torch.cat([x + visual.positional_embedding, vectors[0].expand(len(x), -1, -1)], 1)
    x = visual.ln_pre(x)
    for level, block in enumerate(visual.transformer.resblocks):
        if level > 0:
            x = torch.cat([x[:, : -vectors.shape[1]], vectors[level].expand(len(x), -1, -1)], 1)
        x = plain_block(block, x, None)
    return unit_norm(visual.ln_post(x[:, 0]) @ visual.proj)


def shaken(build, *options):
    """A trainer in double precision with all parameters away from their start."""
    trainer = build(*options)
    model = trainer.model.double()
    torch.manual_seed(5)
    for parameter in clip.adapter_parameters(model).values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    states = end_states(model.backbone, model.bank).unflatten(0, (-1, 5))
    torch.testing.assert_close(model.structured.states, states.transpose(1, 2), atol=1e-5, rtol=0)
    model.structured.states = states.transpose(1, 2)
    return trainer


def test_logits_loss_terms_and_gradients_equal_the_formula(build):
    trainer = shaken(build)
    model, plain = trainer.model, clip.load("shapes").double()
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    image, label = torch.randn(3, 3, 48, 48, dtype=torch.float64), torch.tensor([0, 5, 19])
    own = clip.adapter_parameters(model)
    copies = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
    p = {n.removeprefix(HIERARCHY): v for n, v in copies.items() if n.startswith(HIERARCHY)}
    vectors = copies["backbone.vision_prompts.vectors"]

    state = model.generator.get_state()
    drawn = (model.structured.sample(model.generator) % 5).tolist()
    model.generator.set_state(state)
    assert len(set(drawn)) > 1
    with torch.no_grad():
        f0 = unit_norm(plain.encode_image(image))
        described = [read("descriptions")[name] for name in names]
        h0 = unit_norm(torch.stack([
            unit_norm(plain.model.encode_text(plain.tokenize(texts))).mean(0) for texts in described
        ]))  # fmt: skip
    f, s = plain_image(plain, image, vectors), plain.logit_scale.exp()
    by_image, by_text = s * f @ h0.T, s * f0 @ plain_text(plain, p, names, drawn).T
    logits = (by_image + by_text) / 2
    terms = [F.cross_entropy(one, label) for one in (logits, by_image, by_text)]

    out = trainer.forward_loss(image, label)

    torch.testing.assert_close(out.logits, logits, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(out.loss, sum(terms), rtol=1e-8, atol=1e-8)
    for name, term in zip(("ce", "image", "text"), terms, strict=True):
        torch.testing.assert_close(out.parts[name], term, rtol=1e-8, atol=1e-8)
    ours = torch.autograd.grad(out.loss, list(own.values()))
    theirs = torch.autograd.grad(sum(terms), list(copies.values()))
    for name, mine, other in zip(own, ours, theirs, strict=True):
        assert other.abs().max() > 0, name
        largest = float(other.abs().max())
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-7 * largest, msg=name)

    with torch.no_grad():  # evaluation: all five texts of each class
        texts = [plain_text(plain, p, names, [m] * len(names)) for m in range(5)]
        h = unit_norm(torch.stack(texts).mean(0))
        expected = s * (f @ h0.T + f0 @ h.T) / 2
        torch.testing.assert_close(model.eval()(image), expected, rtol=1e-8, atol=1e-8)


def test_ties_weigh_nothing_and_prompts_are_small_at_first(build):
    state = trainable_state(build().model)
    assert state[f"{HIERARCHY}entity_scale"].abs().max() == 0
    assert state[f"{HIERARCHY}attribute_scale"].abs().max() == 0
    for name in ("backbone.vision_prompts.vectors", f"{HIERARCHY}input", f"{HIERARCHY}general"):
        assert state[name].std() == pytest.approx(0.02, rel=0.15)


def test_disabled_is_clip_with_the_placeholders_words(build):
    model = build().model.eval()
    bank = model.structured
    with torch.no_grad(), adapters_disabled(model.backbone):
        off = bank.encode(model.backbone, torch.tensor([3, 7]))
        expected = unit_norm(clip.load("shapes").encode_text(bank.tokens[[3, 7]]))
    assert torch.equal(off, expected)
    assert not torch.allclose(off, bank.encode(model.backbone, torch.tensor([3, 7])), atol=1e-3)
    again = unit_norm(model.backbone.encode_text(bank.tokens[[3, 7]]))
    assert torch.equal(again, expected), "outside of the bank texts are the pre-trained model's"


def test_texts_are_encoded_once_per_evaluation(build, count_calls):
    trainer = build("OPTIM.MAX_EPOCH", "1", "DATALOADER.TEST.BATCH_SIZE", "50")
    calls = count_calls(trainer.model.structured, "encode_all")
    trainer.train()
    assert len(trainer.test_loader) > 1
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("protocol", "first", "batch"),
    [
        # lr (1 + cos(pi (e - 1) / E)) / 2 behind the warm-up epoch
        ("base2novel", [1e-5, 2.5e-3, 2.438821e-3, 2.261271e-3, 1.984732e-3], 8),
        ("cross_dataset", [1e-5, 1e-3, 7.5e-4], 16),
    ],
)
def test_schedules_are_the_released_configs(make_config, protocol, first, batch):
    cfg = make_config(f"HPT/{protocol}", "DATASET.NUM_SHOTS", "1")
    assert (cfg.OPTIM.NAME, cfg.OPTIM.MOMENTUM, cfg.OPTIM.WEIGHT_DECAY) == ("sgd", 0.9, 5e-4)
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == batch
    assert len(first) == min(5, cfg.OPTIM.MAX_EPOCH)
    rates = learning_rates(build_trainer(cfg))
    assert rates[: len(first)] == pytest.approx(first, rel=1e-5)


class TestFiles:
    def test_the_suites_shifts_read_its_files(self, build, capsys):
        trainer = build(dataset="shapes_sketch")
        printed = capsys.readouterr().out
        assert "descriptions/Shapes.json" in printed
        assert "structures/Shapes.json" in printed
        assert trainer.model.structured.ties(torch.arange(5)).entities.sum() > 0

    def test_without_structures_texts_are_names_and_descriptions(self, build, capsys):
        trainer = build("TRAINER.HPT.STRUCTURES", "")
        assert "no structures" in capsys.readouterr().out
        bank, name = trainer.model.structured, trainer.dm.dataset.classnames[0]
        sentence = read("descriptions")[name.replace("_", " ")][0]
        text = f"X X X X X X X {name}. {sentence}"
        assert torch.equal(bank.tokens[:1], trainer.model.backbone.tokenize([text]))
        assert bank.ties(torch.arange(5)) is None
        trainer.train()

    def test_without_any_file_the_datasets_prompts_serve(self, build, capsys):
        trainer = build("TRAINER.HPT.STRUCTURES", "", "TRAINER.HPT.DESCRIPTIONS", "")
        assert "no descriptions of its own" in capsys.readouterr().out
        assert trainer.model.bank.counts.tolist() == [5] * 20
        assert torch.equal(trainer.model.bank.tokens[0], trainer.model.bank.tokens[4]), "of four"
        trainer.train()

    def test_more_than_needed_is_left_out(self, build):
        model = build("TRAINER.HPT.N_SET", "3").model
        assert model.bank.counts.tolist() == model.structured.counts.tolist() == [3] * 20
        assert model.backbone.hierarchical_prompts.n_ctx == 5

    def test_a_file_without_a_class_says_so(self, build, tmp_path):
        content = read("structures")
        del content["dotted green star"]
        (tmp_path / "some.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"nothing for 1 of 20 classes, such as \['dotted gr"):
            build("TRAINER.HPT.STRUCTURES", str(tmp_path / "some.json"))

    def test_a_file_named_in_full_must_be_there(self, build):
        with pytest.raises(FileNotFoundError, match=r"TRAINER.HPT.STRUCTURES: no file .*gone.json"):
            build("TRAINER.HPT.STRUCTURES", "/gone.json")


def released(model) -> dict[str, torch.Tensor]:
    """A model's prompts under the released names, among weights of a CLIP."""
    own = {n: v.detach().clone() for n, v in clip.adapter_parameters(model).items()}
    vectors = own.pop("backbone.vision_prompts.vectors")
    own = {name.removeprefix(HIERARCHY): value for name, value in own.items()}
    learner, vision = "prompt_learner.", "vision_prompt_learner."
    state = {
        f"{learner}p_input": own["input"],
        f"{learner}p_ins_projector.weight": own["projector.weight"],
        f"{learner}p_ins_projector.bias": own["projector.bias"],
        f"{vision}p_input": vectors[0],
        "topo_prompt_learner.e2e_scal": own["entity_scale"].reshape(-1, 1, 1, 1),
        "topo_prompt_learner.e2a_scal": own["attribute_scale"].reshape(-1, 1, 1, 1),
    }
    state |= {f"{learner}p_uni.{i}": value for i, value in enumerate(own["general"])}
    state |= {f"{vision}p_visual.{i}": value for i, value in enumerate(vectors[1:])}
    whole = model.backbone.model.state_dict()
    state |= {f"{learner}clip_model.{n}": v.half() for n, v in whole.items()}
    return {**state, "logit_scale": torch.tensor(4.6)}


def test_released_checkpoints_load_and_evaluate(build, tmp_path):
    source, loaded = build(), build("SEED", "2", output="loaded")
    for parameter in clip.adapter_parameters(source.model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = write_released(tmp_path / "released", "Model", released(source.model), 10)
    check_released(source, loaded, folder, epoch=10)


def test_weights_that_do_not_fit_are_refused(build, tmp_path):
    state = released(build().model)
    state["prompt_learner.p_input"] = torch.zeros(9, 128)
    with pytest.raises(ValueError, match=r"input.*\(9, 128\).*needs \(7, 128\)"):
        build(output="b").load_model(
            write_released(tmp_path / "wide", "Model", state, 10), epoch=10
        )
    folder = write_released(
        tmp_path / "other", "Model", {"prompt_learner.ctx": torch.zeros(4, 128)}, 10
    )
    with pytest.raises(ValueError, match=r"Missing keys.*Unexpected keys: prompt_learner.ctx"):
        build(output="c").load_model(folder, epoch=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.HPT.N_SET", "0"), "N_SET must be a whole number 1 to 1024, got 0"),
        (("TRAINER.HPT.N_TPRO", "0"), "N_TPRO must be .* 1 to 75, got 0"),
        (("TRAINER.HPT.N_VPRO", "0"), "N_VPRO must be .*, got 0"),
        (("FEATURE_CACHE.ENABLED", "True"), "FEATURE_CACHE.*HPT"),
    ],
)
def test_bad_settings_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(*options)
