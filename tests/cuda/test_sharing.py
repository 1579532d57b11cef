"""What crosses devices, batches or processes stays the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from dassl.engine import build_trainer, read_result
from dassl.engine.parallel import ParallelStep
from tests.conftest import REPOSITORY
from tests.cuda.agreement import TOLERANCE, difference
from tests.runs import SMALL, logits_of

pytestmark = pytest.mark.cuda


def test_features_cached_on_the_gpu_serve_on_the_cpu(runs, device, tmp_path):
    """Each device has entries of its own; what they hold is the same, and so is what it gives."""
    options = (*SMALL, "FEATURE_CACHE.ENABLED", "True", "FEATURE_CACHE.DIR", str(tmp_path))
    here = build_trainer(runs.of_method("RAda", *options))
    here.train()
    there = build_trainer(runs.of_method("RAda", *options, device="cpu"))
    there.load_model(here.output_dir)
    there.test()
    made, own = (trainer.test_loader.features(0)[0] for trainer in (here, there))
    assert difference(made, own) <= TOLERANCE["fp32"]
    expected = logits_of(there, own)
    assert difference(logits_of(there, made.cpu()), expected) <= TOLERANCE["fp32"]
    assert difference(logits_of(here, made), expected) <= TOLERANCE["fp32"]
    accuracies = [read_result(t.output_dir)["metrics"]["accuracy"] for t in (here, there)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=2)  # one of 100 pictures may tip over


@pytest.mark.parametrize("name", ["RAdaTTT", "TPT", "PromptAlign"])
def test_images_adapted_side_by_side_are_those_adapted_one_by_one(name, runs):
    trainer = build_trainer(runs.of_method(name, *SMALL, f"TRAINER.{name}.BATCH", "4"))
    trainer.load_model("")  # computes what episodes need once
    views = next(iter(trainer.test_loader))["img"]  # (4, V, 3, 48, 48)
    together = logits_of(trainer, views)
    apart = torch.cat([logits_of(trainer, one[None]) for one in views])
    assert difference(together, apart) <= TOLERANCE["fp32"]
    assert together.argmax(-1).tolist() == apart.argmax(-1).tolist()


@pytest.fixture
def group_of_one(device, tmp_path):
    """A process group of this process alone: NCCL on a GPU, Gloo on a CPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["MaPLe", "RAda"])
def test_gradients_through_ddp_are_those_without(name, runs, device, group_of_one):
    trainer = build_trainer(runs.of_method(name, *SMALL))
    trainer.set_model_mode("train")
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained:  # off the start, where some gradients are zero
            parameter += 0.02 * torch.randn_like(parameter)
    image = torch.randn(4, 3, 48, 48).to(device)
    label = torch.tensor([0, 1, 2, 3], device=device)
    where = torch.device("cuda", device.index or 0) if device.type == "cuda" else device
    parallel = ParallelStep(trainer.model, trainer.forward_loss, where)
    found = []
    for step in (trainer.forward_loss, parallel):
        trainer.model.zero_grad()
        step(image, label).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in trained]))
    assert found[0].abs().max() > 0
    assert difference(found[1], found[0]) <= TOLERANCE["fp32"]


def train_words(runs, output, device):
    return [
        *("--root", runs.root, "--output-dir", str(output), "--seed", "3", "--device", device),
        *("--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml")),
        *("--config-file", str(REPOSITORY / "configs/trainers/RAda/few_shot.yaml")),
        *("DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"),
        *("DATALOADER.TRAIN_X.BATCH_SIZE", "20"),
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_torchrun_gives_the_weights_of_one_process(processes, runs, device, tmp_path):
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} GPUs")
    program = str(REPOSITORY / "train.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    commands = {
        "launched": [*launcher, "--nproc_per_node", str(processes), program],
        "alone": [sys.executable, program],
    }
    states = []
    for name, command in commands.items():
        words = train_words(runs, tmp_path / name, device.type)
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        path = Path(tmp_path, name, "RAda", "model.pth.tar-1")
        states.append(torch.load(path, weights_only=True)["state_dict"])
    assert states[0].keys() == states[1].keys()
    for key, value in states[1].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5)
