"""The histogram of a CT: padding set aside, and how well air, lung, fat and soft tissue explain it under an offset."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from voco.short_repr import short_repr

# Bins of the histogram in HU, wide enough for any offset that is tried.
_BIN, _LOW, _HIGH = 8, -12288, 36864
_SAMPLE = 300_000
# One value with this share of the voxels, so many times the share of the values beside it, is no tissue: padding, or
# the clipped end of a window.
_SPIKE_SHARE, _SPIKE_TIMES, _BESIDE = 0.002, 10, 32
# Beyond these and nothing within this distance: padding, however few voxels it has.
_APART = 200
_EM_STEPS = 12
# (mean, standard deviation) in HU; soft tissue twice, since thin slices are noisy.
_PEAKS = {"air": (-1000, 30), "lung": (-850, 70), "fat": (-100, 35), "soft tissue": (40, 35), "noisy": (40, 110)}


@short_repr
@dataclass(frozen=True)
class Histogram:
    """Values of a scan without padding and clipped ends.

    Attributes:
        counts: (bins,) voxels of the sample, by value.
        low, high: lowest and highest value that is neither padding nor rare (one voxel in a thousand).
        padding: values set aside, ascending.
        share: of the voxels that is left.
        voxels: that are left in the sample.
    """

    counts: np.ndarray
    low: float
    high: float
    padding: tuple[int, ...]
    share: float
    voxels: int

    @classmethod
    def of(cls, values: np.ndarray) -> Histogram:
        """Of any real array; large ones are thinned out evenly."""
        while values.size > 2 * _SAMPLE:
            values = values[tuple(slice(None, None, 2 if n > 16 else 1) for n in values.shape)]
        found, counts = np.unique(np.rint(values).astype(np.int64), return_counts=True)
        spike = _spikes(found, counts)
        kept, number = found[~spike], counts[~spike]
        total = int(number.sum())
        binned = np.bincount(np.clip((kept - _LOW) // _BIN, 0, (_HIGH - _LOW) // _BIN - 1), number, len(_centres()))
        low, high = (0.0, 0.0)
        if total:
            ends = np.searchsorted(np.cumsum(number), (1e-3 * total, 0.999 * total))
            low, high = kept[np.minimum(ends, len(kept) - 1)].tolist()
        return cls(binned, low, high, tuple(found[spike].tolist()), total / int(counts.sum()), total)

    def between(self, low: float, high: float) -> float:
        """Share of the voxels left whose value lies in a range."""
        inside = (_centres() >= low) & (_centres() <= high)
        return float(self.counts[inside].sum() / max(1.0, self.counts.sum()))

    def peak(self, low: float, high: float) -> float:
        """The commonest value in a range."""
        inside = np.flatnonzero((_centres() >= low) & (_centres() <= high))
        return float(_centres()[inside[np.argmax(self.counts[inside])]])


def _spikes(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    share = counts / counts.sum()
    out = np.zeros(len(values), bool)
    for i in np.flatnonzero(share >= _SPIKE_SHARE):
        near = np.abs(values - values[i]) <= _BESIDE
        near[i] = False
        beside = share[near].mean() if near.any() else 0.0
        end = i in (0, len(values) - 1)
        out[i] = share[i] >= (2 if end else _SPIKE_TIMES) * beside
    # the lowest value alone, far below all others, need not be common
    if len(values) > 1 and values[1] - values[0] > _APART:
        out[0] = True
    return out


@functools.cache
def _centres() -> np.ndarray:
    return np.arange(_LOW, _HIGH, _BIN) + (_BIN - 1) / 2


@functools.cache
def _densities() -> np.ndarray:
    """(K, bins) per HU: the peaks, partly aerated lung, contrast and spongy bone, dense bone, and anything at all."""
    x = _centres()
    rows = [np.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi)) for mean, sd in _PEAKS.values()]
    rows.append(np.where((x > -950) & (x < -150), 1 / 800, 0.0))
    rows.append(np.where(x > 40, np.exp(-np.maximum(x - 40, 0) / 300) / 300, 0.0))
    rows.append(np.where((x > 200) & (x < 2000), 1 / 1800, 0.0))
    rows.append(np.full(len(x), 1 / 8192))
    return np.stack(rows)


def likelihood(histogram: Histogram, shift: float = 0.0, mirrored: bool = False) -> float:
    """Mean log-likelihood of a voxel (per HU) if HU = value - shift, or shift - value where mirrored.

    The shares of the tissues are fitted by expectation maximisation, so a crop of one tissue is as good as a body.
    """
    used = np.flatnonzero(histogram.counts)
    value = _centres()[used]
    hu = shift - value if mirrored else value - shift
    at = np.clip(((hu - _LOW) // _BIN).astype(int), 0, len(_centres()) - 1)
    density, voxels = _densities()[:, at], histogram.counts[used] / histogram.counts.sum()
    weight = np.full(len(density), 1 / len(density))
    for _ in range(_EM_STEPS):
        joint = weight[:, None] * density
        weight = np.maximum((joint / joint.sum(0) * voxels).sum(1), 1e-6)
    return float((voxels * np.log(weight @ density)).sum())
