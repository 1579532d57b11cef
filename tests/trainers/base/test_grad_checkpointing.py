"""TRAIN.GRAD_CHECKPOINTING and KEPT_TOKENS: activations made again give the same gradients."""

import open_clip
import pytest
import torch

from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.test_matrix import OURS
from tests.trainers.plain import SMALL
from tests.trainers.test_time.starts import views_options

BASE_TO_NOVEL = [
    name
    for name in OURS
    if "base2novel" in TRAINER_REGISTRY.get(name).protocols
    and TRAINER_REGISTRY.get(name).recipe_type.takes_steps
    and not name.startswith("Zeroshot")
]
HPT_WITHOUT_STRUCTURES = ("HPT/base2novel", "TRAINER.HPT.STRUCTURES", "")
DEPT = ("base2novel_cocoop", "base2novel_kgcoop", "base2novel_maple")


@pytest.fixture
def gradients(make_config):
    """(GRAD_CHECKPOINTING, method file, options) -> the loss of a step, gradients by name.

    With the switch, texts are encoded in parts of 15 tokens too.
    """

    def make(switch, method, *options):
        kept = "60" if switch == "True" else "0"
        options = (*SMALL, *options, "TRAIN.GRAD_CHECKPOINTING", switch, "TRAIN.KEPT_TOKENS", kept)
        trainer = build_trainer(make_config(method, *options, output=switch))
        trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        torch.manual_seed(3)
        for parameter in trained.values():  # some have no gradient where they start
            parameter.data += 0.05 * torch.randn_like(parameter)
        trainer.set_model_mode("train")
        image, label, _ = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
        loss = trainer.forward_loss(image, label).loss
        loss.backward()
        return loss, {name: parameter.grad for name, parameter in trained.items()}

    return make


@pytest.mark.parametrize(
    "method",
    [
        *((f"{name}/base2novel",) for name in BASE_TO_NOVEL),
        *((f"DePT/{host}",) for host in DEPT),
        HPT_WITHOUT_STRUCTURES,
    ],
    ids=" ".join,
)
def test_gradients_are_those_without_it(gradients, monkeypatch, method):
    again, checkpoint = [], open_clip.transformer.checkpoint
    monkeypatch.setattr(
        open_clip.transformer,
        "checkpoint",
        lambda *a, **k: again.append(torch.is_grad_enabled()) or checkpoint(*a, **k),
    )
    loss, expected = gradients("False", *method)
    assert not again
    loss_again, found = gradients("True", *method)
    assert again
    torch.testing.assert_close(loss_again, loss, rtol=1e-6, atol=1e-6)
    for name, gradient in expected.items():
        if gradient is None:  # the weights of ties, where there are none
            assert method == HPT_WITHOUT_STRUCTURES, name
            assert found[name] is None
            continue
        assert gradient.abs().max() > 0, name
        # Rounding: in parts, texts stand in other groups, and gradients add up in another order.
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6, msg=name)


def test_episodes_on_the_context_give_the_same_logits(make_config):
    """What is made again must be of an episode's own prompts: a second step's gradient tells."""
    views = torch.randint(256, (2, 4, 3, 48, 48), dtype=torch.uint8)
    logits = []
    for switch, kept in (("False", "0"), ("True", "0"), ("False", "60")):
        options = (*views_options("TPT"), "TRAINER.TPT.STEPS", "2", "TRAIN.KEPT_TOKENS", kept)
        options += ("TRAIN.GRAD_CHECKPOINTING", switch)
        cfg = make_config("TPT/ttt", *options, output=switch + kept)
        trainer = build_trainer(cfg)
        trainer.set_model_mode("eval")
        logits.append(trainer.model_inference(views))
    assert all(torch.equal(other, logits[0]) for other in logits[1:])


@pytest.mark.parametrize("method", ["TPT/ttt_maple", "PromptAlign/ttt"])
def test_episodes_on_both_towers_refuse_it(make_config, method):
    cfg = make_config(method, "TRAIN.GRAD_CHECKPOINTING", "True", dataset="shapes_v2")
    with pytest.raises(ValueError, match=r"TRAIN.GRAD_CHECKPOINTING is True, but .*set it to F"):
        build_trainer(cfg)
