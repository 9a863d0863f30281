"""Parts that metrics are means of; each can be asked how single patients bear on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from voco.short_repr import short_repr
from voco.stats.ranking import divided, placements

# (R, n) weights, not negative -> (R,) values, NaN where the number is not defined
Weighted = Callable[[np.ndarray], np.ndarray]


@short_repr
@dataclass(frozen=True)
class RankingPart:
    """An AUROC, ties counted half.

    Attributes:
        rows: (m,) rows of the table that count.
        labels: (m,) 0 or 1.
        scores: (m,).
    """

    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def value(self) -> float:
        """The AUROC, NaN where a class has no case."""
        return mean_placement(*placements(self.labels == 1, self.scores))


@short_repr
@dataclass(frozen=True)
class SumPart:
    """A number that can be computed for weighted rows.

    Attributes:
        rows: (m,) rows of the table that count.
        of_weights: (R, m) weights of these rows -> (R,) values.
        kinds: (m,) classes of the rows, where the number hangs on each class apart; None where it does not.
    """

    rows: np.ndarray
    of_weights: Weighted
    kinds: np.ndarray | None = None

    def value(self) -> float:
        """The number itself."""
        return float(self.of_weights(np.ones((1, len(self.rows))))[0])


Part = RankingPart | SumPart


def mean_placement(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(…) AUROC from the placements of positives; NaN where a class has no case."""
    return up.mean(-1) if up.shape[-1] and down.shape[-1] else np.full(up.shape[:-1], np.nan)[()]


def mean_part(rows: np.ndarray, values: np.ndarray, shares: np.ndarray | None = None) -> SumPart:
    """Mean of values (m,), each with its share (m,)."""
    shares = np.ones(len(values)) if shares is None else shares
    table = np.stack([values * shares, shares], 1)

    def of_weights(weights: np.ndarray) -> np.ndarray:
        sums = weights @ table
        return divided(sums[:, 0], sums[:, 1])

    return SumPart(rows, of_weights)
