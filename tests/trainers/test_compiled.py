"""Compiled towers and masks: the same numbers, no breaks, nothing compiled at every step."""

import copy
import shutil

import pytest
import torch

from clip import attach_residual_attention
from clip.layouts import Ends, packed
from dassl.config import config_hash
from dassl.engine import build_trainer, compiled
from dassl.engine.record import Notes
from tests.trainers.plain import FEW_TEMPLATES, first_losses
from tests.trainers.test_time.starts import views_of, views_options
from trainers.heads import RationalHead

METHOD = "LightRA"
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
ON = ("TRAIN.COMPILE", "True")
RUN = ("OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", *FEW_TEMPLATES)


@pytest.fixture
def tracing(monkeypatch):
    """Compile without inductor; what an earlier test has traced may be used again."""
    monkeypatch.setattr(compiled.Compiler.__init__, "__defaults__", ("aot_eager",))


@pytest.fixture
def traced(tracing):
    """Counters of what PyTorch traces from now on."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    return counters


@pytest.mark.parametrize("method", ["MaPLe", "CoOp", "MMA", "RAda", "RAdaFT/fft", "LightRA"])
def test_training_compiled_equals_training(method, build, traced):
    plain = build(*RUN, method=method)
    expected = first_losses(plain, 5)
    assert not traced["stats"]
    trainer = build(*RUN, *ON, method=method, output="compiled")
    graphs: list[int] = []
    losses = first_losses(trainer, 5, lambda: graphs.append(traced["stats"]["unique_graphs"]))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert not traced["graph_break"]
    assert graphs[0] > 0
    # LightRA's texts have other lengths in every step.
    assert graphs[-1] == graphs[-3], "nothing is compiled again"
    assert not [note for note in trainer.notes if "COMPILE" in note]
    assert trainer.model.state_dict().keys() == plain.model.state_dict().keys()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_checkpoints_and_results_do_not_depend_on_it(build, tracing):
    trainer, plain = build(*RUN, *ON), build(*RUN, output="plain")
    assert config_hash(trainer.cfg) == config_hash(plain.cfg)
    first_losses(trainer, 2)
    trainer.save_model(0, trainer.output_dir)
    plain.load_model(trainer.output_dir, epoch=1)
    for each in (trainer, plain):
        each.set_model_mode("eval")
    image = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        found, expected = trainer.model_inference(image), plain.model_inference(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("then", [ON, ()], ids=["compiled", "plain"])
def test_a_run_may_resume_with_or_without(then, build, tracing, monkeypatch):
    two_epochs = (*RUN, "OPTIM.MAX_EPOCH", "2", "TEST.NO_TEST", "True")
    plain = build(*two_epochs, output="plain")
    plain.train()
    killed = build(*two_epochs, *ON)
    epoch_of = killed.run_epoch
    monkeypatch.setattr(killed, "run_epoch", lambda: epoch_of() if killed.epoch == 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        killed.train()
    resumed = build(*two_epochs, *then)
    resumed.train()
    assert resumed.start_epoch == 1
    expected = plain.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_compiled_model_has_weights_of_its_own(build, tracing):
    trainer = build(*RUN, *ON, method="RAda")
    other = copy.deepcopy(trainer.model)
    image = torch.randn(2, 3, 48, 48)
    for parameter in other.head.parameters():
        parameter.data += 0.1
    with torch.no_grad():
        moved = (other(image) - trainer.model(image)).abs().amax()
    assert moved > 1e-3


def test_activations_that_are_computed_again_are_the_same(build, tracing):
    options = ("TRAIN.GRAD_CHECKPOINTING", "True", "TRAIN.KEPT_TOKENS", "100")
    expected = first_losses(build(*RUN), 3)
    losses = first_losses(build(*RUN, *ON, *options, output="compiled"), 3)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_episodes_run_in_compiled_towers(make_config, traced):
    found = []
    for name, more in (("plain", ()), ("compiled", ON)):
        options = (*views_options("RAdaTTT"), *more)
        cfg = make_config("RAdaTTT/ttt", *options, dataset="shapes_v2", output=name)
        trainer = build_trainer(cfg)
        trainer.set_model_mode("eval")
        with torch.no_grad():
            found.append(trainer.model_inference(views_of(trainer, range(3))))
    assert traced["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)])
def test_the_mask_is_one_operator(backend, traced):
    """Its loops over chunks are not traced: another batch size needs no other graph."""
    torch.manual_seed(0)
    head = RationalHead(32, num_heads=4).double()
    for parameter in head.parameters():
        parameter.data.normal_(std=0.3)
    notes = Notes()
    forward = compiled.Compiler(notes, backend)(type(head).masked)
    text, scale = torch.randn(10, 32).double(), torch.tensor(30.0).double()
    for batch in (2, 5, 9, 4):
        image = torch.randn(batch, 32).double()
        results = []
        for masked in (type(head).masked, forward):
            out = masked(head, image, text, scale)
            loss = out.logits.square().mean() + out.penalty
            results.append([loss, *torch.autograd.grad(loss, [*head.parameters()])])
        # Some gradients are nothing but rounding, such as those of the keys' biases: what a
        # difference means is told by the largest one.
        largest = max(value.abs().max().item() for value in results[0])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12 * largest)
    assert traced["stats"]["unique_graphs"] <= 2
    assert not traced["graph_break"]
    assert not notes


@NEEDS_COMPILER
def test_a_block_with_residual_attention_is_the_same_by_inductor(tiny_backbone):
    attach_residual_attention(tiny_backbone)
    block = tiny_backbone.text_transformer.resblocks[0]
    block.attn.residual.value.data.normal_(std=0.3)
    notes = Notes()
    own = copy.deepcopy(block)
    own.compile_parts(compiled.Compiler(notes))
    for lengths in ((3, 5, 9), (4, 4, 7), (2, 8, 8)):
        layout = packed(Ends(lengths, 2), torch.device("cpu"))
        x = layout.pack(torch.randn(3, max(lengths) + 1, 128)).requires_grad_()
        results = []
        for each in (block, own):
            out = each(x, attn_mask=layout)
            grads = torch.autograd.grad(out.square().mean(), [x, *each.attn.residual.parameters()])
            results.append([out, *grads])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not notes
