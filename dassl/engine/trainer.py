"""Builds a run from its configuration: device, data, model, optimiser; trains and tests."""

from __future__ import annotations

import datetime
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.data.epoch_samplers import mix_seed
from dassl.engine.base import TrainerBase
from dassl.engine.checkpoint import trainable_state
from dassl.engine.device import resolve_device
from dassl.engine.distributed import (
    broadcast_object,
    check_world,
    is_main,
    main_first,
    synchronize_statistics,
    world_size,
)
from dassl.engine.models import Names
from dassl.engine.precision import autocast_context
from dassl.engine.resume import resolve_seed
from dassl.engine.run_folder import check_room
from dassl.engine.run_result import RunResult
from dassl.engine.simple_net import SimpleNet
from dassl.engine.step import freeze_statistics, keep_no_activations
from dassl.evaluation import build_evaluator
from dassl.evaluation.record import numbers
from dassl.modeling import build_backbone, build_head
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    check_availability,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    tolist_if_not,
)

__all__ = [
    "AverageMeter",
    "DataManager",
    "MetricMeter",
    "SimpleNet",
    "SimpleTrainer",
    "SummaryWriter",  # noqa: F822
    "TrainerBase",
    "TrainerX",  # noqa: F822
    "TrainerXU",  # noqa: F822
    "build_backbone",
    "build_head",
    "count_num_param",
    "load_checkpoint",
    "mkdir_if_missing",
    "resume_from_checkpoint",
    "save_checkpoint",
    "tolist_if_not",
]

# What Dassl's module of this name holds besides, looked up late: they build on this one, or take
# time to import.
_ELSEWHERE = {
    "SummaryWriter": "torch.utils.tensorboard",
    "TrainerX": "dassl.engine.trainer_x",
    "TrainerXU": "dassl.engine.trainer_xu",
}


