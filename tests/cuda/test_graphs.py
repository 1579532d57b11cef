"""Steps and episodes replayed as CUDA graphs equal those that are not."""

import pytest
import torch

from dassl.engine import build_trainer
from tests.trainers.plain import SMALL, first_losses
from tests.trainers.test_time.starts import views_of, views_options

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU"),
]
CUDA = ("DEVICE", "cuda")
ON = (*CUDA, "TRAIN.CUDA_GRAPHS", "True")


def trained(make_config, *options: str, output: str):
    """RAda after two epochs of six batches of three images and one of two."""
    options = (*SMALL, "OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "3", *options)
    trainer = build_trainer(make_config("RAda/eft", *options, output=output))
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulate", ["1", "3"])
@pytest.mark.parametrize("head", ["rational", "mlp", "both"])
def test_training_by_replays_equals_training(head, accumulate, make_config, tmp_path):
    options = ("TRAINER.RADA.HEAD", head, "OPTIM.ACCUMULATE", accumulate)
    options = (*options, "FEATURE_CACHE.DIR", str(tmp_path / "cache"))
    plain = trained(make_config, *options, *CUDA, output="plain")
    replayed = trained(make_config, *options, *ON, output="replayed")
    assert not [note for note in replayed.notes if "CUDA_GRAPHS" in note]
    assert replayed.graphed is not None
    state = plain.model.head.state_dict()
    for name, value in replayed.model.head.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("entropy", ["marginal", "mean"])
def test_episodes_by_replays_equal_episodes(entropy, make_config):
    found = []
    for output, device in (("plain", CUDA), ("replayed", ON)):
        options = (*views_options("RAdaTTT"), "TRAINER.RAdaTTT.BATCH", "3", *device)
        options = (*options, "TRAINER.RAdaTTT.ENTROPY", entropy)
        cfg = make_config("RAdaTTT/ttt", *options, dataset="shapes_v2", output=output)
        trainer = build_trainer(cfg)
        trainer.set_model_mode("eval")
        with torch.no_grad():
            found.append(trainer.model_inference(views_of(trainer, range(11)).cuda()))
    assert not [note for note in trainer.notes if "CUDA_GRAPHS" in note]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("method", "section"), [("LightRA", "LightRA"), ("RAda", "RADA")])
def test_compiled_training_is_close_to_training(method, section, make_config):
    losses = []
    for output, options in (("plain", CUDA), ("compiled", (*CUDA, "TRAIN.COMPILE", "True"))):
        options = (*SMALL, f"TRAINER.{section}.PREC", "fp32", *options)
        trainer = build_trainer(make_config(f"{method}/base2novel", *options, output=output))
        losses.append(first_losses(trainer, 5))
    assert not [note for note in trainer.notes if "COMPILE" in note]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
