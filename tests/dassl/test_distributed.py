"""Two processes do what one does: same weights, same numbers, one set of files."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

import train
from dassl.config import config_hash
from dassl.data.samplers import RandomSampler, SequentialSampler
from dassl.data.samplers.sharded import ShardedSampler
from dassl.engine import build_trainer, resolve_device, trainable_state
from dassl.engine.distributed import gather_features
from dassl.engine.parallel import split_batch
from dassl.prediction_file import read_predictions
from tests.conftest import REPOSITORY
from tests.dassl.distributed_toys import (
    RUNS,
    ToyShared,
    everything,
    killed,
    run,
    run_processes,
    terminated,
)
from tests.dassl.toys import toy_cfg


def weights(directory):
    files = sorted(Path(directory).glob("Toy*/model.pth.tar-3"))
    assert len(files) == 1
    return torch.load(files[0], weights_only=True)


def result(directory):
    return json.loads((Path(directory) / "result.json").read_text())


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def roots(toy_root, tmp_path_factory):
    """The images, and the same with a training image that is none."""
    damaged = tmp_path_factory.mktemp("damaged")
    shutil.copytree(toy_root, damaged, dirs_exist_ok=True)
    split = json.loads((damaged / "toy" / "split_toy.json").read_text())
    (damaged / "toy" / "images" / split["train"][7][0]).write_bytes(b"no image")
    (damaged / "toy" / "images" / split["test"][3][0]).write_bytes(b"no image")
    return toy_root, damaged


@pytest.fixture(scope="module")
def one(roots, tmp_path_factory):
    """The directory of the runs of a single process."""
    output = tmp_path_factory.mktemp("one")
    for name, changes in RUNS.items():
        run(roots[name == "skipping"], output / name, **changes)
    return output


@pytest.fixture(scope="module")
def two(roots, tmp_path_factory):
    """The directory of the runs of two processes."""
    output = tmp_path_factory.mktemp("two")
    ToyShared.crash_at = (2, 0)
    with pytest.raises(KeyboardInterrupt):
        run(roots[0], output / "one_then_two")
    ToyShared.crash_at = None
    assert run_processes(everything, roots, output) == [0, 0]
    return output


@pytest.mark.parametrize("name", RUNS)
def test_weights_and_metrics_are_those_of_one_process(one, two, name):
    found, expected = weights(two / name), weights(one / name)
    check_same(found["state_dict"], expected["state_dict"])
    first, second = result(two / name), result(one / name)
    assert first["metrics"] == second["metrics"]
    assert first["per_class"] == second["per_class"]
    assert first["num_test"] == second["num_test"] == (11 if name == "skipping" else 12)
    assert first["config_hash"] == second["config_hash"]
    assert first["processes"] == 2
    assert "processes" not in second


@pytest.mark.parametrize("name", RUNS)
def test_predictions_are_those_of_one_process(one, two, name):
    found, expected = read_predictions(two / name), read_predictions(one / name)
    assert len(found) == (11 if name == "skipping" else 12)
    assert [image[:-1] for image in found] == [image[:-1] for image in expected]
    shares = [image.confidence for image in expected]
    assert [image.confidence for image in found] == pytest.approx(shares, abs=2e-4)


def test_accumulation_alone_changes_nothing(one):
    check_same(weights(one / "accumulated")["state_dict"], weights(one / "plain")["state_dict"])


def test_parameters_that_no_process_uses_are_left_alone(two):
    assert torch.equal(weights(two / "plain")["state_dict"]["never"], torch.ones(3))


def test_logged_numbers_are_those_of_the_whole_batch(one, two):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(directory):
        events = EventAccumulator(str(directory / "tensorboard")).Reload()
        return {
            tag: [event.value for event in events.Scalars(f"train/{tag}")]
            for tag in ("loss", "acc", "aside", "ce")
        }

    for name in ("plain", "accumulated", "short", "late"):
        found, expected = scalars(two / name), scalars(one / name)
        for tag in expected:
            assert found[tag] == pytest.approx(expected[tag], rel=1e-5)


def test_only_rank_0_writes(two):
    assert len(list((two / "plain" / "tensorboard").iterdir())) == 1
    assert sorted(path.name for path in (two / "plain").iterdir()) == [
        "ToyShared", "identity.json", "predictions.csv.gz", "result.json", "tensorboard"
    ]  # fmt: skip
    best = torch.load(two / "best_val" / "ToyShared" / "model-best.pth.tar", weights_only=True)
    assert best["val_result"] > 0
    assert torch.load(two / "best_val" / "cmat.pt", weights_only=True).shape == (3, 3)


def test_skipped_images_of_all_processes_are_noted(one, two):
    notes = [note for note in result(two / "skipping")["notes"] if "unreadable" in note]
    assert notes == [note for note in result(one / "skipping")["notes"] if "unreadable" in note]
    assert notes[0].startswith("2 unreadable images")


def test_resuming_on_another_number_of_processes(roots, one, two):
    ranks = [torch.load(two / f"rank{number}.pt", weights_only=True) for number in (0, 1)]
    assert [state["started"] for state in ranks] == [2, 2]
    expected = weights(one / "plain")["state_dict"]
    check_same(weights(two / "one_then_two")["state_dict"], expected)
    check_same(ranks[0]["weights"], ranks[1]["weights"])

    assert (two / "two_then_one" / "resume.pth.tar").is_file()
    trainer = run(roots[0], two / "two_then_one")
    assert trainer.start_epoch == 1
    check_same(weights(two / "two_then_one")["state_dict"], expected)


def test_what_cannot_be_shared_is_refused_on_all_processes(two):
    for number in (0, 1):
        state = torch.load(two / f"rank{number}.pt", weights_only=True)
        said = state["messages"]
        assert "2 processes" in said["batch"]
        assert "BATCH_SIZE 5" in said["batch"]
        assert "nearest number that does is 1, the nearest batch 4 or 6" in said["batch"]
        assert "ToyCoOp does its training steps itself" in said["own"]
        assert "trains batch norms" in said["norms"]
        assert "has run out of images" in said["unreadable"]
        assert said["few"] == "it was not refused"
        assert state["evaluated"] > 0  # a batch that cannot be shared does not matter there


def test_a_killed_process_ends_the_others_and_the_run_resumes(roots, one, tmp_path):
    codes = run_processes(killed, roots, tmp_path / "killed")
    assert codes[1] == -9
    assert codes[0] == 0  # it caught the error that it wrote
    message = (tmp_path / "killed" / "lost.txt").read_text()
    assert message.startswith("process 0 of 2 stops: another process of this run has ended")
    assert "resumes after the last whole epoch" in message
    assert not (tmp_path / "killed" / "result.json").exists()

    trainer = run(roots[0], tmp_path / "killed")
    assert trainer.start_epoch == 1
    check_same(weights(tmp_path / "killed")["state_dict"], weights(one / "plain")["state_dict"])


def test_a_process_told_to_stop_says_so_while_it_waits(roots, tmp_path):
    assert run_processes(terminated, roots, tmp_path / "told")[0] == 128 + signal.SIGTERM
    said = (tmp_path / "told" / "stderr0.txt").read_text()
    assert said.startswith("error: process 0 of 2 was told to stop")
    assert "resumes after the last whole epoch" in said


def test_torchrun(shapes_root, tmp_path):
    def words(output):
        return [
            "--root", shapes_root, "--output-dir", str(tmp_path / output), "--seed", "3",
            "--device", "cpu",
            "--dataset-config-file", str(REPOSITORY / "configs/datasets/shapes.yaml"),
            "--config-file", str(REPOSITORY / "configs/trainers/RAda/few_shot.yaml"),
            "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "20",
        ]  # fmt: skip

    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"
    command = [sys.executable, *launcher, str(REPOSITORY / "train.py"), *words("two")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    train.main(words("one"))
    assert found.stdout.count("Result written to") == 1
    check_same(
        *(
            torch.load(tmp_path / output / "RAda" / "model.pth.tar-1", weights_only=True)[
                "state_dict"
            ]
            for output in ("two", "one")
        )
    )
    assert result(tmp_path / "two")["metrics"] == result(tmp_path / "one")["metrics"]
    log = (tmp_path / "two" / "log.txt").read_text()
    assert log.count("Evaluate on the *test* set") == 1


def test_activations_made_again_give_the_same_weights(make_config, monkeypatch):
    calls = []
    checkpoint = open_clip.transformer.checkpoint

    def counted(*args, **kwargs):
        calls.append(args)
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(open_clip.transformer, "checkpoint", counted)
    states = []
    for number, switch in enumerate(("False", "True")):
        cfg = make_config(
            "LightRA/few_shot", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1",
            "TEST.NO_TEST", "True", "TRAIN.GRAD_CHECKPOINTING", switch, output=f"run{number}",
        )  # fmt: skip
        trainer = build_trainer(cfg)
        trainer.train()
        states.append(trainable_state(trainer.model))
        assert bool(calls) == (switch == "True")
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value)


def test_activations_of_other_models_cannot_be_made_again(toy_root, tmp_path):
    cfg = toy_cfg(toy_root, tmp_path, "ToyShared", TRAIN__GRAD_CHECKPOINTING=True)
    with pytest.raises(ValueError, match="TRAIN.GRAD_CHECKPOINTING is True, but the model has no"):
        build_trainer(cfg)


# ---------------------------------------------------------------------- parts, without processes


@pytest.mark.parametrize(("images", "batch", "size"), [(24, 8, 4), (26, 8, 2), (5, 8, 3)])
def test_shares_of_training_batches_make_up_the_batches(images, batch, size):
    whole = RandomSampler(range(images), seed=3)
    expected = [(int(index), index.seed) for index in whole]
    kept = images - images % batch if images >= batch else images
    shards = []
    for rank in range(size):
        shard = ShardedSampler(RandomSampler(range(images), seed=3), batch, rank, size, divide=True)
        shards.append([(int(index), index.seed) for index in shard])
        assert len(shard) == len(shards[-1])
    found = []
    for start in range(0, kept, batch):
        step = min(batch, kept - start)
        for rank, shard in enumerate(shards):
            taken = step * (rank + 1) // size - step * rank // size
            found += shard[:taken]
            del shard[:taken]
    assert found == expected[:kept]
    assert not any(shards)


@pytest.mark.parametrize(("images", "size"), [(12, 2), (12, 4), (3, 2), (15, 2)])
def test_test_images_are_shared_without_padding(images, size):
    batches = []
    for rank in range(size):
        shard = ShardedSampler(
            SequentialSampler(range(images), seed=0), 5, rank, size, divide=False
        )
        rows = [int(index) for index in shard]
        assert len(shard) == len(rows)
        batches += [rows[start : start + 5] for start in range(0, len(rows), 5)]
    assert sorted(batches) == [
        list(range(start, min(start + 5, images))) for start in range(0, images, 5)
    ]


def test_a_shard_follows_the_epoch():
    shard = ShardedSampler(RandomSampler(range(20), seed=1), 4, 1, 2, divide=True)
    shard.set_epoch(5)
    whole = RandomSampler(range(20), seed=1)
    whole.set_epoch(5)
    expected = [index for position, index in enumerate(whole) if position % 4 >= 2]
    assert list(shard) == expected


def test_parts_of_a_batch():
    parts = split_batch(7, 3)
    assert [part.rows for part in parts] == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert [part.weight for part in parts] == [2 / 7, 2 / 7, 3 / 7]
    assert [part.last for part in parts] == [False, False, True]
    assert len(split_batch(2, 5)) == 2
    assert split_batch(7, 1)[0].weight == 1
    with pytest.raises(ValueError, match="OPTIM.ACCUMULATE must be at least 1, got 0"):
        split_batch(7, 0)


def test_gathering_in_one_process_is_the_identity():
    features = torch.ones(2, 3, requires_grad=True)
    assert gather_features(features) is features


def test_devices_of_several_processes(toy_root, tmp_path, monkeypatch):
    for key, value in (("RANK", 1), ("WORLD_SIZE", 2), ("LOCAL_RANK", 1), ("MASTER_ADDR", "x"),
                       ("MASTER_PORT", 1)):  # fmt: skip
        monkeypatch.setenv(key, str(value))
    assert resolve_device(toy_cfg(toy_root, tmp_path, DEVICE="cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="each of 2 processes .* needs a device of its own"):
        resolve_device(toy_cfg(toy_root, tmp_path, DEVICE="cuda:0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(toy_cfg(toy_root, tmp_path, DEVICE="auto")) == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="sees 1 CUDA devices; start at most as many"):
        resolve_device(toy_cfg(toy_root, tmp_path, DEVICE="cuda"))


def test_what_cannot_change_a_result_is_not_hashed(toy_root, tmp_path):
    plain = config_hash(toy_cfg(toy_root, tmp_path))
    assert config_hash(toy_cfg(toy_root, tmp_path, TRAIN__TIMEOUT=5)) == plain
    assert config_hash(toy_cfg(toy_root, tmp_path, TRAIN__GRAD_CHECKPOINTING=True)) == plain
    assert config_hash(toy_cfg(toy_root, tmp_path, OPTIM__ACCUMULATE=2)) != plain