def __getattr__(name: str) -> Any:
    """Return one of Dassl's names."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE[name]), name)


class SimpleTrainer(RunResult):
    """Builds data, model and evaluator from a configuration; trains, tests, saves, resumes.

    A method overrides `build_model` to return one module; the engine then moves it to the device
    and builds its optimiser, schedule and scaler. Or, as in Dassl, ``build_model`` sets everything
    up itself, calls `register_model` and returns nothing; the engine then leaves precision and
    loss scaling to the trainer.

    Attributes:
        cfg: Configuration.
        seed: The run's seed (drawn, if ``cfg.SEED`` is negative).
        device: Device of the run.
        dm: Data set and loaders.
        model: The method's module.
        scaler: Gradient scaler (amp on CUDA), or None.
        evaluator: Evaluator.
        best_result: Best result on the validation images so far.
        model_name: Name the returned module is registered under, by default the class's name.
        config_section: Section under ``cfg.TRAINER`` with PREC, by default the trainer's name.
    """

    model_name: str | None = None
    model: Any

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything.

        Args:
            cfg: Configuration.

        Raises:
            ValueError: Something in the configuration cannot be used.
        """
        super().__init__()
        check_availability(cfg.TEST.FINAL_MODEL, ["last_step", "best_val"])
        check_availability(cfg.TEST.SPLIT, ["test", "val"])
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = resolve_device(cfg)
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.seed = broadcast_object(resolve_seed(cfg))
        set_random_seed(self.seed)  # the few-shot draw and all initial weights follow from it
        with self.reading():
            self._build(cfg)
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def _build(self, cfg: CfgNode) -> None:
        """Build data and model."""
        with main_first():
            self.build_data_loader()
        if cfg.TEST.FINAL_MODEL == "best_val" and self.val_loader is None:
            raise ValueError(
                f"TEST.FINAL_MODEL is best_val, but {cfg.DATASET.NAME} has no validation images, "
                "and choosing on test images would make the result worthless; set last_step"
            )
        with main_first():
            built: Any = self.build_model()
        if isinstance(built, nn.Module):
            self._adopt(built)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the values the method depends on; called before anything is built.

        Args:
            cfg: Configuration.
        """

    def build_data_loader(self) -> None:
        """Build data set and loaders; override to use other transforms."""
        self.dm = DataManager(self.cfg)
        self.train_loader_x: Any = self.dm.train_loader_x
        self.train_loader_u: Any = self.dm.train_loader_u
        self.val_loader: Any = self.dm.val_loader
        self.test_loader: Any = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> nn.Module | None:
        """Return the method's module, its trainable parameters marked by ``requires_grad``.

        By default the `SimpleNet` that ``cfg.MODEL`` describes, as in Dassl.
        """
        self.model_name = self.model_name or "model"
        return SimpleNet(self.cfg, self.cfg.MODEL, self.num_classes)

    def param_groups(self, module: nn.Module) -> Any:
        """Return parameter groups with their own learning rates; None for one group.

        Args:
            module: What `build_model` returned.
        """
        return None

    def _adopt(self, module: nn.Module) -> None:
        """Take over the module that `build_model` returned."""
        cfg = self.cfg
        self._owns_model = True
        self.model = synchronize_statistics(module, self.device).to(self.device)
        if cfg.TRAIN.GRAD_CHECKPOINTING:
            keep_no_activations(self.model)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        optim: Any = None
        sched: Any = None
        if any(p.requires_grad for p in self.model.parameters()):
            groups = self.param_groups(self.model)
            optim = build_optimizer(self.model, cfg.OPTIM, groups, trainable_only=True)
            # A set for tests only has no steps; what was trained elsewhere can still be loaded.
            steps = len(self.train_loader_x) if self.train_loader_x is not None else 0
            sched = build_lr_scheduler(optim, cfg.OPTIM, steps)
        if self.precision == "amp":
            self.scaler = torch.amp.GradScaler(self.device.type)
        self.register_model(self.model_name or type(self).__name__, self.model, optim, sched)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model's forward passes run."""
        return autocast_context(self.precision, self.device)

    def register_generator(self, name: str) -> torch.Generator:
        """Return a CPU generator seeded from the run's seed and a name, saved for resuming.

        Args:
            name: Unique in the trainer.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._generators:
            raise ValueError(f"a generator is already registered as {name!r}")
        generator = torch.Generator()
        generator.manual_seed(mix_seed(self.seed, "generator", name))
        self._generators[name] = generator
        return generator

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch registered models to training or evaluation.

        Args:
            mode: train, or test or eval.
            names: Which models; None for all.
        """
        super().set_model_mode(mode, names)
        if mode == "train" and self._owns_model:
            freeze_statistics(self.model)

    def model_backward(self, loss: Tensor) -> None:
        """Check the loss and backpropagate, scaled under amp.

        Args:
            loss: Loss.
        """
        self.detect_anomaly(loss)
        scaled = self.scaler.scale(loss) if self._owns_model and self.scaler else loss
        scaled.backward()

    def model_update(self, names: Names = None) -> None:
        """Clip the gradients' norm if asked to and step the optimisers.

        Args:
            names: Of which models; None for all.
        """
        scaler = self.scaler if self._owns_model else None
        limit = self.cfg.OPTIM.MAX_GRAD_NORM if self._owns_model else 0.0
        for name in self.get_model_names(names):
            optim = self._optims[name]
            if optim is None:
                continue
            if limit > 0:
                if scaler:
                    scaler.unscale_(optim)
                params = [p for group in optim.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(params, limit)
            if scaler:
                scaler.step(optim)
            else:
                optim.step()
        if scaler:
            scaler.update()

    def train(self) -> None:  # type: ignore[override]
        """Train, or go on where a killed run stopped, then test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume if there is something to resume from."""
        if self._owns_model and not trainable_state(self.model):
            print("No trainable parameter: going straight to the test")
            self.start_epoch = self.max_epoch
        elif self.max_epoch > 0 and self.train_loader_x is None:
            raise ValueError(
                f"{self.cfg.DATASET.NAME} has no training images; use --eval-only with --model-dir"
            )
        split = self.cfg.TEST.SPLIT
        own_test = type(self).test is not SimpleTrainer.test
        if not (self.cfg.TEST.NO_TEST or own_test) and self._loader(split) is None:
            raise ValueError(
                f"{self.cfg.DATASET.NAME} has no images in the split {split!r} (TEST.SPLIT) to "
                "test on after training; set TEST.NO_TEST True to train only"
            )
        if is_main():
            check_room(self.output_dir, self._models)
            self.init_writer(str(Path(self.output_dir) / "tensorboard"))
        self.time_start = time.time()
        self.resume()
        if self.start_epoch < self.max_epoch:
            check_world(self.cfg, self)

    def after_epoch(self) -> None:
        """Evaluate on validation images and save, as the configuration says."""
        cfg = self.cfg
        done = self.epoch + 1
        if not cfg.TEST.NO_TEST and cfg.TEST.FINAL_MODEL == "best_val":
            result = self._score(self.test(split="val"))
            if result > self.best_result:
                self.best_result = result
                self.save_model(
                    self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar"
                )
        every = cfg.TRAIN.CHECKPOINT_FREQ
        if done == self.max_epoch or (every > 0 and done % every == 0):
            self.save_model(self.epoch, self.output_dir)

    def _score(self, returned: Any) -> float:
        """Return the number that a test on validation images has given.

        Args:
            returned: By `test`; not a number if a trainer's own test returns something else.

        Raises:
            ValueError: It has given none.
        """
        found, _ = numbers(returned)
        if not found and "val" in self._tests:
            found = self._tests["val"].results
        if not found:
            raise ValueError(
                f"TEST.FINAL_MODEL is best_val, but {type(self).__name__}.test() has neither used "
                "an evaluator nor returned a number; set last_step"
            )
        return next(iter(found.values()))

    def after_train(self) -> None:
        """Test the final model and write the result."""
        print("Finish training")
        self.durations["train"] = time.time() - self.time_start
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
            self.finish_train()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split; outside of `train`, also write the result of the run.

        Args:
            split: test or val; by default TEST.SPLIT.

        Returns:
            The evaluator's main result, the accuracy.

        Raises:
            ValueError: There are no images in the split, or the evaluator gave no number.
        """
        split = split or self.cfg.TEST.SPLIT
        loader = self._loader(split)
        if loader is None:
            raise ValueError(f"{self.cfg.DATASET.NAME} has no images in the split {split!r}")
        self.set_model_mode("eval")
        self.evaluator.reset()
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader, file=sys.stderr, disable=None if is_main() else True):
            image, label = self.parse_batch_test(batch)
            with self.autocast() if self._owns_model else nullcontext():
                output = self.model_inference(image)
            self.evaluator.process(output, label)
        if world_size() > 1:
            self.evaluator.gather()
            self._gathered = True
        results, _ = numbers(self.evaluator.evaluate())
        if not results:
            raise ValueError(f"{type(self.evaluator).__name__}.evaluate() returned no number")
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def _loader(self, split: str) -> Any:
        return {"val": self.val_loader, "test": self.test_loader}.get(split)

    def model_inference(self, input: Tensor) -> Any:
        """Return the model's logits, (B, K).

        Args:
            input: Images.
        """
        return self.model(input)

    def parse_batch_test(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return images and labels of a test batch, on the device.

        Args:
            batch: Batch.
        """
        return (
            batch["img"].to(self.device, non_blocking=True),
            batch["label"].to(self.device, non_blocking=True),
        )
