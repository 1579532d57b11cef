"""Backbones, heads and the plain network of Dassl's trainers; distances; label operations."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from dassl.engine import (
    TRAINER_REGISTRY,
    SimpleNet,
    TrainerX,
    TrainerXU,
    build_trainer,
    read_result,
)
from dassl.metrics import compute_distance_matrix, cosine_distance, euclidean_squared_distance
from dassl.modeling import BACKBONE_REGISTRY, Backbone, build_backbone, build_head
from dassl.modeling.ops import (
    ReverseGrad,
    create_onehot,
    ema_model_update,
    linear_rampup,
    mixup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)


@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):
    """Written as backbones for Dassl are."""

    def __init__(self, pretrained=True, **kwargs):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 6)
        self._out_features = 6

    def forward(self, x):
        return torch.tanh(self.layer(x.flatten(1)))


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 512), ("resnet50", 2048), ("mobilenet_v2", 1280)]
)
def test_torchvisions_models_without_their_classifier(name, width, capsys):
    torch.manual_seed(0)
    backbone = build_backbone(name, pretrained=False).eval()
    assert capsys.readouterr().out == f"Backbone: {name}\n"
    assert backbone.out_features == width
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name, weights=None).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = backbone(images)
        last = whole.fc if hasattr(whole, "fc") else whole.classifier
        torch.testing.assert_close(last(features), whole(images))
    assert features.shape == (2, width)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'resnet19' is not available.*Did you mean 'resnet1"):
        build_backbone("resnet19")
    with pytest.raises(ValueError, match="'mpl' is not available.*Did you mean 'mlp'"):
        build_head("mpl")
    with pytest.raises(ValueError, match=r"MODEL\.HEAD\.HIDDEN_LAYERS is empty"):
        build_head("mlp", in_features=4)
    with pytest.raises(ValueError, match="'gelu' is not available"):
        build_head("mlp", in_features=4, hidden_layers=[3], activation="gelu")


def test_mlp():
    head = build_head("mlp", verbose=False, in_features=4, hidden_layers=[5, 3], dropout=0.5)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(layer) for layer in head] == kinds * 2
    assert head.out_features == 3
    plain = build_head(
        "mlp", verbose=False, in_features=4, hidden_layers=7, activation="leaky_relu", bn=False
    )
    assert [type(layer) for layer in plain] == [nn.Linear, nn.LeakyReLU]
    x = torch.rand(2, 4)
    torch.testing.assert_close(plain(x), F.leaky_relu(F.linear(x, plain[0].weight, plain[0].bias)))


def test_simple_net(make_cfg):
    cfg = make_cfg(MODEL__BACKBONE__NAME="TinyBackbone")
    images = torch.rand(4, 3, 8, 8)
    net = SimpleNet(cfg, cfg.MODEL, 3)
    logits, features = net(images, return_feature=True)
    assert (net.fdim, logits.shape, features.shape) == (6, (4, 3), (4, 6))
    torch.testing.assert_close(features, net.backbone(images))
    torch.testing.assert_close(logits, net.classifier(features))
    assert torch.equal(net(images), logits)
    cfg.MODEL.HEAD.NAME = "mlp"
    cfg.MODEL.HEAD.HIDDEN_LAYERS = (5,)
    net = SimpleNet(cfg, cfg.MODEL, 0)
    assert (net.fdim, net.classifier, net(images).shape) == (5, None, (4, 5))


def cross_entropy_step(self, image, label):
    output = self.model(image)
    self.model_backward_and_update(F.cross_entropy(output, label))
    if self.batch_idx + 1 == self.num_batches:
        self.update_lr()
    return {"loss": F.cross_entropy(output, label).item()}


def test_the_default_model_is_the_simple_net(make_cfg):
    @TRAINER_REGISTRY.register()
    class ToyVanilla(TrainerX):
        def forward_backward(self, batch):
            image, label, _ = self.parse_batch_train(batch)
            return cross_entropy_step(self, image, label)

    cfg = make_cfg(
        trainer="ToyVanilla",
        MODEL__BACKBONE__NAME="TinyBackbone",
        OPTIM__MAX_EPOCH=6,
        OPTIM__LR=0.5,
    )
    trainer = build_trainer(cfg)
    assert isinstance(trainer.model, SimpleNet)
    assert list(trainer._models) == ["model"]
    trainer.train()
    assert read_result(cfg.OUTPUT_DIR)["metrics"]["accuracy"] > 60
    with pytest.raises(ValueError, match="'resnet' is not available"):
        build_trainer(make_cfg(trainer="ToyVanilla", MODEL__BACKBONE__NAME="resnet"))


@TRAINER_REGISTRY.register()
class ToySemi(TrainerXU):
    """Trains on labelled images, looks at unlabelled ones."""

    def build_data_loader(self):
        super().build_data_loader()
        self.train_loader_u = self.dm.val_loader  # 6 images in batches of 5

    def forward_backward(self, batch_x, batch_u):
        image, label, unlabelled = self.parse_batch_train(batch_x, batch_u)
        assert image.shape[1:] == unlabelled.shape[1:] == (3, 8, 8)
        assert len(label) == len(image) == 4
        self.seen = [*getattr(self, "seen", []), len(unlabelled)]
        return cross_entropy_step(self, image, label)


@pytest.mark.parametrize(
    ("count", "unlabelled"),
    [("train_x", [5, 1, 5, 1]), ("train_u", [5, 1]), ("smaller_one", [5, 1])],
)
def test_pairs_of_labelled_and_unlabelled_batches(make_cfg, count, unlabelled):
    cfg = make_cfg(
        trainer="ToySemi",
        MODEL__BACKBONE__NAME="TinyBackbone",
        TRAIN__COUNT_ITER=count,
        OPTIM__MAX_EPOCH=1,
    )
    trainer = build_trainer(cfg)
    trainer.train()
    assert trainer.seen == unlabelled
    assert trainer.num_batches == len(unlabelled)
    assert read_result(cfg.OUTPUT_DIR)["metrics"]["accuracy"] >= 0


def test_without_unlabelled_images_it_says_so(make_cfg):
    cfg = make_cfg(trainer="ToySemi", MODEL__BACKBONE__NAME="TinyBackbone")
    trainer = build_trainer(cfg)
    trainer.train_loader_u = None
    with pytest.raises(
        ValueError, match=r"ToySemi trains on unlabelled images too, but ToySquares"
    ):
        trainer.train()
    cfg.TRAIN.COUNT_ITER = "train_y"
    with pytest.raises(ValueError, match="Did you mean 'train_x'|Did you mean 'train_u'"):
        build_trainer(cfg).train()


def test_distances():
    a, b = (
        torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
        torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]]),
    )
    assert euclidean_squared_distance(a, b).tolist() == [[25, 16, 18], [4, 13, 1]]
    expected = torch.tensor([[1.0, 0.4, 0.2], [1.0, 1.0, 0.0]])
    torch.testing.assert_close(cosine_distance(a, b), expected)
    torch.testing.assert_close(compute_distance_matrix(a, b, "cosine"), expected)
    assert torch.equal(compute_distance_matrix(a, b), euclidean_squared_distance(a, b))
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        compute_distance_matrix(a, b, "cosin")
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2,\)"):
        compute_distance_matrix(a, a[0])


def test_label_operations():
    assert create_onehot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    torch.testing.assert_close(
        sharpen_prob(torch.tensor([[0.25, 0.75]])), torch.tensor([[0.1, 0.9]])
    )
    data, label = torch.arange(5), torch.arange(5) + 10
    assert [t.tolist() for t in reverse_index(data, label)] == [
        [4, 3, 2, 1, 0],
        [14, 13, 12, 11, 10],
    ]
    shuffled = shuffle_index(data, label)
    assert torch.equal(shuffled[0] + 10, shuffled[1])
    assert sorted(shuffled[0].tolist()) == [0, 1, 2, 3, 4]
    assert [linear_rampup(n, 4) for n in (0, 1, 9)] == [0, 0.25, 1]
    assert [sigmoid_rampup(n, 4) for n in (0, 2, 9)] == [math.exp(-5), math.exp(-1.25), 1.0]
    assert sigmoid_rampup(3, 0) == linear_rampup(3, 0) == 1


def test_mixup_and_averages():
    x1, x2, y1, y2 = (
        torch.full((8, *s), v)
        for s, v in (((3, 2, 2), 1.0), ((3, 2, 2), 0.0), ((4,), 1.0), ((4,), 0.0))
    )
    torch.manual_seed(0)
    x, y = mixup(x1, x2, y1, y2, 0.7)
    assert torch.equal(x[:, 0, 0, 0], y[:, 0])  # the same share
    assert 0 < y.min() < 0.5 < y.max() < 1
    _, y = mixup(x1, x2, y1, y2, 0.7, preserve_order=True)
    assert y.min() >= 0.5
    current, average = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(current.weight, 2.0)
    nn.init.constant_(average.weight, 1.0)
    ema_model_update(current, average, 0.9)
    assert average.weight.item() == pytest.approx(1.1)


def test_reversed_gradients():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    out = ReverseGrad()(x, 0.5)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert x.grad.tolist() == [-1.0, 2.0]
    with pytest.raises(ValueError, match="not be negative, got -1"):
        ReverseGrad()(x, -1)
