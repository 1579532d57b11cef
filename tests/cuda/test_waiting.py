"""Between two lines of the log no step makes the host wait for the GPU."""

from contextlib import contextmanager

import pytest
import torch

from dassl.engine import build_trainer
from scripts.benchmarks.tools import begin_training
from tests.runs import SMALL, in_precision

pytestmark = pytest.mark.cuda

WARM_UP, STEPS = 3, 4
METHODS = ["LightRA", "RAda", "CoOp", "MaPLe", "PromptSRC", "CLIPAdapter", "FT", "RAdaFT"]


@contextmanager
def no_waiting(device):
    """Let every call that waits for the GPU be an error inside the block; nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pinned(value):
    on_host = isinstance(value, torch.Tensor) and value.device.type == "cpu"
    return value.pin_memory() if on_host else value


@pytest.mark.parametrize("precision", ["fp32", "amp"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_do_not_wait(name, precision, runs, device):
    options = (*SMALL, *in_precision(name, precision), "TRAIN.PRINT_FREQ", "1000")
    trainer = build_trainer(runs.of_method(name, *options, first=SMALL))
    batch = next(iter(trainer.train_loader_x))
    if device.type == "cuda":  # as a loader that pins its memory gives it
        batch = {key: pinned(value) for key, value in batch.items()}
    begin_training(trainer)
    for _ in range(WARM_UP):  # makes the optimiser's state and what is kept between steps
        trainer.forward_backward(batch)
    with no_waiting(device):
        found = [trainer.forward_backward(batch)["loss"] for _ in range(STEPS)]
    losses = [float(loss) for loss in found]
    assert all(0 <= loss < 100 for loss in losses)
    assert len(set(losses)) > 1, "the steps change something"


@pytest.mark.parametrize("cached", [False, True], ids=["pictures", "features"])
def test_evaluation_does_not_wait_for_a_batch(cached, runs, device, tmp_path):
    cache = ("FEATURE_CACHE.ENABLED", str(cached), "FEATURE_CACHE.DIR", str(tmp_path))
    trainer = build_trainer(runs.of_method("RAda", *SMALL, *cache))
    trainer.set_model_mode("eval")
    batch = next(iter(trainer.test_loader))
    image, label = trainer.parse_batch_test(batch)
    trainer.evaluator.reset()
    kept = trainer.record.keep_predictions(trainer.test_loader)
    with torch.no_grad():
        trainer.evaluator.process(trainer.model_inference(image), label)  # makes what is kept
        with no_waiting(device):
            for _ in range(STEPS):
                output = trainer.model_inference(image)
                trainer.evaluator.process(output, label)
                kept.add(batch, output)
    assert trainer.evaluator.evaluate()["accuracy"] >= 0
    assert sum(row["total"] for row in trainer.evaluator.per_class()) == (STEPS + 1) * len(label)
    assert len(kept.images("", {})) == STEPS * len(label)
