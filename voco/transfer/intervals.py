"""Every metric of one part of a split: within each fold, averaged, pooled where that is sound, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voco.stats.bootstrap import Resampled, bootstrap
from voco.tasks.base import Output, Task
from voco.tasks.metrics import Metric

if TYPE_CHECKING:
    import pandas as pd

# Metrics other than the main one and rankings are slow to recompute, and their limits need fewer draws.
FEWER = 200
_IMAGE_DRAWS = 100


class PartFigures:
    """Figures of one part of the split, all folds."""

    def __init__(self, task: Task, predictions, images, split: str, n: int, seed: int):
        import pandas as pd

        self.task, self.n, self.seed = task, n, seed
        self.rows = predictions[predictions["split"] == split]
        self.images = None if images is None else images[images["split"] == split]
        self.numbers = sorted(int(fold) for fold in self.rows["fold"].unique())
        self.by_fold = [task.to_units(self.rows[self.rows["fold"] == fold]) for fold in self.numbers]
        self.units = pd.concat(self.by_fold, ignore_index=True)

    def block(self) -> dict[str, Any]:
        """As it stands in ``results.json``."""
        scores = [self.task.measure(units, self._images(fold)) for fold, units in zip(self.numbers, self.by_fold)]
        names = [metric.name for metric in self.task.metrics]
        values = {name: _fold_mean([found.values[name] for found in scores]) for name in names}
        reasons = {name: next((s.reasons[name] for s in scores if s.reasons.get(name)), "") for name in names}
        intervals = self._intervals(values)
        return {
            "metrics": {
                metric.name: _figure(values[metric.name], intervals[metric.name], metric, reasons[metric.name])
                for metric in self.task.metrics
            },
            "folds": [
                {
                    "fold": fold,
                    "metrics": dict(found.values),
                    "reasons": dict(found.reasons),
                    **_counts(self.task, units),
                }
                for fold, found, units in zip(self.numbers, scores, self.by_fold)
            ],
            "pooled": self._pooled() if len(self.numbers) > 1 else None,
            "counts": {"cases": int(self.rows["case"].nunique()), **_counts(self.task, self.units)},
        }

    def _images(self, fold: int):
        return None if self.images is None else self.images[self.images["fold"] == fold]

    def _bootstrap(self, statistic, n: int, frame=None):
        frame = self.units if frame is None else frame
        return bootstrap(frame, frame["patient"], statistic, n=n, seed=self.seed, folds=frame["fold"])

    def _intervals(self, values: dict[str, float]) -> dict[str, Resampled]:
        """The main metric and what is fast by all draws, everything else by fewer and only where it is defined."""
        found = {metric.name: Resampled(float("nan")) for metric in self.task.metrics}
        slow = []
        for metric in self.task.metrics:
            defined = math.isfinite(values[metric.name])
            if metric.table == "units" and (metric.all_draws or metric is self.task.main):
                found[metric.name] = self._bootstrap(metric, self.n)
            elif metric.table == "units" and defined:
                found[metric.name] = self._bootstrap(metric, min(self.n, FEWER))
            elif metric.table == "images" and defined:
                found[metric.name] = self._bootstrap(metric, min(self.n, FEWER), self.images)
            elif defined:
                slow.append(metric)
        if slow:  # the rows of slices are drawn with their patient
            found |= self._bootstrap(_WithImages(slow, self.images), min(self.n, _IMAGE_DRAWS))
        return found

    def _pooled(self) -> dict[str, Any]:
        values = self.task.measure(self.units).values
        out: dict[str, Any] = {}
        for metric in self.task.metrics:
            if metric.ranks:
                out[metric.name] = {"value": None, "reason": "scores of different models are not ranked together"}
            elif values[metric.name] is None:
                out[metric.name] = {"value": None, "reason": "not defined over all folds without slices"}
            else:
                out[metric.name] = {"value": values[metric.name]}
        return out


class _WithImages:
    """Metrics of resampled units and the slices of each; a unit that is drawn twice becomes two."""

    def __init__(self, metrics: Sequence[Metric], images):
        self.metrics = metrics
        self.rows = dict(list(images.groupby(["fold", "unit"])))

    def __call__(self, units) -> dict[str, float | None]:
        import pandas as pd

        units = units.reset_index(drop=True)
        renamed = units.assign(unit=[f"{unit}#{i}" for i, unit in enumerate(units["unit"])])
        own = [
            self.rows[key].assign(unit=new)
            for key, new in zip(zip(units["fold"], units["unit"]), renamed["unit"])
            if key in self.rows
        ]
        together = pd.concat(own, ignore_index=True) if own else None
        return {metric.name: metric.value(renamed, together) for metric in self.metrics}


def _fold_mean(values: Sequence[float | None]) -> float:
    fine = [value for value in values if value is not None]
    return float(np.mean(fine)) if fine else float("nan")


def _figure(value: float, interval: Resampled, metric: Metric, reason: str) -> dict[str, Any]:
    defined = math.isfinite(value)
    return {
        "value": value if defined else None,
        "low": interval.low if defined else None,
        "high": interval.high if defined else None,
        "higher_is_better": metric.higher_is_better,
        "patients": interval.patients,
        "resamples": interval.resamples,
        "undefined_resamples": interval.undefined,
        "reason": "" if defined and interval.low is not None else (reason or interval.reason),
    }


def _counts(task: Task, units: pd.DataFrame) -> dict[str, Any]:
    once = units.drop_duplicates("unit")
    return {
        "units": len(once),
        "patients": int(once["patient"].nunique()),
        "classes": {
            output.name: _classes(output, once[output.label_column].to_numpy(float)) for output in task.outputs
        },
    }


def _classes(output: Output, labels: np.ndarray) -> dict[str, int]:
    unknown = {"unknown": int(np.isnan(labels).sum())} if np.isnan(labels).any() else {}
    labels = labels[~np.isnan(labels)]
    if output.kind == "regression":
        return {"known": len(labels)} | unknown
    names = output.classes if output.kind == "multiclass" else ("0", "1")
    return {name: int((labels == i).sum()) for i, name in enumerate(names)} | unknown
