"""What the frozen-feature methods compute, against plain formulas in double precision."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.frozen.cache import CacheHead
from trainers.frozen.clap import AdaptivePenalty
from trainers.frozen.cross_entropy import FullBatch, told_right
from trainers.frozen.cross_modal_steps import (
    Setting,
    draw_batches,
    grouped,
    rate_at,
    weights_by_step,
)
from trainers.frozen.gaussian import class_means, classifier, novel_classifier, precision_matrix
from trainers.frozen.gda import DiscriminantHead
from trainers.frozen.linear_probe import regress
from trainers.frozen.lp_plus_plus import BlendedHead, Descent
from trainers.frozen.residual import ResidualHead
from trainers.frozen.search import best_of
from trainers.frozen.threads import each_in_a_thread

N, K, D = 40, 4, 6
SCALE = torch.tensor(100.0, dtype=torch.double)


@pytest.fixture
def rows():
    """Unit features (N, D), of K classes with 8, 9, 11 and 12 of them, and labels (N,)."""
    generator = torch.Generator().manual_seed(3)
    label = torch.tensor([0] * 8 + [1] * 9 + [2] * 11 + [3] * 12)
    centres = torch.randn(K, D, generator=generator, dtype=torch.double)
    x = centres[label] + torch.randn(N, D, generator=generator, dtype=torch.double)
    order = torch.randperm(N, generator=generator)
    return F.normalize(x, dim=-1)[order], label[order]


@pytest.fixture
def text():
    """Unit text features, (K, D)."""
    generator = torch.Generator().manual_seed(5)
    return F.normalize(torch.randn(K, D, generator=generator, dtype=torch.double), dim=-1)


# ---------------------------------------------------------------------- GDA


def test_gda_is_the_papers_classifier(rows):
    x, label = rows
    data, labels = x.numpy(), label.numpy()
    mu = np.stack([data[labels == k].mean(0) for k in range(K)])
    covariance = np.cov((data - mu[labels]).T)  # unbiased
    shrunk = (N - 1) * covariance + np.trace(covariance) * np.eye(D)
    p = D * np.linalg.pinv(shrunk)
    w, b = mu @ p, [math.log(1 / K) - mu[k] @ p @ mu[k] / 2 for k in range(K)]

    means, counts = class_means(x, label, K)
    weight, bias = classifier(means, precision_matrix(x, label, means, shrinks=True))

    assert counts.tolist() == [8, 9, 11, 12]
    np.testing.assert_allclose(weight.numpy(), w, rtol=1e-9)
    np.testing.assert_allclose(bias.numpy(), b, rtol=1e-9)


def test_gda_of_base_classes_inverts_the_mean_of_their_covariances(rows):
    x, label = rows
    own = [np.cov(x[label == k].numpy().T) for k in range(K)]
    means, _ = class_means(x, label, K)
    found = precision_matrix(x, label, means, shrinks=False)
    np.testing.assert_allclose(found.numpy(), np.linalg.inv(np.mean(own, 0)), rtol=1e-8)


def test_a_direction_without_rows_is_not_blown_up(rows):
    """The pseudo-inverse cuts where single precision ends: what is left there is rounding."""
    x, label = rows
    flat = x.clone()
    flat[:, -1] = 1e-9 * torch.randn(N, dtype=torch.double)
    means, _ = class_means(flat, label, K)
    assert precision_matrix(flat, label, means, shrinks=False)[-1].abs().max() < 1


def test_gda_of_novel_classes_has_its_own_rule():
    generator = torch.Generator().manual_seed(7)
    x = F.normalize(torch.randn(90, D, generator=generator, dtype=torch.double), dim=-1)
    t = F.normalize(torch.randn(3, D, generator=generator, dtype=torch.double), dim=-1)
    mus, ps = [], []
    for own in t.numpy():
        near = x.numpy()[np.argsort(-(x.numpy() @ own))[:64]]
        mus.append(np.concatenate([near, np.tile(own, (16, 1))]).mean(0))
        c = (near - own).T @ (near - own) / 63
        ps.append(D * np.linalg.pinv(63 * c + np.trace(c) * np.eye(D)))
    mu, p = np.stack(mus), np.mean(ps, 0)

    weight, bias = novel_classifier(x, t)

    np.testing.assert_allclose(weight.numpy(), mu @ p, rtol=1e-9)
    expected = math.log(1 / 3) - np.einsum("kd,de,ke->k", mu, p, mu) / 2
    np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-9)


def test_gda_logits_of_trained_and_of_novel_classes(rows, text):
    x, _ = rows
    head = DiscriminantHead(K, D, 0.5).double()
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    zero_shot = 100 * x @ text.T
    expected = zero_shot + 0.5 * (x @ head.weight.T + head.bias)
    torch.testing.assert_close(head(x, text, SCALE).logits, expected)

    torch.testing.assert_close(head.novel(x, text, SCALE), zero_shot)  # nothing was kept
    head.rows = x.clone()
    weight, bias = novel_classifier(x, text)
    torch.testing.assert_close(head.novel(x, text, SCALE), zero_shot + 0.5 * (x @ weight.T + bias))


# ---------------------------------------------------------------------- Tip-Adapter


class CacheOptions:
    ALPHA, BETA = 2.0, 5.5


def test_the_caches_logits(rows, text):
    x, label = rows
    head = CacheHead(label, K, D, CacheOptions).double()
    head.keys.data = torch.randn(N, D, dtype=torch.double)
    f = x[:5]
    expected = 100 * f @ text.T
    for b, n in itertools.product(range(5), range(N)):
        closeness = math.exp(-5.5 * (1 - float(f[b] @ head.keys.data[n])))
        expected[b, label[n]] += 2.0 * closeness
    torch.testing.assert_close(head(f, text, SCALE).logits, expected)
    # Some of the classes, in another order.
    head.take_classes([3, 1], K)
    picked = expected - 100 * f @ text.T
    torch.testing.assert_close(
        head(f, text[[3, 1]], SCALE).logits, 100 * f @ text[[3, 1]].T + picked[:, [3, 1]]
    )


def test_of_equal_candidates_the_first_is_chosen():
    label = torch.tensor([0, 1])
    right, half = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    tables = {"half": half, "right": right, "also right": 2 * right}
    assert best_of(tables, tables.__getitem__, label) == "right"


# ---------------------------------------------------------------------- residuals


def test_residuals_and_their_penalty(rows, text):
    x, label = rows
    h = 7 * text  # not normalised: the residual is measured by its length
    head = AdaptivePenalty(K, D, 0.5).double()
    torch.nn.init.normal_(head.residual)
    head.strength.copy_(torch.rand(K))
    w = h + 0.5 * head.residual
    out = head(x, h, SCALE)
    torch.testing.assert_close(out.logits, 100 * x @ (w / w.norm(dim=1, keepdim=True)).T)
    per_class = [head.strength[k] * (head.residual[k] ** 2).sum() for k in range(K)]
    torch.testing.assert_close(out.penalty, sum(per_class) / K)
    assert ResidualHead(K, D)(x.float(), h.float(), SCALE.float()).penalty == 0


def test_the_residuals_gradient_is_autograds(rows, text):
    x, label = rows
    h = 7 * text
    head = AdaptivePenalty(K, D, 0.5).double()
    head.strength.fill_(0.1)
    torch.nn.init.normal_(head.residual)
    head.residual.data[1] = -2 * h[1]  # a row without a length
    out = head(x, h, SCALE)
    (F.cross_entropy(out.logits, label) + out.penalty).backward()
    residual = head.residual.detach().clone().requires_grad_()
    logits = 100 * x @ F.normalize(h + 0.5 * residual, dim=-1).T
    (F.cross_entropy(logits, label) + 0.1 * residual.square().sum() / K).backward()
    kept = [0, 2, 3]  # the gradient of a row without a length is nothing to go by
    torch.testing.assert_close(out.logits, logits)
    torch.testing.assert_close(head.residual.grad[kept], residual.grad[kept])
    assert head.residual.grad.isfinite().all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.half])
def test_residuals_train_in_half_precision(rows, text, kind):
    x, h = rows[0].float(), 7 * text.float()
    head = ResidualHead(K, D)
    torch.nn.init.normal_(head.residual)
    exact, half = (
        torch.autograd.grad(F.cross_entropy(logits.float(), rows[1]), head.residual)[0]
        for logits in (head(x, h, SCALE.float()).logits, of_half(head, x, h, kind))
    )
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.02 * exact.abs().max().item())


def of_half(head, x, h, kind):
    """Logits of features in half precision, or under autocast."""
    if kind == torch.half:
        return head(x.half(), h, SCALE.float().half()).logits
    with torch.autocast("cpu", kind):
        return head(x, h, SCALE.float()).logits


# ---------------------------------------------------------------------- LP++


def test_lp_plus_plus_steps_are_those_of_autograd_and_sgd(rows, text):
    x, label = rows
    similarity = x @ text.T
    head = BlendedHead(K, D, 300).double()
    head.weight.data.normal_()
    head.alpha.data.fill_(3.0)
    plain = {n: p.detach().clone().requires_grad_() for n, p in head.named_parameters()}
    eigenvalues = np.linalg.eigvalsh((x.T @ x).numpy())
    rate = 4 * N / eigenvalues.max()
    alpha_rate = N / (4 * max(float((similarity[:, k] ** 2).sum()) for k in range(K)))
    sgd = torch.optim.SGD([plain["weight"], plain["bias"]], lr=rate, momentum=0.9)
    for step in range(1, 26):
        sgd.zero_grad()
        logits = x @ plain["weight"].T + plain["bias"] + plain["alpha"] * similarity
        F.cross_entropy(logits, label).backward()
        sgd.step()
        if step % 10 == 0:  # alpha's gradient is never cleared
            plain["alpha"].data -= alpha_rate * plain["alpha"].grad

    descent = Descent(head, x, label, text)
    with torch.no_grad():
        for _ in range(25):
            descent.step()

    assert (descent.rate, descent.alpha_rate) == pytest.approx((rate, alpha_rate), rel=1e-9)
    for name, own in head.named_parameters():
        torch.testing.assert_close(own, plain[name], rtol=1e-9, atol=1e-9)
    expected = x @ head.weight.T + head.bias + head.alpha * similarity
    torch.testing.assert_close(head(x, text, SCALE).logits, expected)
    assert descent.told_right(x, label) == int((expected.argmax(1) == label).sum())


# ---------------------------------------------------------------------- full-batch cross entropy


@pytest.mark.parametrize("block", [1, 3 * K, 2**18], ids=["row by row", "with a rest", "at once"])
@pytest.mark.parametrize("length", [1, 1e4], ids=["ordinary", "logits beyond exp"])
def test_the_full_batch_gradient_is_autograds(rows, monkeypatch, block, length):
    monkeypatch.setattr("trainers.frozen.cross_entropy._BLOCK", block)
    x, label = rows
    weight = (length * torch.randn(K, D, dtype=torch.double)).requires_grad_()
    bias = torch.randn(K, dtype=torch.double, requires_grad=True)
    logits = x @ weight.T + bias
    loss = F.cross_entropy(logits, label)
    loss.backward()
    with torch.no_grad():
        found = FullBatch(x, label, K).gradient(weight, bias)
        right = told_right(x, label, weight, bias)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.weight, weight.grad)
    torch.testing.assert_close(found.bias, bias.grad)
    assert right == int((logits.argmax(1) == label).sum())


def test_a_class_without_rows_has_the_gradient_of_its_probability(rows):
    x, label = rows
    weight = torch.randn(K + 1, D, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(K + 1, dtype=torch.double)
    F.cross_entropy(x @ weight.T, label).backward()
    with torch.no_grad():
        found = FullBatch(x, label, K + 1).gradient(weight, bias)
    torch.testing.assert_close(found.weight, weight.grad)
    assert found.weight[K].abs().max() > 0


# ---------------------------------------------------------------------- linear probe


@pytest.mark.parametrize("c", [0.01, 10.0])
def test_regression_ends_at_its_objectives_minimum(rows, c):
    """Where the gradient of sum CE + |W|^2 / (2 C) is zero; the objective is convex."""
    x, label = rows
    start = torch.zeros(K, D, dtype=torch.double), torch.zeros(K, dtype=torch.double)
    weight, bias = (v.requires_grad_() for v in regress(x, label, c, start, 1000))
    loss = F.cross_entropy(x @ weight.T + bias, label, reduction="sum")
    loss = loss + weight.square().sum() / (2 * c)
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < N * 2e-5
    assert weight.abs().max() > 0


# ---------------------------------------------------------------------- cross-modal


SETTINGS = [Setting(1e-2, 0.1, 6), Setting(1e-2, 0.0, 6), Setting(3e-3, 0.1, 6)]


def test_cross_modal_steps_are_those_of_autograd_and_adamw(rows, text):
    """For each setting what it would be alone, though a step is made for all at once."""
    x, label = torch.cat([rows[0], text]), torch.cat([rows[1], torch.arange(K)])
    batches = draw_batches([N, K], 6, 60, seed=1)
    steps = [
        (done, weights.clone())
        for done, weights in weights_by_step(text, SCALE, (x, label), batches, SETTINGS)
    ]
    assert [done for done, _ in steps] == list(range(1, 61))
    for place, setting in enumerate(SETTINGS):
        plain = text.clone().requires_grad_()
        adamw = torch.optim.AdamW([plain], weight_decay=setting.decay)
        for i, chosen in enumerate(batches):
            adamw.param_groups[0]["lr"] = rate_at(i, setting.rate, 60)
            adamw.zero_grad()
            F.cross_entropy(100 * x[chosen] @ plain.T, label[chosen]).backward()
            adamw.step()
            torch.testing.assert_close(
                steps[i][1][place], plain.detach(), rtol=1e-9, atol=1e-9, msg=f"{setting} {i}"
            )
    assert not torch.allclose(steps[-1][1][0], steps[-1][1][1])


def test_settings_that_step_at_once_share_a_batch_size_and_fit_a_cache(monkeypatch):
    grid = [Setting(rate, 0.0, batch) for rate in (1, 2, 3, 4, 5) for batch in (8, 32)]
    start = torch.zeros(K, D)
    assert [len(group) for group in grouped(grid, start)] == [5, 5]
    monkeypatch.setattr("trainers.frozen.cross_modal_steps._WEIGHTS", 4 * K * D + 1)
    groups = grouped(grid, start)
    assert [len(group) for group in groups] == [3, 2, 3, 2]
    assert sorted(sum(groups, [])) == sorted(grid)
    assert all(len({setting.batch for setting in group}) == 1 for group in groups)
    monkeypatch.setattr("trainers.frozen.cross_modal_steps._WEIGHTS", 1)
    assert [len(group) for group in grouped(grid, start)] == [1] * 10
    assert [len(group) for group in grouped(grid, start.to("meta"))] == [5, 5]


def test_threads_share_the_cores_and_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = each_in_a_thread([lambda stop, n=n: (n, torch.get_num_threads()) for n in range(5)])
        assert found == [(n, 1) for n in range(5)]
        assert each_in_a_thread([lambda stop: torch.get_num_threads()]) == [2]
        assert torch.get_num_threads() == 2
        assert each_in_a_thread([lambda stop: torch.is_grad_enabled()]) == [False]
    finally:
        torch.set_num_threads(before)


def test_a_task_that_fails_ends_the_others():
    told = []

    def waits(stop):
        told.append(stop.wait(10))

    def fails(stop):
        raise FloatingPointError("no number")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(FloatingPointError, match="no number"):
            each_in_a_thread([waits, fails, waits])
        assert told  # by one or two: the third may have begun before
        assert all(told)
    finally:
        torch.set_num_threads(before)


def test_batches_are_half_images_and_half_texts():
    batches = draw_batches([N, K], 6, 30, seed=1)
    assert batches.shape == (30, 6)
    images, texts = batches[:, :3], batches[:, 3:] - N
    # 13 times 3 of 40 images: one pass, its last image left out; then the next.
    for number, order in enumerate(orders(N, 2)):
        assert images[13 * number : 13 * (number + 1)].flatten().tolist() == order[:39]
    for number, order in enumerate(orders(K, 30)):
        assert texts[number].tolist() == order[:3]
    assert len(set(images[:13].flatten().tolist())) == 39


def orders(rows, passes):
    """The shuffled passes of a generator with seed 1."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(rows, generator=generator).tolist() for _ in range(passes)]


def test_the_rate_warms_up_and_its_cosine_ends_behind_the_last_iteration():
    rates = [rate_at(i, 1e-3, 12_800) for i in (0, 1, 49, 50, 6_450, 12_799)]
    last = 1e-3 * (1 + math.cos(math.pi * 12_749 / 12_800)) / 2
    assert rates == pytest.approx([1e-5, 2e-5, 9.8e-4, 1e-3, 5e-4, last], rel=1e-9)
