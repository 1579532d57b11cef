"""What a GPU computes is read later and together: same numbers, and nothing bad is saved."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl.engine import StepOutput, build_trainer
from dassl.engine.resume import collect_state
from dassl.utils import readings
from dassl.utils.readings import Readings, reads_late
from tests.dassl.toys import ToyMethod


def test_only_gpus_are_read_late():
    assert [reads_late(torch.device(name)) for name in ("cuda:1", "cpu", "mps")] == [1, 0, 0]


def test_numbers_come_in_order_and_as_they_were_when_kept():
    kept, found = Readings(), []
    number = torch.tensor(1.5)
    kept.keep([number, torch.tensor([3])], found.append)
    number += 1  # as the next step does, where a graph of operations writes into the same memory
    kept.keep([number, torch.tensor(0.1, dtype=torch.float64)], found.append)
    assert not found
    kept.read()
    kept.read()
    assert found == [[1.5, 3.0], [2.5, 0.1]]


def test_they_are_read_when_too_many_wait(monkeypatch):
    monkeypatch.setattr(readings, "MOST_KEPT", 3)
    kept, found = Readings(), []
    for number in range(4):
        kept.keep([torch.tensor(number)], found.append)
    assert found == [[0.0], [1.0], [2.0]]


def logged(text):
    """The log's lines of batches, without the times in them."""
    lines = [line for line in text.splitlines() if line.startswith("epoch [")]
    return [re.sub(r"(time|data|eta) \S+( \(\S+\))?", "", line) for line in lines]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("frequency", [1, 4, 0])
def test_reading_late_changes_no_digit(make_cfg, monkeypatch, capsys, parts, frequency):
    changes = {"TRAIN__PRINT_FREQ": frequency, "OPTIM__ACCUMULATE": parts}
    seen = []
    for late in (False, True):
        scalars = {}
        monkeypatch.setattr(readings, "LATE_DEVICES", {"cpu"} if late else {"cuda"})
        monkeypatch.setattr(
            ToyMethod,
            "write_scalar",
            lambda _, tag, value, step, to=scalars: to.update({(tag, step): value}),
        )
        trainer = build_trainer(make_cfg(f"late {late}", **changes))
        trainer.train()
        seen.append((logged(capsys.readouterr().out), scalars, trainer.model.state_dict()))
    (lines, scalars, state), (late_lines, late_scalars, late_state) = seen
    assert late_lines == lines
    assert len(lines) == 3 * (4 // frequency if frequency else 0)
    assert late_scalars == scalars
    assert all(torch.equal(late_state[name], value) for name, value in state.items())


def test_they_are_read_once_for_many_batches(make_cfg, late_reading, monkeypatch):
    reads = []
    monkeypatch.setattr(Readings, "read", lambda self: reads.append(len(self._kept)))
    trainer = build_trainer(make_cfg(OPTIM__MAX_EPOCH=1, DATALOADER__TRAIN_X__BATCH_SIZE=3))
    trainer.cfg.TEST.NO_TEST = True
    trainer.train()
    # Six batches, a line for every other one: each batch keeps its loss and its numbers.
    assert reads[:4] == [4, 8, 12, 12]


def test_the_time_of_a_batch_is_the_mean_between_two_readings(make_cfg, late_reading, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("dassl.engine.progress.time.time", lambda: float(next(clock)))
    from dassl.engine.progress import EpochProgress

    trainer = build_trainer(make_cfg())
    trainer.epoch, trainer.num_batches = 0, 8
    progress = EpochProgress(trainer)
    for trainer.batch_idx in range(4):
        progress.loaded()
        progress.trained({"loss": torch.tensor(1.0)})
    assert progress.batch_time.count == 4
    assert progress.batch_time.avg == pytest.approx(progress.batch_time.val)


class LateDiverging(ToyMethod):
    """Its loss is NaN in the third batch of the second epoch, and finite again behind it."""

    def forward_loss(self, image, label):
        out = super().forward_loss(image, label)
        bad = (self.epoch, self.batch_idx) == (1, 2)
        return StepOutput(out.loss * float("nan"), out.logits) if bad else out


@pytest.mark.parametrize("frequency", [1, 2, 0])
def test_a_bad_loss_stops_the_run_before_anything_is_saved(
    make_cfg, late_reading, monkeypatch, tmp_path, frequency
):
    averaged = []
    monkeypatch.setattr(
        LateDiverging,
        "after_epoch",
        lambda self: (averaged.append(self.epoch), ToyMethod.after_epoch(self)),
        raising=False,
    )
    changes = {"TRAIN__CHECKPOINT_FREQ": 1, "TRAIN__PRINT_FREQ": frequency}
    trainer = LateDiverging(make_cfg(**changes))
    with pytest.raises(
        FloatingPointError,
        match=r"NaN \(nan\) in epoch 2, batch 3, at learning rate 5\.0000e-02; nothing was saved",
    ):
        trainer.train()
    assert averaged == [0]
    folder = tmp_path / "run"
    assert sorted(path.name for path in (folder / "LateDiverging").iterdir()) == [
        "checkpoint",
        "model.pth.tar-1",
    ]
    resumed = torch.load(folder / "resume.pth.tar", weights_only=True)
    assert resumed["epoch"] == 1
    trainer.readings.read()  # said once


@pytest.mark.parametrize("what", ["save", "test", "resume file", "dassl's evaluation"])
def test_losses_are_looked_at_before_anything_is_made_of_the_weights(make_cfg, late_reading, what):
    trainer = build_trainer(make_cfg())
    trainer.time_start = 0.0
    trainer.detect_anomaly(torch.tensor(1.0))
    trainer.detect_anomaly(torch.tensor([1.0, float("inf")]))
    with pytest.raises(FloatingPointError, match=r"\(inf\) in epoch 1, batch 0"):
        {
            "save": lambda: trainer.save_model(0, trainer.output_dir),
            "test": trainer.test,
            "resume file": lambda: collect_state(trainer, 1),
            "dassl's evaluation": lambda: trainer.test(split="val"),
        }[what]()
    assert not list(Path(trainer.output_dir).rglob("*.pth*"))


class Scaled(ToyMethod):
    """Under a gradient scaler: one loss has no finite gradient, another one is infinite."""

    bad_loss = False

    def build_model(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        return super().build_model()

    def forward_loss(self, image, label):
        loss = nn.functional.cross_entropy(logits := self.model(image), label)
        if self.batch_idx == 1:
            weight = self.model.head.weight
            loss = loss + (weight - weight.detach()).sum().abs().sqrt()  # 0, of infinite slope
        if self.bad_loss and self.batch_idx == 3:
            loss = loss * float("inf")
        return StepOutput(loss, logits)


def test_a_step_that_the_scaler_skips_is_no_bad_loss(make_cfg, late_reading):
    trainer = Scaled(make_cfg(OPTIM__MAX_EPOCH=1))
    trainer.train()
    assert trainer.scaler.get_scale() == 1.0
    assert all(torch.isfinite(value).all() for value in trainer.model.parameters())


def test_nor_does_it_hide_one(make_cfg, late_reading, monkeypatch):
    monkeypatch.setattr(Scaled, "bad_loss", True)
    with pytest.raises(FloatingPointError, match="epoch 1, batch 4"):
        Scaled(make_cfg(OPTIM__MAX_EPOCH=1)).train()
