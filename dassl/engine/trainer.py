"""Dassl's SimpleTrainer: a run from its configuration to its result."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.config.inputs import Recording, recording
from dassl.data import DataManager
from dassl.data.samplers.epochs import mix_seed
from dassl.engine.base import Names, TrainerBase
from dassl.engine.build import adopt, check_final_model
from dassl.engine.checkpoint import trainable_state
from dassl.engine.device import (
    autocast_context,
    prepare_device,
    resolve_precision,
    stated_precision,
)
from dassl.engine.distributed import check_world, own_steps
from dassl.engine.names import NAMES, look_up
from dassl.engine.overrides import wrap_overrides
from dassl.engine.parallel import ParallelStep
from dassl.engine.previous_runs import resume
from dassl.engine.record import Notes, RunRecord
from dassl.engine.resume import collect_state, resolve_seed, write_resume
from dassl.engine.run_folder import check_room
from dassl.engine.run_identity import RunIdentity, check_recipe
from dassl.engine.simple_net import SimpleNet
from dassl.engine.step import freeze_statistics, step_optimizers
from dassl.evaluation import build_evaluator
from dassl.evaluation.record import numbers
from dassl.tracking.tracking import tracking_of
from dassl.utils import check_availability, set_random_seed
from dassl.utils.distributed import broadcast_object, is_main, main_first, world_size

__all__ = ["SimpleTrainer", *NAMES]  # noqa: PLE0604 - strings

__getattr__ = look_up


@wrap_overrides
class SimpleTrainer(TrainerBase):
    """Builds data, model and evaluator from a configuration; trains, tests, saves, resumes.

    A method overrides `build_model` to return one module; the engine then moves it to the device
    and builds its optimiser, schedule and scaler. Or, as in Dassl, ``build_model`` sets everything
    up itself, calls `register_model` and returns nothing; the engine then leaves precision and loss
    scaling to the trainer.

    Attributes:
        cfg: Configuration.
        seed: The run's seed (drawn, if ``cfg.SEED`` is negative).
        device: Device of the run.
        dm: Dataset and loaders.
        model: The method's module.
        scaler: Gradient scaler (amp on CUDA), or None.
        evaluator: Evaluator.
        notes: Remarks that end up in the result; ``notes.add`` prints one, too.
        identity: What the run is made from, to compare with other runs.
        record: What its tests have found; writes ``result.json``.
        parallel: The step of several processes, or None.
        best_result: Best result on the validation images so far.
        any_config: Load weights although they were trained with other options.
        model_name: Name of the returned module, by default the class's name.
        config_section: Section under ``cfg.TRAINER`` with PREC, by default the trainer's name.
    """

    model_name: str | None = None
    config_section: str | None = None
    any_config: bool = False
    model: Any
    scaler: Any = None
    parallel: ParallelStep | None = None
    _owns_model = False  # whether `build_model` has returned it
    _gathered = False  # whether the last test has merged what all processes have seen

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make sure that the run's result is written, whatever a trainer overrides."""
        super().__init_subclass__(**kwargs)
        wrap_overrides(cls)

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything."""
        super().__init__()
        started = time.time()  # the durations include the building
        check_availability(cfg.TEST.FINAL_MODEL, ["last_step", "best_val"])
        check_availability(cfg.TEST.SPLIT, ["test", "val"])
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = prepare_device(cfg)
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.best_result = -float("inf")
        self.notes = Notes()
        self._generators: dict[str, torch.Generator] = {}
        # A drawn seed has to be the same on all processes.
        self.seed = broadcast_object(resolve_seed(cfg))
        self.tracking = tracking_of(cfg, self.seed, self.config_section)
        set_random_seed(self.seed)  # the few-shot draw and all initial weights follow from it
        # Files that are read from here on are what the result depends on.
        with recording(read := Recording()):
            with main_first():  # rank 0 may download or draw what the others then find
                self.build_data_loader()
            self.identity = RunIdentity(cfg, self.dm, read, self.seed, self.device)
            has_val = self.val_loader is not None
            self.record = RunRecord(
                self.identity, self.notes, self._models, self._own_entries, has_val, started
            )
            self.record.tracking = self.tracking
            self._build_model()
        self.identity.seal(
            self.precision if self._owns_model else stated_precision(cfg, self.config_section)
        )
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    # ------------------------------------------------------------------ building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the values the method depends on; called before anything is built."""

    def build_data_loader(self) -> None:
        """Build dataset and loaders; override to use other transforms."""
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
        """Return parameter groups of the module with rates of their own; None for one group."""
        return None

    def _build_model(self) -> None:
        """Build the model; if `build_model` returns it, also its optimiser and so on."""
        check_final_model(self.cfg, self.val_loader)
        with main_first():
            built: Any = self.build_model()
        if isinstance(built, nn.Module):
            self._owns_model = True
            adopt(self, built)

    @cached_property
    def precision(self) -> str:
        """What the run computes in: fp32, fp16, bf16 or amp, after falling back if need be."""
        return resolve_precision(self.cfg, self.config_section, self.device, self.notes)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model's forward passes run."""
        return autocast_context(self.precision, self.device)

    def register_generator(self, name: str) -> torch.Generator:
        """Return a CPU generator seeded from the run's seed and a new name, saved for resuming.

        Raises:
            ValueError: The name is taken.
        """
        if name in self._generators:
            raise ValueError(f"a generator is already registered as {name!r}")
        seed = mix_seed(self.seed, "generator", name)
        self._generators[name] = torch.Generator().manual_seed(seed)
        return self._generators[name]

    # ------------------------------------------------------------------ a step

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Switch models to training or evaluation; frozen batch norms keep their statistics."""
        super().set_model_mode(mode, names)
        if mode == "train" and self._owns_model:
            freeze_statistics(self.model)

    def model_backward(self, loss: Tensor) -> None:
        """Check the loss and backpropagate, scaled under amp."""
        self.detect_anomaly(loss)
        scaled = self.scaler.scale(loss) if self._owns_model and self.scaler else loss
        scaled.backward()

    def model_update(self, names: Names = None) -> None:
        """Clip the gradients' norm if asked to and step the optimisers."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        # A trainer that registers its models itself also scales and clips itself.
        own = (self.cfg.OPTIM.MAX_GRAD_NORM, self.scaler) if self._owns_model else ()
        step_optimizers(optims, *own)

    # ------------------------------------------------------------------ a run

    def train(self) -> None:  # type: ignore[override]
        """Train, or resume where a killed run stopped, then test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Check that there are images to train and test on; resume a killed run."""
        if self._owns_model and not trainable_state(self.model):
            print("No trainable parameter: going straight to the test")
            self.start_epoch = self.max_epoch
        elif self.max_epoch > 0 and self.train_loader_x is None:
            raise ValueError(
                f"{self.cfg.DATASET.NAME} has no training images; use --eval-only with --model-dir"
            )
        if not self.cfg.TEST.NO_TEST and type(self).test is SimpleTrainer.test:
            more = " (TEST.SPLIT) to test on after training; set TEST.NO_TEST True to train only"
            self._loader(self.cfg.TEST.SPLIT, more)
        if is_main():
            check_room(self.output_dir, self._models)
            self.init_writer(str(Path(self.output_dir) / "tensorboard"))
        self.time_start = time.time()
        resume(self)  # may move `start_epoch` and `time_start`
        if self.start_epoch < self.max_epoch:
            loaders = {"TRAIN_X": self.train_loader_x, "TRAIN_U": self.train_loader_u}
            check_world(self.cfg, loaders, self.model if self._owns_model else None, self.device)

    def begin_epoch(self) -> None:
        """Make the order of images depend only on the epoch, so that resuming repeats it."""
        for loader in (self.train_loader_x, self.train_loader_u):
            sampler: Any = getattr(loader, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.epoch)

    def after_epoch(self) -> None:
        """Evaluate on validation images and save, as the configuration says."""
        cfg = self.cfg
        done = self.epoch + 1
        if not cfg.TEST.NO_TEST and cfg.TEST.FINAL_MODEL == "best_val":
            result = self.record.score(f"{type(self).__name__}.test()", self.test(split="val"))
            if result > self.best_result:
                self.best_result = result
                self.save_model(
                    self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar"
                )
        every = cfg.TRAIN.CHECKPOINT_FREQ
        if done == self.max_epoch or (every > 0 and done % every == 0):
            self.save_model(self.epoch, self.output_dir)

    def end_epoch(self) -> None:
        """Replace the resume file, every RESUME_FREQ epochs and after the last."""
        if world_size() > 1 and not getattr(self.parallel, "used", False):
            raise own_steps(self.cfg)
        every = self.cfg.TRAIN.RESUME_FREQ
        done = self.epoch + 1
        if every > 0 and (done % every == 0 or done == self.max_epoch):
            write_resume(self.output_dir, collect_state(self, done))

    def after_train(self) -> None:
        """Test the final model and write the result."""
        print("Finish training")
        self.record.durations["train"] = time.time() - self.time_start
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
            self.record.finish_train(type(self).__name__)
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    # ------------------------------------------------------------------ tests

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split; return the main result, which outside of `train` is the run's.

        Raises:
            ValueError: There are no images in the split, or the evaluator gave no number.
        """
        split = split or self.cfg.TEST.SPLIT
        loader = self._loader(split)
        self.set_model_mode("eval")
        self.evaluator.reset()
        predictions = self.record.keep_predictions(loader)
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader, file=sys.stderr, disable=None if is_main() else True):
            image, label = self.parse_batch_test(batch)
            with self.autocast() if self._owns_model else nullcontext():
                output = self.model_inference(image)
            self.evaluator.process(output, label)
            predictions.add(batch, output)
        if world_size() > 1:
            self.evaluator.gather()
            self._gathered = True
        results, _ = numbers(self.evaluator.evaluate())
        if not results:
            raise ValueError(f"{type(self.evaluator).__name__}.evaluate() returned no number")
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def _loader(self, split: str, more: str = "") -> Any:
        """Return a split's loader, or raise an error that ends with ``more``."""
        loader = {"val": self.val_loader, "test": self.test_loader}.get(split)
        if loader is None:
            raise ValueError(f"{self.cfg.DATASET.NAME} has no images in the split {split!r}{more}")
        return loader

    def model_inference(self, input: Tensor) -> Any:
        """Return the model's logits, (B, K), on images, (B, 3, height, width)."""
        return self.model(input)

    def parse_batch_test(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return images and labels of a test batch, on the device."""
        image, label = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))
        return image, label

    # ------------------------------------------------------------------ what outlives the process

    def extra_state(self) -> dict[str, Any]:
        """Return further state of the training, such as an average of weights; none here."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned."""

    def extra_result(self) -> dict[str, Any]:
        """Return further entries of ``result.json`` (plain data); none here."""
        return {}

    def _own_entries(self) -> dict[str, Any]:
        return {**({"any_config": True} if self.any_config else {}), **self.extra_result()}

    def checkpoint_meta(self) -> dict[str, Any]:
        """Return what a checkpoint says about its run."""
        return self.identity.checkpoint_meta()

    def check_origin(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Refuse weights of another recipe, see `dassl.engine.run_identity.check_recipe`."""
        check_recipe(path, meta, self.checkpoint_meta(), self.any_config, self.notes)
