"""CoPrompt (arXiv:2306.01195): coupled prompts, adapters, consistency with the frozen model."""

import json
from collections import Counter

import pytest
import torch

import clip
from clip import adapters_disabled
from dassl.engine import build_trainer
from tests.conftest import REPOSITORY
from tests.trainers.plain import (
    check_step,
    cosine_loss,
    learning_rates,
    plain_image,
    plain_text,
    tokens_of,
    unit,
)
from tests.trainers.test_maple import TEXT, coupled

METHOD = "CoPrompt"

SENTENCES = json.loads((REPOSITORY / "prompts/Shapes.json").read_text())


def adapted(features, learned, kind, ratio):
    down, up = (learned[f"{kind}_adapter.{layer}.weight"] for layer in ("down", "up"))
    return ratio * torch.relu(torch.relu(features @ down.T) @ up.T) + (1 - ratio) * features


@pytest.mark.parametrize("views", [1, 2])
def test_step_equals_the_formula(build, views):
    trainer = build("TRAINER.CoPrompt.LOSS_WEIGHT", "3.0")
    tokens, names = tokens_of(trainer), trainer.dm.dataset.classnames
    shape = (3, 3, 48, 48) if views == 1 else (3, 2, 3, 48, 48)
    image = torch.randn(shape, dtype=torch.double)
    x1, x2 = (image, image) if views == 1 else (image[:, 0], image[:, 1])
    # which of the four sentences comes next
    generator = trainer.sentence_generator
    state = generator.get_state()
    m = int(torch.rand(1, generator=generator) * 4)
    generator.set_state(state)
    sentences = clip.tokenize([SENTENCES[name][m] for name in names])

    def expected(model, learned, image, label):
        f = unit(adapted(plain_image(model, x1, coupled(learned)), learned, "image", 0.1))
        h = unit(adapted(plain_text(model, tokens, learned[TEXT]), learned, "text", 0.2))
        f0 = unit(plain_image(model, x2)).detach()
        h0 = unit(plain_text(model, sentences)).detach()
        logits, ce = cosine_loss(model, f, h, label)
        text, vision = (3 * (1 - (a * b).sum(1).mean()) for a, b in ((h, h0), (f, f0)))
        terms = {"ce": ce, "text": text, "image": vision}
        return {"logits": logits, "loss": sum(terms.values()), **terms}

    check_step(trainer, expected, image)


def test_evaluation_uses_both_adapters(build):
    model = build().model.double().eval()
    image = torch.randn(2, 3, 48, 48, dtype=torch.double)
    assert torch.allclose(model(image), model.output(image).logits, atol=1e-9)
    whole = model(image)
    for adapter in (model.image_adapter, model.text_adapter):
        adapter.enabled = False
        assert not torch.allclose(model(image), whole)
        adapter.enabled = True
    assert torch.equal(model(image), whole)


def test_disabled_is_clip(build):
    model = build().model.eval()
    image = torch.randn(2, 3, 48, 48)
    with adapters_disabled(model):
        off = model(image)
    tokens = model.bank.tokens
    plain = clip.load("shapes")
    h = unit(plain.encode_text(tokens))
    torch.testing.assert_close(off, model.scale * unit(plain.encode_image(image)) @ h.T)


def test_one_sentence_number_for_all_classes_drawn_anew(build):
    trainer = build()
    bank_rows = []
    names = trainer.dm.dataset.classnames
    with torch.no_grad():
        plain = clip.load("shapes")
        sets = [unit(plain.encode_text(clip.tokenize([SENTENCES[n][m] for n in names])))
                for m in range(4)]  # fmt: skip
    for _ in range(60):
        h0 = trainer.drawn_teacher_text()
        matches = [m for m in range(4) if torch.allclose(h0, sets[m], atol=1e-5)]
        assert len(matches) == 1
        bank_rows += matches
    assert set(bank_rows) == {0, 1, 2, 3}
    assert min(Counter(bank_rows).values()) >= 5


def test_two_views_of_each_image_reach_the_loss(build):
    trainer = build()
    batch = next(iter(trainer.train_loader_x))
    image, label, *_ = trainer.parse_batch_train(batch)
    assert image.shape == (4, 2, 3, 48, 48)
    assert label.shape == (4,)
    assert torch.equal(image[:, 0], batch["img"][0])
    assert torch.equal(image[:, 1], batch["img"][1])
    assert not torch.equal(image[:, 0], image[:, 1])


def test_schedule(make_config):
    trainer = build_trainer(make_config("CoPrompt/base2novel", "DATASET.NUM_SHOTS", "1"))
    rates = learning_rates(trainer)
    assert rates[:3] == pytest.approx([1e-5, 3.5e-3, 3.3668e-3], rel=1e-4)
    assert (len(rates), rates[5]) == (8, pytest.approx(1.75e-3))
    assert trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("imagenet", (4, 12, 8.0, 8)),
        ("sun397", (4, 12, 8.0, 8)),
        ("caltech101", (4, 12, 4.0, 8)),
        ("stanford_cars", (4, 12, 4.0, 8)),
        ("oxford_pets", (2, 12, 0.1, 8)),
        ("eurosat", (2, 12, 0.1, 8)),
        ("oxford_flowers", (4, 9, 8.0, 8)),
        ("food101", (4, 9, 0.5, 5)),
        ("fgvc_aircraft", (4, 9, 2.0, 8)),
        ("dtd", (2, 12, 8.0, 8)),
        ("ucf101", (4, 12, 2.0, 8)),
    ],
)
def test_settings_per_dataset(make_config, dataset, expected):
    cfg = make_config("CoPrompt/base2novel", dataset=dataset)
    options = cfg.TRAINER.CoPrompt
    found = (options.N_CTX, options.PROMPT_DEPTH, options.LOSS_WEIGHT, cfg.OPTIM.MAX_EPOCH)
    assert found == expected
    assert cfg.DATALOADER.K_TRANSFORMS == 2
    transfer = make_config("CoPrompt/cross_dataset", dataset=dataset).TRAINER.CoPrompt
    assert (transfer.N_CTX, transfer.PROMPT_DEPTH, transfer.LOSS_WEIGHT) == (4, 12, 8.0)


def test_evaluation_needs_no_sentences_but_training_does(build):
    trainer = build("DATASET.PROMPT_PATH", "")
    trainer.test()
    with pytest.raises(ValueError, match="DATASET.PROMPT_PATH is empty"):
        trainer.train()


def test_three_views_are_refused(build):
    with pytest.raises(ValueError, match="K_TRANSFORMS must be 2 .* got 3"):
        build("DATALOADER.K_TRANSFORMS", "3")


def test_images_are_squashed_and_augmented_without_a_crop(make_config):
    for protocol in ("base2novel", "cross_dataset"):
        published = make_config(f"CoPrompt/{protocol}", dataset="dtd").INPUT
        assert list(published.TRANSFORMS) == ["randaugment", "normalize"]
        assert (published.RANDAUGMENT_N, published.RANDAUGMENT_M) == (2, 10)
        assert "randaugment" not in make_config(f"CoPrompt/{protocol}").INPUT.TRANSFORMS
