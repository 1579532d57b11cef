"""Every published dataset under every protocol, from its config file to batches and results."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainers  # noqa: F401 - registers the methods
from dassl.data import DataManager
from dassl.engine import build_trainer, read_result
from datasets.rows import ROWS, row_of
from tests.datasets.trees import TREES, WNIDS, paint
from trainers.base import CLIPTrainer

SMALL = ("INPUT.SIZE", "[32, 32]", "DATALOADER.NUM_WORKERS", "0", "DATASET.ALLOW_OWN_SPLIT", "True",
         "DATALOADER.TRAIN_X.BATCH_SIZE", "2", "DATALOADER.TEST.BATCH_SIZE", "8")  # fmt: skip
SHIFTS = [row.name for row in ROWS if row.shifted]


@pytest.fixture
def tree(request):
    """Class name -> data root with a small tree of it, pictures and all."""

    def make(name: str) -> Path:
        root = request.getfixturevalue(TREES[name])
        # DTD's fixture returns what its archive unpacks to.
        paint(root, frame=2 if name == "ObjectNet" else 0)
        return root

    return make


@pytest.fixture
def make(tree, make_config):
    def config(name: str, method: str, *options: str, output: str = "run") -> Any:
        return make_config(
            method, *SMALL, *options, dataset=row_of(name).config, output=output,
            flags=("--root", str(tree(name))),
        )  # fmt: skip

    return config


def test_every_published_dataset_has_a_tree() -> None:
    assert TREES.keys() == {row.name for row in ROWS if row.published}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(
    ("protocol", "half"),
    [("base2novel", "base"), ("base2novel", "new"), ("few_shot", "all"), ("cross_dataset", "all")],
)
def test_data_of_a_run(name: str, protocol: str, half: str, make) -> None:
    options = ("DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", half)
    cfg = make(name, f"LightRA/{protocol}", *options)
    manager = DataManager(cfg)
    everything = DataManager(make(name, f"LightRA/{protocol}"))
    classes = everything.num_classes
    expected = {"all": classes, "base": (classes + 1) // 2, "new": classes // 2}[half]
    assert manager.num_classes == expected
    names = list(everything.lab2cname.values())
    kept = {"all": names, "base": names[:expected], "new": names[-expected:]}[half]
    assert list(manager.lab2cname.values()) == kept == manager.dataset.classnames

    tested: Counter[int] = Counter()
    for batch in manager.test_loader:
        assert batch["img"].shape[1:] == (3, 32, 32)
        assert torch.isfinite(batch["img"]).all()
        tested.update(batch["label"].tolist())
    assert tested == Counter(d.label for d in manager.dataset.test)
    assert tested.keys() == set(range(expected))
    if name in SHIFTS:
        assert manager.train_loader_x is None
        return
    # Some classes of the trees have no more images than that.
    drawn = Counter(d.label for d in manager.dataset.train_x)
    assert drawn == {label: 2 for label in range(expected)}
    seen = [label for batch in manager.train_loader_x for label in batch["label"].tolist()]
    assert set(seen) <= set(range(expected))
    assert len(seen) == 2 * expected


def run(cfg: Any, source: Any = None) -> dict[str, Any]:
    trainer = build_trainer(cfg)
    if source is None and trainer.train_loader_x is not None:
        trainer.train()
    else:
        if source is not None:
            trainer.load_model(source.OUTPUT_DIR)
        trainer.test()
    return read_result(cfg.OUTPUT_DIR)


def test_domain_generalisation_from_imagenet(make, tiny_checkpoint: str) -> None:
    """Trained on one shot of each class, tested on every shift and on the halves of one."""
    tiny = ("MODEL.BACKBONE.NAME", tiny_checkpoint, "OPTIM.MAX_EPOCH", "1")
    few = ("DATASET.NUM_SHOTS", "1")
    source = make("ImageNet", "LightRA/cross_dataset", *tiny, *few, output="source")
    assert run(source)["num_classes"] == 12
    images = {"ImageNetV2": 24, "ImageNetSketch": 36, "ImageNetA": 8, "ImageNetR": 8,
              "ObjectNet": 15}  # fmt: skip
    for name in SHIFTS:
        cfg = make(name, "LightRA/cross_dataset", *tiny, output=name)
        result = run(cfg, source)
        assert (result["dataset"], result["num_test"]) == (name, images[name])
        assert result["eval_only"]
        assert result["zero_shot_check"]["images"] == images[name]
    for half in ("base", "new"):
        options = ("DATASET.SUBSAMPLE_CLASSES", half)
        cfg = make("ImageNetR", "LightRA/base2novel", *tiny, *options, output=half)
        result = run(cfg, source)
        assert (result["num_classes"], result["num_test"]) == (2, 4)


def test_training_on_a_test_set_is_refused_in_words(make, tiny_checkpoint: str) -> None:
    cfg = make("ImageNetA", "LightRA/few_shot", "MODEL.BACKBONE.NAME", tiny_checkpoint)
    with pytest.raises(ValueError, match="ImageNetA has no training images; use --eval-only"):
        build_trainer(cfg).train()


class Probe(nn.Module):
    """Stands for a trained linear probe: it knows the ImageNet label of every picture it sees."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.known: dict[bytes, int] = {}

    def learn(self, picture: Tensor, label: int) -> None:
        self.known[picture.numpy().tobytes()] = label

    def forward(self, image: Tensor) -> Tensor:
        labels = [self.known[picture.numpy().tobytes()] for picture in image]
        return torch.eye(self.classes)[labels]


class LinearProbe(CLIPTrainer):
    """Its classifier has one output per class of ImageNet, whatever it is tested on."""

    def build_model(self) -> nn.Module:
        return Probe(self.load_backbone(), len(self.dm.dataset.imagenet_names))


@pytest.mark.parametrize(
    ("name", "half"),
    [("ImageNetA", "all"), ("ImageNetR", "new"), ("ImageNetV2", "base"), ("ImageNet", "new"),
     ("ImageNetSketch", "all"), ("ObjectNet", "all"), ("ObjectNet", "new")],
)  # fmt: skip
def test_classifier_over_imagenet_is_tested_on_the_classes_there_are(
    name: str, half: str, make, tiny_checkpoint: str
) -> None:
    cfg = make(
        name, "ZeroshotCLIP/cross_dataset", "DATASET.SUBSAMPLE_CLASSES", half,
        "MODEL.BACKBONE.NAME", tiny_checkpoint,
    )  # fmt: skip
    trainer = LinearProbe(cfg)
    labels = trainer.dm.dataset.imagenet_labels
    assert trainer.model.classes == (1000 if name == "ObjectNet" else len(WNIDS))
    wrong = 0
    for batch in trainer.test_loader:
        for index, (picture, label) in enumerate(zip(batch["img"], batch["label"], strict=True)):
            # The last of the labels that count as right; for one picture of a batch another one's.
            meant = int(label) if index else (int(label) + 1) % len(labels)
            trainer.model.learn(picture, labels[meant][-1])
        wrong += 1
    images = len(trainer.dm.dataset.test)
    assert trainer.test() == pytest.approx(100 * (images - wrong) / images)
    assert read_result(cfg.OUTPUT_DIR)["num_classes"] == len(labels)
