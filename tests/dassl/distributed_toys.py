"""Runs on two processes, for the tests: Gloo, each job leaving what it saw in files."""

import os
import signal
import socket
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, StepOutput, TrainerX, build_trainer
from dassl.engine.distributed import (
    PeerLostError,
    WorldSizeError,
    gather_features,
    process_group,
)
from dassl.utils import readings
from dassl.utils.distributed import barrier, gather_objects, rank
from tests.dassl.toys import toy_cfg
from tests.processes import fork

# Every run: clipped gradients, a batch whose share is uneven where the images are few.
COMMON = {
    "OPTIM__NAME": "adamw",
    "OPTIM__LR": 0.01,
    "OPTIM__WEIGHT_DECAY": 0.1,
    "OPTIM__MAX_GRAD_NORM": 0.5,
    "DATALOADER__TRAIN_X__BATCH_SIZE": 6,
}
RUNS = {
    "plain": {},
    "accumulated": {"OPTIM__ACCUMULATE": 3},
    "short": {
        "DATALOADER__TRAIN_X__BATCH_SIZE": 32,
        "DATASET__NUM_SHOTS": 5,
        "OPTIM__ACCUMULATE": 2,
    },
    "best_val": {"TEST__FINAL_MODEL": "best_val", "TEST__COMPUTE_CMAT": True},
    "contrastive": {"trainer": "ToyContrastive"},
    "contrastive_rows": {"trainer": "ToyContrastiveRows"},
    "contrastive_short": {
        "trainer": "ToyContrastive",
        "DATALOADER__TRAIN_X__BATCH_SIZE": 32,
        "DATASET__NUM_SHOTS": 5,
    },
    "skipping": {"INPUT__ON_BAD_IMAGE": "skip"},
    "late": {"late": True, "OPTIM__ACCUMULATE": 2},  # numbers wait as a GPU's do
}


class ToyTower(nn.Module):
    """A frozen layer, a trained one, and one that only some steps use."""

    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Linear(3 * 8 * 8, 16).requires_grad_(False)
        self.head = nn.Linear(16, num_classes)
        self.sometimes = nn.Linear(16, num_classes)
        self.never = nn.Parameter(torch.ones(3))

    def encode(self, image):
        return torch.tanh(self.features(image.flatten(1)))

    def forward(self, image):
        return self.head(self.encode(image))


@TRAINER_REGISTRY.register()
class ToyShared(TrainerX):
    """Nothing random, parts of the model called, parameters unused in one process only."""

    crash_at = None
    kill_at = None

    def build_model(self):
        return ToyTower(self.num_classes)

    def forward_loss(self, image, label):
        if self.crash_at == (self.epoch, self.batch_idx):
            raise KeyboardInterrupt
        if self.kill_at == (self.epoch, self.batch_idx) and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        hidden = self.model.encode(image)
        logits = self.model.head(hidden)
        loss = F.cross_entropy(logits, label)
        first = (label == 0).float()
        if first.any():
            loss = loss + (first * self.model.sometimes(hidden).square().mean(1)).mean()
        # That the loss does not depend on it must not make DDP wait for its gradient.
        return StepOutput(loss, logits, {"aside": self.model.never.sum(), "ce": loss.detach()})


@TRAINER_REGISTRY.register()
class ToyContrastive(ToyShared):
    """Images against images of the whole batch: each process computes the batch's loss."""

    rows_only = False

    def forward_loss(self, image, label):
        hidden = self.model.encode(image)
        first = F.normalize(self.model.head(hidden), dim=-1)
        second = F.normalize(self.model.sometimes(hidden), dim=-1)
        others = gather_features(second)
        own = first if self.rows_only else gather_features(first)
        target = torch.arange(len(own)) + (rank() * len(own) if self.rows_only else 0)
        return StepOutput(F.cross_entropy(10 * own @ others.T, target), first)


@TRAINER_REGISTRY.register()
class ToyContrastiveRows(ToyContrastive):
    """Each process computes the loss of its own images against all."""

    rows_only = True


def run(root, output, late=False, **changes):
    """Train one toy, whose numbers may wait as a GPU's do; return its trainer."""
    changes = {"trainer": "ToyShared", **COMMON, **changes}
    trainer = build_trainer(toy_cfg(root, output, **changes))
    usual = readings.LATE_DEVICES
    try:
        readings.LATE_DEVICES = {"cpu"} if late else usual
        trainer.train()
    finally:
        readings.LATE_DEVICES = usual
    return trainer


def refused(root, output, **changes):
    """Return the message with which several processes refuse to train."""
    try:
        run(root, output, **changes)
    except WorldSizeError as error:
        return str(error)
    return "it was not refused"


def everything(roots, output):
    """Do all the runs of two processes that end well, and those that are refused at once."""
    root, damaged = roots
    for name, changes in RUNS.items():
        run(damaged if name == "skipping" else root, output / name, **changes)
    ToyShared.crash_at = (1, 1)
    try:
        run(root, output / "two_then_one")
    except KeyboardInterrupt:
        ToyShared.crash_at = None
    resumed = run(root, output / "one_then_two")
    batch = "DATALOADER__TRAIN_X__BATCH_SIZE"
    messages = {
        "batch": refused(root, output / "refused", **{batch: 5}),
        "few": refused(root, output / "refused", DATASET__NUM_SHOTS=1, **{batch: 2}),
        "own": refused(root, output / "refused", trainer="ToyCoOp"),
        "norms": refused(root, output / "refused", trainer="ToyMethod"),
        "unreadable": refused(
            damaged, output / "refused", INPUT__ON_BAD_IMAGE="skip", **{batch: 2}
        ),
    }
    untrained = build_trainer(toy_cfg(root, output / "odd", "ToyCoOp", **{batch: 5}))
    accuracy = untrained.test()
    torch.save(
        {
            "weights": resumed.model.state_dict(),
            "started": resumed.start_epoch,
            "messages": messages,
            "evaluated": accuracy,
        },
        output / f"rank{rank()}.pt",
    )


def killed(roots, output):
    """Lose rank 1 in the second epoch; write what rank 0 says."""
    ToyShared.kill_at = (1, 1)
    run(roots[0], output)


def terminated(roots, output):
    """Let rank 0 be told to stop while it waits for rank 1 in a collective."""
    with open(output / f"stderr{rank()}.txt", "w") as file:
        os.dup2(file.fileno(), 2)
    waiting = gather_objects(os.getpid())[0]
    if rank() == 1:
        time.sleep(1)
        os.kill(waiting, signal.SIGTERM)
    barrier()


def _process(number, size, port, job, roots, output):
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    try:
        with process_group(toy_cfg(roots[0], output, TRAIN__TIMEOUT=60)):
            job(roots, output)
    except PeerLostError as error:
        (output / "lost.txt").write_text(str(error))


def run_processes(job, roots, output, size=2):
    """Run a job on several processes.

    Args:
        job: `everything`, `killed` or `terminated`.
        roots: Data, and data with a damaged image.
        output: Directory.
        size: Number of processes.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [fork(_process, number, size, port, job, roots, output) for number in range(size)]
    for process in processes:
        process.join(timeout=300)
    return [process.exitcode for process in processes]
