"""Loss terms against plain loops written from the formulas, values and gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from voco.losses import (
    base_regulariser,
    cosine,
    full_precision,
    mean_pairwise_cosine,
    relu_cosine,
    voco_cross_entropy,
)
from voco.rng import generator

EPS = 1e-6
SHAPES = [(1, 1, 4, 3), (2, 2, 9, 16), (3, 4, 16, 5), (2, 3, 2, 1)]


def slow_relu_cosine(u, v):
    rows = []
    for a in u:
        row = []
        for b in v:
            dot, na, nb = sum(a * b), sum(a * a) ** 0.5, sum(b * b) ** 0.5
            value = dot / (na * nb)
            row.append(value if value > 0 else value * 0)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def slow_cross_entropy(y, l, negative, positive_weight):  # noqa: E741
    above, below, cost, count = 0.0, 0.0, 0.0, 0.0
    for r, k in itertools.product(range(y.shape[0]), range(y.shape[1])):
        weight = y[r, k] if positive_weight == "overlap" else (1.0 if y[r, k] > 0 else 0.0)
        above = above - weight * torch.log(1 - abs(y[r, k] - l[r, k]) + EPS)
        below = below + weight
        if y[r, k] == 0:
            cost = cost + (-torch.log(1 - l[r, k] + EPS) if negative == "log" else l[r, k] ** 2)
            count += 1
    return above / (below + EPS), cost / (count + EPS)


def slow_regulariser(base, power, stop_gradient):
    total, pairs = 0.0, 0
    for i in range(len(base)):
        for j in range(i + 1, len(base)):
            other = base[j].detach() if stop_gradient == "one_side" else base[j]
            total = total + slow_relu_cosine(base[i : i + 1], other[None])[0, 0] ** power
            pairs += 1
    return total / pairs


def random_labels(shape, seed):
    y = torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=generator(seed, 1)) < 0.5, 0.0, y)


def gradients(value, inputs):
    return torch.autograd.grad(value, inputs, allow_unused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_relu_cosine(shape, dtype):
    b, r, n, p = shape
    u = torch.randn(b, r, p, generator=generator(0), dtype=dtype, requires_grad=True)
    v = torch.randn(b, n, p, generator=generator(1), dtype=dtype, requires_grad=True)
    fast, slow = relu_cosine(u, v), torch.stack([slow_relu_cosine(u[i], v[i]) for i in range(b)])
    torch.testing.assert_close(fast, slow)
    if p > 1:  # the gradient of a cosine of scalars is rounding error
        weight = torch.randn(fast.shape, generator=generator(2), dtype=dtype)
        for got, expected in zip(gradients((fast * weight).sum(), (u, v)), gradients((slow * weight).sum(), (u, v))):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("negative", ["log", "square"])
@pytest.mark.parametrize("positive_weight", ["overlap", "one"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy(shape, negative, positive_weight, dtype):
    y = random_labels(shape[:3], 3).to(dtype)
    logits = (torch.rand(shape[:3], generator=generator(4), dtype=torch.float64) * 0.98).to(dtype).requires_grad_()
    fast = voco_cross_entropy(y, logits, negative=negative, positive_weight=positive_weight)
    slow = [slow_cross_entropy(y[i], logits[i], negative, positive_weight) for i in range(shape[0])]
    for term in range(2):
        expected = torch.stack([torch.as_tensor(pair[term], dtype=dtype) for pair in slow])
        assert fast[term].shape == (shape[0],)
        torch.testing.assert_close(fast[term], expected)
    expected = sum(sum(pair) for pair in slow)
    torch.testing.assert_close(*(gradients(v, logits)[0] for v in (sum(fast).sum(), expected)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("stop_gradient", ["one_side", "none"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[3] > 1])
def test_base_regulariser(shape, power, stop_gradient):
    base = torch.randn(shape[0], *shape[2:], generator=generator(6), dtype=torch.float64, requires_grad=True)
    fast = base_regulariser(base, power=power, stop_gradient=stop_gradient)
    slow = torch.stack([slow_regulariser(b, power, stop_gradient) for b in base])
    torch.testing.assert_close(fast, slow)
    got, expected = (gradients(v.sum(), base)[0] for v in (fast, slow))
    torch.testing.assert_close(got, expected)
    if stop_gradient == "one_side":
        assert not got[:, -1].any()  # the last base is never the first of a pair


def test_collapse_and_orthogonality():
    direction = torch.randn(1, 1, 64, generator=generator(0))
    same = direction.expand(1, 9, 64)
    torch.testing.assert_close(base_regulariser(same), torch.ones(1))
    assert base_regulariser(torch.eye(9)[None]).item() == 0
    torch.testing.assert_close(mean_pairwise_cosine(same[0]), torch.tensor(1.0))


def test_mean_pairwise_cosine():
    x = torch.randn(7, 5, generator=generator(8), dtype=torch.float64)
    pairs = [torch.cosine_similarity(x[i], x[j], dim=0) for i in range(7) for j in range(i)]
    assert math.isclose(mean_pairwise_cosine(x), sum(pairs) / len(pairs), rel_tol=1e-9)


def test_half_precision_is_widened_and_autocast_switched_off():
    u, v = (torch.randn(2, 3, 64, generator=generator(i)).bfloat16() for i in range(2))
    y, logits = random_labels((2, 3, 4), 1).bfloat16(), torch.rand(2, 3, 4, generator=generator(3)).bfloat16()
    wide = torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, exact in [
            (cosine(u, v), cosine(u.double(), v.double())),
            (base_regulariser(u), base_regulariser(u.double())),
            (sum(voco_cross_entropy(y, logits)), sum(voco_cross_entropy(y.double(), logits.double()))),
        ]:
            assert got.dtype == wide
            torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)
    assert full_precision(u).dtype == wide and full_precision(u.double()).dtype == torch.float64


def test_extremes_stay_finite():
    """Identical, opposite and zero embeddings; logits of exactly 1."""
    u = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    logits = relu_cosine(u, u.detach())
    np.testing.assert_allclose(logits.detach(), [[1, 0, 0], [0, 1, 0], [0, 0, 0]], atol=1e-6)
    positive, negative = voco_cross_entropy(torch.zeros(1, 3, 3), logits[None])
    assert abs(negative.item() - 2 / 9 * -math.log(1e-6)) < 0.4 and positive.item() == 0
    assert torch.isfinite(gradients((positive + negative).sum(), u)[0]).all()
