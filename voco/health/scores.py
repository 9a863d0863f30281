"""Scores of a self-supervised encoder as pure functions on arrays: positions, ranks, histograms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from voco.short_repr import short_repr

HISTOGRAM_BINS = 24
# cosines are computed in float32: closer than this is equal, so that a constant network scores chance and not luck
TIE = 1e-6


@short_repr
@dataclass(frozen=True)
class Tally:
    """Sums per cluster (a patient, a group of clips) from which a score and everything said about it follow.

    The score is the mean over columns of (sum of hits over clusters) / (sum of weight over clusters); columns without
    weight do not count. One column is a plain mean; one column per true cell is a balanced accuracy.

    Attributes:
        hits: (S, C) sums of the scored quantity, S clusters, C columns.
        weight: (S, C) what the sums are to be divided by.
        share: the score lies in [0, 1], and so do the ends of its interval.
    """

    hits: np.ndarray
    weight: np.ndarray
    share: bool = False

    @property
    def clusters(self) -> int:
        return len(self.hits)

    @property
    def value(self) -> float:
        """The score, NaN where nothing was counted."""
        total, occurs = self._total
        return float((self.hits.sum(0)[occurs] / total[occurs]).mean()) if occurs.any() else float("nan")

    @property
    def contributions(self) -> np.ndarray:
        """(S,) what each cluster adds to the score; the sum is ``value``."""
        total, occurs = self._total
        return (self.hits[:, occurs] / total[occurs]).mean(1) if occurs.any() else np.full(self.clusters, np.nan)

    @property
    def influence(self) -> np.ndarray:
        """(S,) first-order change of the score with the weight of each cluster; the sum is 0."""
        total, occurs = self._total
        if not occurs.any():
            return np.full(self.clusters, np.nan)
        ratio = self.hits.sum(0)[occurs] / total[occurs]
        return ((self.hits[:, occurs] - ratio * self.weight[:, occurs]) / total[occurs]).mean(1)

    @property
    def _total(self) -> tuple[np.ndarray, np.ndarray]:
        total = self.weight.sum(0)
        return total, total > 0


def tally_rows(
    cluster: np.ndarray,
    hits: np.ndarray,
    weight: np.ndarray | None = None,
    share: bool = False,
    everyone: np.ndarray | None = None,
) -> Tally:
    """Sum rows that belong to the same cluster.

    Args:
        cluster: (M,) of each row.
        hits: (M,) or (M, C) scored quantity.
        weight: as ``hits``; None is 1 per row.
        share: see ``Tally``.
        everyone: (S,) clusters that get a row, also those without any; None takes those that have one.
    """
    hits = np.asarray(hits, np.float64).reshape(len(cluster), -1)
    weight = np.ones_like(hits) if weight is None else np.asarray(weight, np.float64).reshape(len(cluster), -1)
    everyone = np.unique(cluster if everyone is None else everyone)
    number = np.searchsorted(everyone, cluster)
    sums = np.zeros((2, len(everyone), hits.shape[1]))
    np.add.at(sums[0], number, hits)
    np.add.at(sums[1], number, weight)
    return Tally(*sums, share)


def position_credit(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Chance that the cell with the largest similarity is the one with the largest overlap.

    It is 0 or 1 but for a similarity that is equal in several cells, which stands for a blind pick among them.

    Args:
        similarity: (..., N) of one query to N base crops.
        labels: (..., N) overlaps.

    Returns:
        (...) credits in [0, 1]; 0 where a similarity is not finite; NaN where the largest overlap is tied, because the
        query lies halfway between cells and has no right answer.
    """
    picked, true = _largest(similarity), _largest(labels)
    count = picked.sum(axis=-1)
    credit = np.divide((picked & true).sum(axis=-1), count, out=np.zeros(count.shape), where=count > 0)
    return np.where(true.sum(axis=-1) == 1, credit, np.nan)


def position_tallies(
    cluster: np.ndarray, similarity: np.ndarray, labels: np.ndarray, everyone: np.ndarray | None = None
) -> dict[str, Tally]:
    """Position accuracy, plain and balanced over the true cells that occur.

    Args:
        cluster: (M,) patient of each query.
        similarity: (M, N).
        labels: (M, N).
        everyone: as ``tally_rows``.

    Returns:
        ``accuracy`` (mean over queries) and ``accuracy_balanced`` (mean over true cells of the recall). Queries without
        a right answer do not count; always guessing the centre of a 3x3 grid then scores exactly 0.25 and 1/9.
    """
    credit = position_credit(similarity, labels)
    counts = np.isfinite(credit)
    credit = np.where(counts, credit, 0.0)
    cell = np.eye(labels.shape[-1])[labels.argmax(axis=-1)] * counts[:, None]
    return {
        "accuracy": tally_rows(cluster, credit, counts, share=True, everyone=everyone),
        "accuracy_balanced": tally_rows(cluster, credit[:, None] * cell, cell, share=True, everyone=everyone),
    }


