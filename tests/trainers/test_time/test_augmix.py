"""AugMix (arXiv:1912.02781) as TPT has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.data.wrapper import preserved_randomness, seed_randomness
from trainers.test_time import augmix
from trainers.test_time.augmix import OPERATIONS, AugMix


@pytest.fixture
def picture():
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(values)


def augmented(picture, seed=1, **options):
    with preserved_randomness():
        seed_randomness(seed)
        return np.asarray(AugMix(**options)(picture))


def test_operations_are_the_nine():
    assert set(OPERATIONS) == {"autocontrast", "equalize", "posterize", "rotate", "solarize",
                               "shear_x", "shear_y", "translate_x", "translate_y"}  # fmt: skip


def test_mixture_is_the_formula_on_normalised_tensors(picture, monkeypatch):
    """Operations that add 10, 20 ... make every chain's result known."""
    plus = [lambda image, level, n=n: image.point(lambda v: min(255, v + 10 * n)) for n in range(9)]
    monkeypatch.setattr(augmix, "OPERATIONS", dict(zip(OPERATIONS, plus, strict=True)))
    found = augmented(picture, seed=5)
    state = np.random.RandomState(5)  # noqa: NPY002
    weights, keep = state.dirichlet([1.0] * 3), state.beta(1.0, 1.0)
    x = torch.from_numpy(np.array(picture)).double()

    def normalised(values):
        return (values / 255 - 0.45) / 0.27

    mixed = torch.zeros_like(x)
    for weight in weights:
        chain = x.clone()
        for _ in range(state.randint(1, 4)):
            chain = (chain + 10 * state.randint(9)).clamp(max=255)
            state.uniform(0.1, 1.0)
        mixed += weight * normalised(chain)
    mixed = keep * normalised(x) + (1 - keep) * mixed
    bytes_ = (mixed * 0.27 + 0.45) * 255
    assert np.abs(found - bytes_.numpy()).max() <= 0.5 + 1e-6
    assert (found != np.asarray(picture)).any()


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [
        ("posterize", 1.0, lambda v: v & 0b11110000),
        ("posterize", 2.5, lambda v: v & 0b11100000),
        ("solarize", 1.0, lambda v: np.where(v < 231, v, 255 - v)),
        ("solarize", 5.0, lambda v: np.where(v < 128, v, 255 - v)),
    ],
)
def test_levels(picture, name, level, expected):
    found = np.asarray(OPERATIONS[name](picture, level))
    assert np.array_equal(found, expected(np.asarray(picture)))


def test_translation_is_a_third_of_the_side_at_level_ten(picture):
    with preserved_randomness():
        seed_randomness(0)
        right = np.asarray(OPERATIONS["translate_x"](picture, 10))
        down = np.asarray(OPERATIONS["translate_y"](picture, 10))
    values = np.asarray(picture)
    assert any(np.array_equal(right[:, a], values[:, b]) for a, b in (
        (slice(10, 30), slice(0, 20)), (slice(0, 20), slice(10, 30))))  # fmt: skip
    assert any(np.array_equal(down[a], values[b]) for a, b in (
        (slice(6, 20), slice(0, 14)), (slice(0, 14), slice(6, 20))))  # fmt: skip


def test_seed_decides(picture):
    assert np.array_equal(augmented(picture, 1), augmented(picture, 1))
    assert not np.array_equal(augmented(picture, 1), augmented(picture, 2))
    assert augmented(picture).shape == (20, 30, 3)
