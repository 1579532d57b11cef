"""Augmented features that methods are fitted to."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainers.base.given_features import GivenFeatureLoader
from trainers.frozen.features import SplitFeatures


@pytest.mark.parametrize(("shape", "views"), [((4, 3), 1), ((4, 2, 3), 2)])
def test_given_views_are_not_repeated(shape, views):
    """Ten are asked for: repeated rows would change GDA's covariance."""
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    items = [SimpleNamespace(row=i, label=i % 2, domain=0, impath="") for i in range(4)]
    plain = SimpleNamespace(dataset=SimpleNamespace(data_source=items), batch_sampler=[])
    loader = GivenFeatureLoader(plain, "train", rows, torch.device("cpu"))
    trainer = SimpleNamespace(train_loader_x=loader, device=torch.device("cpu"))
    found, label = SplitFeatures(trainer).views(10)
    expected = torch.from_numpy(rows).reshape(4, views, 3).movedim(1, 0)  # (V, N, D)
    assert torch.equal(found, expected)
    assert label.tolist() == [0, 1, 0, 1]