def place_tally(position: Tally, disjoint: Tally | None) -> Tally:
    """Mean of two balanced accuracies on the same patients; the first alone where there is no second.

    Cells of both kinds of queries stand side by side, as many columns with one as with two, so that reports of scans
    with and without a neighbouring slab can be joined.
    """
    other = disjoint or Tally(np.zeros_like(position.hits), np.zeros_like(position.weight))
    return Tally(np.hstack([position.hits, other.hits]), np.hstack([position.weight, other.weight]), share=True)


def _largest(values: np.ndarray) -> np.ndarray:
    return values >= values.max(axis=-1, keepdims=True) - TIE


def rank_correlation(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Spearman correlation of similarity with overlap, one per query, ties at their average rank.

    Args:
        similarity: (..., N).
        labels: (..., N).

    Returns:
        (...) in [-1, 1]; 0 where one of the two does not vary, because then it orders nothing.
    """
    a, b = _centred_ranks(similarity), _centred_ranks(labels)
    scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.divide((a * b).sum(axis=-1), scale, out=np.zeros(scale.shape), where=scale > 0)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    # N is the number of base crops (9 or 16): comparing all pairs is cheaper than sorting, and gives ties for free
    difference = values[..., :, None] - values[..., None, :]
    rank = (difference > 0).sum(axis=-1) + (difference == 0).sum(axis=-1) / 2.0
    return rank - rank.mean(axis=-1, keepdims=True)


def effective_rank(features: np.ndarray) -> float:
    """Number of directions that the features use: exp of the entropy of the normalised singular values, centred.

    Args:
        features: (M, F). The result lies between 1 and min(M - 1, F); 0 where all rows are equal.

    Source: Roy and Vetterli, EUSIPCO 2007.
    """
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        return float("nan")
    centred = features - features.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    if singular[0] <= 1e-9 * max(1.0, np.abs(features).max()):
        return 0.0
    share = singular / singular.sum()
    share = share[share > 1e-12]
    return float(np.exp(-(share * np.log(share)).sum()))


def spread(features: np.ndarray) -> float:
    """How far features lie from their mean, as a share of their length (root mean squares): 0 where all are equal.

    Args:
        features: (M, F).
    """
    features = np.asarray(features, np.float64)
    length = np.sqrt((features**2).sum(-1).mean())
    apart = np.sqrt(((features - features.mean(0)) ** 2).sum(-1).mean())
    return 0.0 if length == 0 else float(apart / length)


def standardised_cosine(bases: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Cosine of descriptors after subtracting the mean over the bases of a window and dividing by their deviation.

    Raw descriptors of crops are all alike (air, tissue); what tells places apart is how they differ within the window.

    Args:
        bases: (..., N, F).
        queries: (..., Q, F).

    Returns:
        (..., Q, N). Entries of a descriptor that do not vary over the bases carry no order and are left out.
    """
    bases, queries = np.asarray(bases, np.float64), np.asarray(queries, np.float64)
    mean, deviation = bases.mean(axis=-2, keepdims=True), bases.std(axis=-2, keepdims=True)
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    b, q = _unit((bases - mean) * scale), _unit((queries - mean) * scale)
    return q @ np.swapaxes(b, -1, -2)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def hu_histograms(
    crops: torch.Tensor,
    window: tuple[float, float],
    shift: torch.Tensor | None = None,
    *,
    bins: int = HISTOGRAM_BINS,
    margin: float = 0.1,
) -> torch.Tensor:
    """Share of voxels per bin of Hounsfield units, as a descriptor that knows no anatomy and needs no learning.

    Args:
        crops: (..., d, h, w) Hounsfield units.
        window: (low, high) HU; values are clipped to it first, as an encoder's ``prepare`` does.
        shift: (...) intensity shift of each crop as a share of the window, added after the clip; None is none.
        bins: number of bins over the window widened by ``margin`` of its width on both sides.
        margin: largest shift, as a share of the window.

    Returns:
        (..., bins) float64 shares that sum to 1.
    """
    low, high = window
    lead = crops.shape[:-3]
    unit = ((crops.reshape(lead.numel(), -1).float() - low) / (high - low)).clamp_(0.0, 1.0)
    if shift is not None:
        unit += shift.reshape(-1, 1).to(unit)
    place = ((unit + margin) / (1.0 + 2.0 * margin) * bins).long().clamp_(0, bins - 1)
    place += bins * torch.arange(len(unit), device=unit.device)[:, None]
    counts = torch.bincount(place.flatten(), minlength=bins * len(unit)).reshape(*lead, bins)
    return counts.double() / unit.shape[1]
