"""The stand-in for a backbone: given text features in a bank, and no towers."""

import math

import pytest
import torch
from torch.nn import functional as F

import clip
from clip import FeatureBackbone, TextBank

ROWS = [
    torch.randn(count, 8, generator=torch.Generator().manual_seed(count)) for count in (1, 3, 2)
]


@pytest.fixture
def backbone() -> FeatureBackbone:
    return FeatureBackbone(ROWS, math.log(50), "text.npz")


def test_a_bank_of_given_features_is_as_one_of_texts(backbone):
    """Means over unit-norm features, as `TextBank` makes them of what an encoder returns."""
    bank = backbone.text_bank([["whatever"], ["prompts"], ["there are"]]).eval()
    assert isinstance(bank, TextBank)
    assert (bank.num_classes, len(bank), bank.counts.tolist()) == (3, 6, [1, 3, 2])
    expected = torch.stack([F.normalize(own.double(), dim=-1).mean(0) for own in ROWS])
    assert torch.allclose(bank.class_features(backbone).double(), expected, atol=1e-7)
    assert torch.equal(bank.encode_all(backbone, unit=False), torch.cat(ROWS))
    assert torch.equal(bank.encode(backbone, torch.tensor([5, 0]), unit=False),
                       torch.stack([ROWS[2][1], ROWS[0][0]]))  # fmt: skip
    assert bank.state_dict() == {}


def test_scale_and_width(backbone):
    assert backbone.embed_dim == 8
    assert backbone.logit_scale.exp().item() == pytest.approx(50)
    assert backbone.logit_bias is None
    assert backbone.dtype == torch.float32


def test_classes_with_the_same_features_are_twins():
    rows = [ROWS[0], ROWS[1], ROWS[0].clone(), ROWS[1][:1]]
    bank = FeatureBackbone(rows, 0.0, "text.npz").text_bank([["a"], ["b"], ["c"], ["d"]])
    assert bank.twins() == [[0, 2]]


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda b: b.encode_image(torch.zeros(1, 3, 2, 2)), "an image encoder"),
        (lambda b: b.encode_text(torch.zeros(1, 2)), "a text encoder"),
        (lambda b: b.tokenize(["a"]), "a text encoder"),
        (lambda b: b.end_of_text(), "a text encoder"),
        (lambda b: b.vision_transformer, "an image encoder"),
        (lambda b: b.text_transformer, "a text encoder"),
        (lambda b: clip.attach_context(b, n_ctx=2), "a text encoder"),
        (lambda b: b.text_bank([["a"], ["b"]]), "text features of 2 classes; 3 are given"),
    ],
)
def test_what_needs_a_tower_is_refused_in_a_line(backbone, use, what):
    message = rf"needs {what}, but the run has features only \(text\.npz\); leave DATASET\.FEATURES"
    with pytest.raises(ValueError, match=message) as caught:
        use(backbone)
    assert "\n" not in str(caught.value)
