"""Out of memory: one line with what was asked for, what is free, and which key to change."""

import pytest
import torch

import train
from clip.backbones import Backbone
from dassl.errors import TEST_MEMORY, TRAINING_MEMORY, ending, less_memory
from tests.conftest import REPOSITORY
from trainers.rada import RAda
from trainers.test_time.episodes import Episodes
from trainers.test_time.rada_ttt import RAdaTTT

SAID = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of "
    "which 12.06 MiB is free. Including non-PyTorch memory, this process has 79.08 GiB memory in "
    "use. Of the allocated memory 70 GiB is allocated by PyTorch, and 2 GiB is reserved."
)
LINE = (
    "error: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 "
    "GiB of which 12.06 MiB is free; "
)


def full(*_, **__):
    raise torch.OutOfMemoryError(SAID)


def run(shapes_root, output, method, *options):
    """What a run of train.py ends with."""
    words = ["--root", shapes_root, "--output-dir", str(output), "--seed", "1", "--device", "cpu"]
    words += ["--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml")]
    words += ["--config-file", str(REPOSITORY / f"configs/trainers/{method}.yaml"), *options]
    words += ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    with pytest.raises(SystemExit) as end:
        train.main(words)
    return end.value.code


@pytest.mark.parametrize(
    ("method", "owner", "name", "options", "keys"),
    [
        ("RAda/few_shot", RAda, "forward_loss", (),
         ["TRAIN_X.BATCH_SIZE", "OPTIM.ACCUMULATE", "GRAD_CHECKPOINTING", "TRAIN.KEPT_TOKENS"]),
        ("RAda/few_shot", RAda, "model_inference", (), ["DATALOADER.TEST.BATCH_SIZE"]),
        ("RAda/few_shot", Backbone, "encode_image", ("--feature-cache",),
         ["DATALOADER.TEST.BATCH_SIZE"]),
        ("RAdaTTT/ttt", Episodes, "encode_images", (), ["TRAINER.<name>.ENCODER_BATCH"]),
        ("RAdaTTT/ttt", RAdaTTT, "predict_episodes", (), ["TRAINER.<name>.BATCH"]),
    ],
    ids=["training", "evaluation", "feature cache", "views", "episodes"],
)  # fmt: skip
def test_each_part_of_a_run_names_its_keys(
    method, owner, name, options, keys, shapes_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(owner, name, full)
    cache = ("FEATURE_CACHE.DIR", str(tmp_path / "features"))
    said = run(shapes_root, tmp_path / "run", method, *options, *cache)
    assert said.startswith(LINE)
    remedy = said.removeprefix(LINE)
    assert "\n" not in remedy
    assert all(key in remedy for key in keys)
    others = {"TRAIN_X", "DATALOADER.TEST", "ENCODER_BATCH"}
    assert sum(other in remedy for other in others) == (name != "predict_episodes")
    assert not (tmp_path / "run" / "result.json").exists()
    # What training had finished before is kept; a step or a cache entry that failed leaves nothing.
    saved = list((tmp_path / "run").glob("*/model*")) + list((tmp_path / "run").glob("resume*"))
    assert bool(saved) == (name == "model_inference")
    features = tmp_path / "features"
    assert not features.exists() or not [f for f in features.rglob("*") if f.suffix == ".npy"]


def test_the_innermost_part_counts():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        with less_memory(TRAINING_MEMORY), less_memory(TEST_MEMORY):
            full()
    assert ending(caught.value).line.endswith(TEST_MEMORY)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_what_libraries_say_counts_too(said):
    @less_memory(TEST_MEMORY)
    def work():
        raise RuntimeError(said)

    with pytest.raises(RuntimeError) as caught:
        work()
    assert ending(caught.value).line == f"{said}; {TEST_MEMORY}"


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError) as caught, less_memory(TEST_MEMORY):
        raise RuntimeError("shapes cannot be multiplied")
    assert ending(caught.value) is None
    with pytest.raises(ValueError, match="label 7") as caught, less_memory(TEST_MEMORY):
        raise ValueError("label 7 of 3")
    assert ending(caught.value).line == "label 7 of 3"
