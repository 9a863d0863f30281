"""What a metric is: an object that says all about itself, so that nobody guesses from its name.

An own metric is a class in one file. Most are numbers of the labels and scores of an output; they say how to compute
one, and work for one output and as the mean over several::

    @METRICS.register("brier")
    class Brier(OutputMetric):
        name = "brier"
        kinds = ("binary",)
        higher_is_better = False
        range = (0.0, 1.0)
        words = "Brier score: mean squared error of probabilities"

        def compute(self, labels, scores):
            return float(((scores[:, 0] - labels) ** 2).mean())

What needs the whole rows of the table is a ``Metric`` with ``value``. Nothing else is asked for: a bootstrap repeats
rows, the comparison of sources leaves out patients. A metric that knows a faster way gives it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from voco.registry import Registry
from voco.stats.parts import Part, Weighted
from voco.tasks.classes import mean_defined
from voco.tasks.outputs import Output, labels_and_scores

if TYPE_CHECKING:
    import pandas as pd

# Metrics of single outputs by name: those of ``table``, own ones after them.
METRICS: Registry[type[Metric]] = Registry("metric")
Arrays = Sequence[tuple[np.ndarray, np.ndarray]]


class Metric:
    """A number of rows of predictions; subclasses set the attributes and implement ``value``.

    Args:
        outputs: that it is of, for metrics that can be of any.
        name: in place of the class's own, e.g. of one label of several.

    Attributes:
        name: key in results.
        title: as papers write it.
        words: what a reader must know beside its direction, a sentence without its full stop.
        higher_is_better: its direction.
        range: smallest and largest value; infinite where there is none.
        ranks: whether it compares scores with each other, so that scores of different models must not be mixed in it.
        table: which rows it needs: of units, of images (slices), or both.
        all_draws: whether its interval takes all resamples where it is not the main metric of its task.
        kinds: of outputs that it can be of, where it can be of any.
    """

    name: str = ""
    title: str = ""
    words: str = ""
    higher_is_better: bool = True
    range: tuple[float, float] = (-math.inf, math.inf)
    ranks: bool = False
    table: Literal["units", "images", "both"] = "units"
    all_draws: bool = False
    kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, outputs: Sequence[Output] = (), name: str = ""):
        self.outputs = tuple(outputs)
        if name and name != self.name:
            self.name, self.title, self.words = name, "", ""
        self.title = self.title or titled(self.name)

    def value(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> float:
        """The number; NaN where it is not defined.

        Args:
            units: label and score columns, one row per unit.
            images: rows of ``predictions_images.parquet`` (``unit``, ``label``, ``score``), where slices are scored.
        """
        raise NotImplementedError

    def why_not(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> str:
        """Why ``value`` is not defined; asked only where it is not."""
        return ""

    def of(self, rows: pd.DataFrame) -> Weighted:
        """A function of (R, n) weights of rows that gives (R,) values.

        Args:
            rows: n units; of a metric of images, n images.
        """

        def of_weights(weights: np.ndarray) -> np.ndarray:
            places = (np.repeat(np.arange(len(own)), own.astype(int)) for own in weights)
            return np.array([_number(self.value(rows.iloc[p])) if len(p) else np.nan for p in places], float)

        return of_weights

    def parts(self, units: pd.DataFrame) -> list[Part] | None:
        """Parts whose mean, over those that are defined, is the number; None for a metric without such parts."""
        return None

    def sides(self, rows: pd.DataFrame) -> np.ndarray | None:
        """(n,) labels, NaN where not known, of the AUROC of one yes-or-no output: few cases have an interval too."""
        return None

    def shuffled(self, units: pd.DataFrame, places: np.ndarray) -> np.ndarray:
        """(R,) values where units have the labels of others.

        Args:
            units: n rows.
            places: (R, n) row from which each unit takes its labels.
        """
        names = [name for name in units.columns if str(name).startswith("label_")]
        labels = units[names].to_numpy(float)
        return np.array([_number(self.value(units.assign(**dict(zip(names, labels[own].T))))) for own in places])


class OutputMetric(Metric):
    """A number of the labels and scores of an output; of several outputs the mean over those where it is defined.

    Args:
        outputs, name: see ``Metric``.
        arrays: function of units that gives labels (n,) and scores (n, K) of each output, where they are not what the
            columns hold; labels are NaN where they are not known.
        unknown, undefined: why it is None where no label is known, and otherwise.
    """

    unknown: str = "no case with a known label"
    undefined: str = ""

    def __init__(
        self,
        outputs: Sequence[Output] = (),
        name: str = "",
        *,
        arrays: Callable[[pd.DataFrame], Arrays] | None = None,
        unknown: str = "",
        undefined: str = "",
    ):
        super().__init__(outputs, name)
        self._arrays = arrays
        self.unknown = unknown or self.unknown
        self._of_none = undefined or "not defined for any label"
        self.undefined = undefined or self.undefined

    def compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        """The number of one output.

        Args:
            labels: (n,) known ones, at least one: 0 or 1, the number of the class, or the value.
            scores: (n, K) one column, or one per class.
        """
        raise NotImplementedError

    def weighted(self, labels: np.ndarray, scores: np.ndarray) -> Weighted:
        """``compute`` for (R, n) weights of its rows."""

        def of_weights(weights: np.ndarray) -> np.ndarray:
            places = (np.repeat(np.arange(len(own)), own.astype(int)) for own in weights)
            return np.array([self._compute(labels[p], scores[p]) for p in places], float)

        return of_weights

    def relabeled(self, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(R,) numbers of the same scores (n, K) with many vectors of labels (R, n), NaN = not known."""
        known = ~np.isnan(labels)
        return np.array([self._compute(own[k], scores[k]) for own, k in zip(labels, known)], float)

    def parts_of(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[Part] | None:
        """``parts`` of one output; ``rows`` are places in the table of what ``compute`` takes."""
        return None

    def why(self, labels: np.ndarray, scores: np.ndarray) -> str:
        """Why ``compute`` is not defined for these labels."""
        if not len(labels):
            return self.unknown
        return self.undefined or ("all cases are of one class" if len(set(labels)) == 1 else "")

    def arrays(self, units: pd.DataFrame) -> Arrays:
        """Labels (n,) and scores (n, K) of each output, NaN where a label is not known."""
        if self._arrays is not None:
            return self._arrays(units)
        return [labels_and_scores(units, output) for output in self.outputs]

    def value(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> float:
        return mean_defined([self._compute(labels, scores) for _, labels, scores in self._known(units)])

    def why_not(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> str:
        known = self._known(units)
        return self.why(*known[0][1:]) if len(known) == 1 else self._of_none

    def of(self, rows: pd.DataFrame) -> Weighted:
        each = [(places, self.weighted(labels, scores)) for places, labels, scores in self._known(rows)]

        def of_weights(weights: np.ndarray) -> np.ndarray:
            return _means([function(weights[:, places]) for places, function in each])

        return of_weights

    def parts(self, units: pd.DataFrame) -> list[Part] | None:
        each = [self.parts_of(*known) for known in self._known(units)]
        # a mean of means of unequally many parts is no mean of parts
        if any(parts is None or (len(each) > 1 and len(parts) > 1) for parts in each):
            return None
        return [part for parts in each for part in parts]

    def shuffled(self, units: pd.DataFrame, places: np.ndarray) -> np.ndarray:
        return _means([self.relabeled(labels[places], scores) for labels, scores in self.arrays(units)])

    def _known(self, units: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows whose label is known, their labels and scores, of each output."""
        found = []
        for labels, scores in self.arrays(units):
            rows = np.flatnonzero(~np.isnan(labels))
            found.append((rows, labels[rows], scores[rows]))
        return found

    def _compute(self, labels: np.ndarray, scores: np.ndarray) -> float:
        return _number(self.compute(labels, scores)) if len(labels) else float("nan")


class NotOffered(Metric):
    """A metric that a task knows and cannot give with its options; it says why."""

    def __init__(self, name: str, why: str, higher_is_better: bool = True):
        super().__init__(name=name)
        self.why, self.higher_is_better = why, higher_is_better

    def value(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> float:
        return float("nan")

    def why_not(self, units: pd.DataFrame, images: pd.DataFrame | None = None) -> str:
        return self.why


def titled(name: str) -> str:
    """A metric as papers write it, from its name alone: that of the registered one, if any is called so."""
    return (METRICS[name].title if name in METRICS else "") or name.replace("_", " ")


def _means(each: Sequence[np.ndarray]) -> np.ndarray:
    """(R,) means over the outputs where the number is defined."""
    return np.array([mean_defined(values) for values in np.transpose(each)], float)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
