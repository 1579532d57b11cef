"""Methods whose steps and episodes can be CUDA graphs, with a stand-in on the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.dassl.test_graphs import Unrecordable, recording  # noqa: F401 - a fixture
from tests.trainers.test_time.starts import views_of, views_options
from trainers.test_time import rada_ttt

METHOD = "RAda"
ON = ("TRAIN.CUDA_GRAPHS", "True")
# 20 images: six batches of three and one of two.
TWO_EPOCHS = ("OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "3", "TEST.NO_TEST", "True")
STATIC = [
    n
    for n in TRAINER_REGISTRY.registered_names()
    if getattr(TRAINER_REGISTRY.get(n), "static_step", False)
]


class Operations(TorchDispatchMode):
    """Names of the operations inside a block."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def trained_weights(trainer) -> list[torch.Tensor]:
    trainer.train()
    return [p.detach() for p in trainer.model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("FEATURE_CACHE.ENABLED", "True"),
        ("OPTIM.MAX_GRAD_NORM", "0.01", "OPTIM.LR_SCHEDULER", "cosine_step"),
        ("TRAINER.RADA.HEAD", "both"),
    ],
    ids=["images", "features", "clipped", "feature-attention"],
)
def test_training_by_replays_equals_training(options, build, recording, tmp_path):  # noqa: F811
    options = (*TWO_EPOCHS, "FEATURE_CACHE.DIR", str(tmp_path / "cache"), *options)
    replayed = trained_weights(build(*options, *ON))
    assert recording.replays == 2 * 6
    plain = trained_weights(build(*options, output="plain"))
    assert all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True))


def test_parts_of_a_batch_are_replayed_too(build, recording):  # noqa: F811
    options = (*TWO_EPOCHS, "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "OPTIM.ACCUMULATE", "2")
    replayed = trained_weights(build(*options, *ON))
    assert recording.replays == 2 * 10
    plain = trained_weights(build(*options, output="plain"))
    assert all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True)), "halves are exact"


@pytest.mark.parametrize("name", STATIC)
def test_static_steps_do_the_same_and_ask_for_no_value(name, build):
    trainer = build(method=name)
    trainer.set_model_mode("train")
    seen = []
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        image = torch.randn(3, 3, 48, 48, generator=generator)
        state = torch.get_rng_state()
        with Operations() as operations:
            trainer.forward_loss(image, torch.tensor([number, 7, 19])).loss.backward()
        assert torch.equal(state, torch.get_rng_state()), "nothing is drawn"
        seen.append(operations.names)
    assert seen[1] == seen[2]  # the first made the class weights
    assert not [name for name in seen[1] if "_local_scalar_dense" in name or "nonzero" in name]


def test_on_a_cpu_the_option_has_no_effect_and_the_log_says_so(build, capsys):
    trainer = build(*ON, "TEST.NO_TEST", "True")
    trainer.train()
    assert capsys.readouterr().out.count("TRAIN.CUDA_GRAPHS has no effect") == 1
    assert trainer.graphed is None


def test_other_methods_run_as_always(build, recording):  # noqa: F811
    trainer = build(*ON, "TEST.NO_TEST", "True", method="LightRA")
    trainer.train()
    assert recording.replays == 0
    assert [n for n in trainer.notes if "steps of LightRA differ from each other" in n]


@pytest.fixture
def episodes(make_config):
    """(options) -> RAdaTTT on ShapesV2 with 4 views, three images at a time."""

    def make(*options, output="run"):
        views = (*views_options("RAdaTTT"), "TRAINER.RAdaTTT.BATCH", "3")
        cfg = make_config("RAdaTTT/ttt", *views, *options, dataset="shapes_v2", output=output)
        trainer = build_trainer(cfg)
        trainer.set_model_mode("eval")
        return trainer

    return make


def shaken(trainer) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {n: v + 0.1 * torch.randn_like(v) for n, v in trainer.model.head.state_dict().items()}


def test_episodes_by_replays_equal_episodes(episodes, recording, monkeypatch):  # noqa: F811
    trainer, plain = episodes(*ON), episodes(output="plain")
    views = views_of(trainer, range(8))  # batches of 3, 3 and 2
    with torch.no_grad():
        assert torch.equal(trainer.model_inference(views), plain.model_inference(views))
        assert recording.replays == 2
        # Another mask: what was recorded for a mask of ones would be wrong.
        monkeypatch.setattr(rada_ttt, "load_mask", lambda head, *_: head.load_state_dict(state))
        state = shaken(trainer)
        for each in (trainer, plain):
            each._load_mask(each.model.head, "a trained run", None, "--model-dir")
        assert torch.equal(trainer.model_inference(views), plain.model_inference(views))
        assert recording.replays == 4


def test_episodes_that_cannot_be_recorded_run_as_always(episodes, monkeypatch):
    monkeypatch.setattr("dassl.engine.graphs.CUDAGraph", Unrecordable)
    trainer, plain = episodes(*ON), episodes(output="plain")
    views = views_of(trainer, range(4))
    with torch.no_grad():
        assert torch.equal(trainer.model_inference(views), plain.model_inference(views))
    assert [note for note in trainer.notes if "TRAIN.CUDA_GRAPHS: not recorded" in note]
