"""Loss and score of predictors that have seen nothing: exact, from the geometry and the loss that a run really uses.

A run is only learning if it does better. Every place that a random crop can have is enumerated along each axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from voco.geometry import Geometry

COLLAPSE_COSINE = 0.99
EPSILON = 1e-6  # as in voco.losses, which would load torch


@dataclass(frozen=True)
class ReferenceLines:
    """Expected intra-volume loss of trivial predictors, and scores of trivial guesses.

    Attributes:
        zero_logits: loss when every similarity is 0 (orthogonal embeddings).
        best_constant: lowest loss of one and the same similarity everywhere.
        best_constant_value: that similarity.
        position_marginal: loss of the mean overlap of each base crop, whatever the random crop.
        collapse: loss when every similarity is 0.99.
        position_chance: position accuracy of the best constant guess, the base that is right most often.
        balanced_chance: the same with every base crop that can be right counting alike.
    """

    zero_logits: float
    best_constant: float
    best_constant_value: float
    position_marginal: float
    collapse: float
    position_chance: float
    balanced_chance: float


def overlap_shares(geometry: Geometry) -> dict[int, float]:
    """Number of base crops that a random crop overlaps, with the exact probability of each number."""
    counts = [np.bincount((axis > 0).sum(1)) / len(axis) for axis in _axis_overlaps(geometry)]
    shares: dict[int, float] = {}
    for key in np.ndindex(*(len(c) for c in counts)):
        share = float(np.prod([c[n] for c, n in zip(counts, key)]))
        if share > 0:
            shares[int(np.prod(key))] = shares.get(int(np.prod(key)), 0.0) + share
    return shares


def reference_lines(geometry: Geometry, negative: str = "log", positive_weight: str = "overlap") -> ReferenceLines:
    """Reference values for the active geometry and loss, with ``random_crops`` crops per volume.

    Args:
        geometry: as the run uses it.
        negative, positive_weight: as in ``VoCoOptions``.
    """
    axes = _axis_overlaps(geometry)
    places = [_distinct(axis) for axis in axes]
    # one similarity for all bases does not know their order: mirrored places are then the same and counted once
    mirrored = [_distinct(np.sort(axis, 1)) for axis in axes]

    def loss(similarity: np.ndarray, tables: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return _expected_loss(similarity, tables, geometry, negative, positive_weight)

    def constant(value: float) -> float:
        return loss(np.full(geometry.bases, value), mirrored)

    best = _minimise(constant)
    marginal = np.multiply.outer(axes[1].mean(0), axes[2].mean(0)).ravel() * axes[0].mean() / np.prod(geometry.size)
    row, col = (np.bincount(axis.argmax(1), minlength=axis.shape[1]) / len(axis) for axis in axes[1:])
    cells = np.outer(row, col)
    return ReferenceLines(
        zero_logits=constant(0.0),
        best_constant=constant(best),
        best_constant_value=best,
        position_marginal=loss(marginal, places),
        collapse=constant(COLLAPSE_COSINE),
        position_chance=float(cells.max()),
        balanced_chance=1.0 / int((cells > 0).sum()),
    )


def _axis_overlaps(geometry: Geometry) -> list[np.ndarray]:
    """Per axis, (places of a random crop, base crops along that axis): overlap in voxels."""
    tables = []
    middle = (geometry.window[0] - geometry.size[0]) // 2
    bases = (np.array([middle]), *(np.arange(n) * geometry.crop for n in geometry.grid))
    for places, base, edge in zip(geometry.start_ranges, bases, geometry.size):
        tables.append(np.clip(edge - np.abs(np.array(places)[:, None] - base), 0, None))
    return tables


def _distinct(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different rows of an overlap table, with the probability of each."""
    rows, counts = np.unique(axis, axis=0, return_counts=True)
    return rows, counts / counts.sum()


def _expected_loss(
    similarity: np.ndarray,
    tables: list[tuple[np.ndarray, np.ndarray]],
    geometry: Geometry,
    negative: str,
    positive_weight: str,
) -> float:
    """Expected intra-volume loss of a predictor that gives base k ``similarity[k]`` whatever the random crop.

    Both terms are sums over K crops divided by integers that are such sums themselves (positives or overlapped
    slices; negatives). Crops are independent, so E = K * E[sum of one crop / (its integer + that of K - 1 others)].
    """
    (depth, p_depth), (rows, p_rows), (cols, p_cols) = tables
    in_plane = np.einsum("ai,bj->abij", rows, cols).reshape(-1, geometry.bases)
    p_plane = np.outer(p_rows, p_cols).ravel()
    cost = -np.log(1 - similarity + EPSILON) if negative == "log" else similarity**2
    whole = geometry.size[0] if positive_weight == "overlap" else geometry.bases
    positives, negatives = _Ratio(whole), _Ratio(geometry.bases)
    for height, p_height in zip(depth[:, 0], p_depth):
        y, p = in_plane * height / np.prod(geometry.size), p_plane * p_height
        weight = y if positive_weight == "overlap" else (y > 0).astype(float)
        hit = (weight * -np.log(1 - np.abs(y - similarity) + EPSILON)).sum(1)
        # in the plane the grid covers the crop, so overlaps add up to the share of its slices that the bases have
        total = np.full(len(y), height) if positive_weight == "overlap" else (y > 0).sum(1)
        positives.add(hit, total, p)
        negatives.add(((y == 0) * cost).sum(1), (y == 0).sum(1), p)
    unit = 1 / geometry.size[0] if positive_weight == "overlap" else 1.0
    return positives.mean(geometry.random_crops, unit) + negatives.mean(geometry.random_crops, 1.0)


class _Ratio:
    """Expectation of sum(numerators) / (unit * sum(integers) + epsilon) over independent crops of one distribution."""

    def __init__(self, largest: int):
        self.probability, self.numerator = np.zeros(largest + 1), np.zeros(largest + 1)

    def add(self, numerator: np.ndarray, integer: np.ndarray, probability: np.ndarray) -> None:
        size = len(self.probability)
        self.probability += np.bincount(integer, probability, size)
        self.numerator += np.bincount(integer, probability * numerator, size)

    def mean(self, crops: int, unit: float) -> float:
        others = np.ones(1)
        for _ in range(crops - 1):
            others = np.convolve(others, self.probability)
        total = np.add.outer(np.arange(len(self.numerator)), np.arange(len(others)))
        return float(crops * (np.outer(self.numerator, others) / (unit * total + EPSILON)).sum())


def _minimise(function: Callable[[float], float]) -> float:
    """Place of the lowest value on [0, 0.99]: a coarse grid, then golden sections around its best point."""
    grid = np.linspace(0, COLLAPSE_COSINE, 34)
    best = int(np.argmin([function(float(c)) for c in grid]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    golden = (5**0.5 - 1) / 2
    while high - low > 1e-5:
        first, second = high - golden * (high - low), low + golden * (high - low)
        if function(first) <= function(second):
            high = second
        else:
            low = first
    return (low + high) / 2
