"""Scores of a self-supervised encoder as pure functions on arrays: positions, ranks, histograms, intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from voco.errors import InputError
from voco.rng import derive_seed
from voco.short_repr import short_repr

HISTOGRAM_BINS = 24
# cosines are computed in float32: closer than this is equal, so that a constant network scores chance and not luck
TIE = 1e-6


@short_repr
@dataclass(frozen=True)
class Tally:
    """Per-scan sums from which a score and every resample of it over scans follow.

    The score is the mean over columns of (sum of hits over scans) / (sum of weight over scans); columns without weight
    do not count. One column is a plain mean; one column per true cell is a balanced accuracy.

    Attributes:
        hits: (S, C) sums of the scored quantity, S scans, C columns.
        weight: (S, C) what the sums are to be divided by.
    """

    hits: np.ndarray
    weight: np.ndarray

    @property
    def scans(self) -> int:
        return len(self.hits)

    def score(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Score of R resamples.

        Args:
            counts: (R, S) how often each scan is in a resample; None is the sample itself, R = 1.

        Returns:
            (R,) scores, NaN where nothing was counted.
        """
        counts = np.ones((1, self.scans)) if counts is None else counts
        hits, weight = counts @ self.hits, counts @ self.weight
        occurs = weight > 0
        ratio = np.divide(hits, weight, out=np.zeros_like(hits), where=occurs)
        columns = occurs.sum(axis=1)
        return np.divide(ratio.sum(axis=1), columns, out=np.full(len(ratio), np.nan), where=columns > 0)

    @property
    def value(self) -> float:
        return float(self.score()[0])


def tally_scans(scan: np.ndarray, hits: np.ndarray, weight: np.ndarray | None = None) -> Tally:
    """Sum rows that belong to the same scan.

    Args:
        scan: (M,) scan of each row.
        hits: (M,) or (M, C) scored quantity.
        weight: as ``hits``; None is 1 per row.
    """
    hits = np.asarray(hits, np.float64).reshape(len(scan), -1)
    weight = np.ones_like(hits) if weight is None else np.asarray(weight, np.float64).reshape(len(scan), -1)
    member = (np.unique(scan)[:, None] == np.asarray(scan)[None, :]).astype(np.float64)
    return Tally(member @ hits, member @ weight)


@lru_cache(maxsize=32)
def resample_counts(scans: int, resamples: int, seed: int) -> np.ndarray:
    """(R, S) draws with replacement of S scans; the same for every score, so that differences are paired."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", scans))
    counts = rng.multinomial(scans, np.full(scans, 1.0 / scans), size=resamples).astype(np.float64)
    counts.setflags(write=False)
    return counts


def bootstrap_interval(tally: Tally, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval over scans; None for fewer than two scans, where there is nothing to resample."""
    if tally.scans < 2:
        return None
    return _percentiles(tally.score(resample_counts(tally.scans, resamples, seed)))


def bootstrap_difference(
    one: Tally, other: Tally, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """Score of ``one`` minus score of ``other``, with its 95 % interval over the scans that both were measured on.

    Raises:
        InputError: the two were not measured on the same queries of the same scans.
    """
    if one.weight.shape != other.weight.shape or not np.allclose(one.weight, other.weight):
        raise InputError(
            f"scores of different queries cannot be paired ({one.scans} and {other.scans} scans): "
            "evaluate both on the same windows with the same seed"
        )
    value = one.value - other.value
    if one.scans < 2:
        return value, None
    counts = resample_counts(one.scans, resamples, seed)
    return value, _percentiles(one.score(counts) - other.score(counts))


def _percentiles(values: np.ndarray) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


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


def position_tallies(scan: np.ndarray, similarity: np.ndarray, labels: np.ndarray) -> dict[str, Tally]:
    """Position accuracy, plain and balanced over the true cells that occur.

    Args:
        scan: (M,) scan of each query.
        similarity: (M, N).
        labels: (M, N).

    Returns:
        ``accuracy`` (mean over queries) and ``accuracy_balanced`` (mean over true cells of the recall). Queries without
        a right answer do not count; always guessing the centre of a 3x3 grid then scores exactly 0.25 and 1/9.
    """
    credit = position_credit(similarity, labels)
    counts = np.isfinite(credit)
    credit = np.where(counts, credit, 0.0)
    cell = np.eye(labels.shape[-1])[labels.argmax(axis=-1)] * counts[:, None]
    return {
        "accuracy": tally_scans(scan, credit, counts),
        "accuracy_balanced": tally_scans(scan, credit[:, None] * cell, cell),
    }


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
