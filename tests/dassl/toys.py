"""A tiny dataset and two tiny trainers: one in the style of CoOp's repository, one in ours."""

import os

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, StepOutput, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    Registry,
    listdir_nohidden,
    load_checkpoint,
    mkdir_if_missing,
    read_json,
    write_json,
)

assert Registry  # imported like other people's files do
CLASSES = ("red_square", "green square", "blue square")


def make_images(root, per_class=12):
    """Write noisy squares whose colour is the class; the last third of each class is for tests."""
    rng = np.random.default_rng(0)
    directory = os.path.join(root, "toy", "images")
    split = {"train": [], "val": [], "test": []}
    for label, name in enumerate(CLASSES):
        mkdir_if_missing(os.path.join(directory, name))
        for number in range(per_class):
            pixels = rng.integers(0, 150, (20, 24, 3))
            pixels[..., label] += 60
            path = os.path.join(name, f"{number:02d}.png")
            Image.fromarray(pixels.astype("uint8")).save(os.path.join(directory, path))
            part = "test" if number >= 2 * per_class // 3 else "train" if number % 4 else "val"
            split[part].append([path, label, name])
    write_json(split, os.path.join(root, "toy", "split_toy.json"))


@DATASET_REGISTRY.register()
class ToySquares(DatasetBase):
    """Written as CoOp's dataset files are."""

    dataset_dir = "toy"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        assert len(listdir_nohidden(self.image_dir)) == len(CLASSES)
        split = read_json(os.path.join(self.dataset_dir, "split_toy.json"))
        train, val, test = (self._convert(split[part]) for part in ("train", "val", "test"))
        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            train = self.generate_fewshot_dataset(train, num_shots=num_shots)
            val = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))
        super().__init__(train_x=train, val=val, test=test)

    def _convert(self, items):
        return [
            Datum(impath=os.path.join(self.image_dir, path), label=int(label), classname=name)
            for path, label, name in items
        ]


class ToyModel(nn.Module):
    """A frozen random feature extractor with dropout and a trainable linear head."""

    def __init__(self, num_classes, fail=False):
        super().__init__()
        self.features = nn.Linear(3 * 8 * 8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.features.requires_grad_(False)
        self.norm.requires_grad_(False)
        self.head_norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, num_classes)
        self.cached = 0

    def drop_cache(self):
        self.cached = 0

    def forward(self, image):
        self.cached += 1
        hidden = self.norm(torch.tanh(self.features(image.flatten(1))))
        return self.head(F.dropout(self.head_norm(hidden), 0.2, self.training))


@TRAINER_REGISTRY.register()
class ToyMethod(TrainerX):
    """Our style: one module, one loss. Uses every source of randomness a method may use."""

    crash_at: tuple[int, int] | None = None

    def build_model(self):
        self.generator = self.register_generator("noise")
        self.average = torch.zeros(())
        return ToyModel(self.num_classes)

    def forward_loss(self, image, label):
        if self.crash_at == (self.epoch, self.batch_idx):
            raise KeyboardInterrupt
        image = image + 0.1 * torch.randn(image.shape, generator=self.generator)
        image = image + 0.1 * float(np.random.rand())  # noqa: NPY002 - global on purpose
        logits = self.model(image)
        loss = F.cross_entropy(logits, label)
        self.average = 0.9 * self.average + 0.1 * loss.detach()
        return StepOutput(loss * (1 + 0.1 * self.average), logits, {"average": self.average})

    def extra_state(self):
        return {"average": self.average}

    def load_extra_state(self, state):
        self.average = state["average"]


class ToyPromptLearner(nn.Module):
    def __init__(self, classnames):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(len(classnames), 192))
        self.register_buffer("token_prefix", torch.ones(len(classnames), 1))

    def forward(self):
        return self.ctx * self.token_prefix


class ToyCustomCLIP(nn.Module):
    def __init__(self, classnames):
        super().__init__()
        self.prompt_learner = ToyPromptLearner(classnames)
        self.image_encoder = nn.Linear(192, 192, bias=False)

    def forward(self, image):
        return self.image_encoder(image.flatten(1)) @ self.prompt_learner().t()


@TRAINER_REGISTRY.register()
class ToyCoOp(TrainerX):
    """Dassl's style, as in CoOp's repository: does everything itself."""

    def check_cfg(self, cfg):
        assert cfg.TRAINER.TOYCOOP.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        classnames = self.dm.dataset.classnames
        self.model = ToyCustomCLIP(classnames)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = None

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        loss_summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        model_file = "model-best.pth.tar"
        if epoch is not None:
            model_file = "model.pth.tar-" + str(epoch)
        for name in self.get_model_names():
            model_path = os.path.join(directory, name, model_file)
            if not os.path.exists(model_path):
                raise FileNotFoundError(f'Model not found at "{model_path}"')
            state_dict = load_checkpoint(model_path)["state_dict"]
            del state_dict["token_prefix"]
            self._models[name].load_state_dict(state_dict, strict=False)


def toy_cfg(root, output, trainer="ToyMethod", **changes):
    """Return a configuration of three short epochs; double underscores separate sections."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.NAME = "ToySquares"
    cfg.OUTPUT_DIR = str(output)
    cfg.TRAINER.NAME = trainer
    cfg.TRAINER.TOYCOOP = CN({"PREC": "fp32"})
    cfg.TRAINER.ToyMethod = CN({"PREC": "fp32"})
    cfg.SEED = 1
    cfg.DEVICE = "cpu"
    cfg.VERBOSE = False
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.DATALOADER.TEST.BATCH_SIZE = 5
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.05
    cfg.OPTIM.MAX_EPOCH = 3
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.TRAIN.PRINT_FREQ = 2
    for key, value in changes.items():
        *sections, last = key.split("__")
        node = cfg
        for section in sections:
            node = node[section]
        assert last in node
        node[last] = value
    return cfg
