"""The three VoCo loss terms. torch only; cosines and logarithms are computed in float32 (float64 stays float64)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# the authors' epsilon, in the logarithms and in the denominators
EPSILON = 1e-6


def full_precision(x: Tensor) -> Tensor:
    """Float32, or float64 as it is: half precision is not enough for cosines close to 1 and their logarithms."""
    return x if x.dtype == torch.float64 else x.float()


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """Cosine of every row of ``u`` with every row of ``v``.

    Args:
        u: (..., R, P) embeddings.
        v: (..., N, P) embeddings.

    Returns:
        (..., R, N) in [-1, 1], 0 where one of the two is zero.
    """
    with _no_autocast(u):
        u, v = F.normalize(full_precision(u), dim=-1), F.normalize(full_precision(v), dim=-1)
        return (u @ v.transpose(-1, -2)).clamp(-1, 1)


def relu_cosine(u: Tensor, v: Tensor) -> Tensor:
    """Cosine of every row of ``u`` (..., R, P) with every row of ``v`` (..., N, P), negative values set to 0.

    Eq. 1 of the CVPR paper has the plain cosine; every public code has the relu.
    """
    return cosine(u, v).relu()


def voco_cross_entropy(
    labels: Tensor,
    logits: Tensor,
    *,
    negative: Literal["log", "square"] = "log",
    positive_weight: Literal["overlap", "one"] = "overlap",
) -> tuple[Tensor, Tensor]:
    """Positive and negative term of one volume's crops against its bases; their sum is the loss.

    The paper (eq. 3) has one logarithm over all pairs. The codes split pairs at label 0 and average each side by
    itself: positives weighted by the overlap (v1, v2, nnssl) or all alike (v0); negatives squared (v0, v1, nnssl) or
    with a logarithm (v2).

    Args:
        labels: (B, R, N) in [0, 1]; exactly 0 marks a negative pair.
        logits: (B, R, N) in [0, 1].
        negative: ``log`` or ``square``.
        positive_weight: ``overlap`` or ``one``.

    Returns:
        Two tensors (B,).
    """
    with _no_autocast(logits):
        labels, logits = full_precision(labels), full_precision(logits)
        weight = labels if positive_weight == "overlap" else (labels > 0).to(labels)
        positive = -(weight * torch.log(1 - (labels - logits).abs() + EPSILON)).sum((-2, -1))
        positive = positive / (weight.sum((-2, -1)) + EPSILON)
        apart = (labels == 0).to(logits)
        cost = -torch.log(1 - logits + EPSILON) if negative == "log" else logits.square()
        return positive, (apart * cost).sum((-2, -1)) / (apart.sum((-2, -1)) + EPSILON)


def base_regulariser(
    base: Tensor, *, power: Literal[1, 2] = 2, stop_gradient: Literal["one_side", "none"] = "one_side"
) -> Tensor:
    """Mean similarity of the base crops of one volume, which should point in different directions.

    The paper has the absolute cosine; v0, v1 and v2 square the relu'd cosine, nnssl does not. v1 and v2 stop the
    gradient at the later crop of a pair, v0 and nnssl do not.

    Args:
        base: (B, N, P) embeddings.
        power: 2 or 1.
        stop_gradient: ``one_side`` or ``none``.

    Returns:
        (B,) mean over pairs i < j of relu(cos(b_i, b_j)) ** power.
    """
    other = base.detach() if stop_gradient == "one_side" else base
    similarity = relu_cosine(base, other)
    first, second = torch.triu_indices(base.shape[-2], base.shape[-2], offset=1, device=base.device)
    pairs = similarity[..., first, second]
    return (pairs.square() if power == 2 else pairs).mean(-1)


def mean_pairwise_cosine(x: Tensor) -> Tensor:
    """Mean cosine over all pairs of different rows of ``x`` (R, P); close to 1 when embeddings have collapsed."""
    with _no_autocast(x):
        x = F.normalize(full_precision(x), dim=-1)
        rows = len(x)
        # sum over all pairs = |sum of unit vectors|^2 - the R pairs of a row with itself
        return (x.sum(0).square().sum() - x.square().sum()) / max(rows * (rows - 1), 1)
