"""Every metric of one part of a split: within each fold, averaged, pooled where that is sound, with intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voco.stats import Interval, Ranking, bootstrap, is_rank_metric
from voco.tasks.base import Output, Task

if TYPE_CHECKING:
    import pandas as pd

# Metrics other than the main one and rankings are slow to recompute, and their limits need fewer draws.
FEWER = 200
_IMAGE_DRAWS = 100
_EXACT = 1e-12


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
        scores = [self.task.metrics(units, self._images(fold)) for fold, units in zip(self.numbers, self.by_fold)]
        names = list(dict.fromkeys(name for found in scores for name in found.values))
        reasons = {name: next((s.reasons[name] for s in scores if s.reasons.get(name)), "") for name in names}
        intervals = self._intervals(names, scores)
        return {
            "metrics": {
                name: _figure(interval, better(self.task, name), reasons[name]) for name, interval in intervals.items()
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
            "pooled": self._pooled(names) if len(self.numbers) > 1 else None,
            "counts": {"cases": int(self.rows["case"].nunique()), **_counts(self.task, self.units)},
        }

    def _images(self, fold: int):
        return None if self.images is None else self.images[self.images["fold"] == fold]

    def _bootstrap(self, statistic, n: int, frame=None):
        frame = self.units if frame is None else frame
        return bootstrap(frame, frame["patient"], statistic, n=n, seed=self.seed, folds=frame["fold"])

    def _intervals(self, names: Sequence[str], scores) -> dict[str, Interval]:
        """Rankings by weights, the main metric by all draws, everything else by fewer."""
        task, found = self.task, {}
        values = {name: _fold_mean([s.values.get(name) for s in scores]) for name in names}
        for name in names:
            ranking = find_ranking(task, self.by_fold, name, [s.values.get(name) for s in scores])
            if ranking is not None:
                found[name] = self._bootstrap(ranking, self.n)
            elif name == task.main_metric:
                found[name] = self._bootstrap(task.main_value, self.n)
        rest = [name for name in names if name not in found and math.isfinite(values[name])]
        plain = [task.metrics(units).values for units in self.by_fold]
        by_units = [name for name in rest if any(one.get(name) is not None for one in plain)]
        if by_units:
            drawn = self._bootstrap(lambda units: task.metrics(units).values, min(self.n, FEWER))
            found |= {name: drawn[name] for name in by_units}
        found |= self._image_intervals([name for name in rest if name not in by_units], values)
        found |= {name: Interval(float("nan")) for name in names if name not in found}
        return {name: dataclasses.replace(found[name], value=values[name]) for name in names}

    def _image_intervals(self, names: Sequence[str], values: Mapping[str, float]) -> dict[str, Interval]:
        """Metrics that need the rows of slices, which are drawn with their patient."""
        found: dict[str, Interval] = {}
        defined = list(names)
        if not defined or self.images is None:
            return found
        images = self.images.assign(_score=self.images["score"], _label=self.images["label"].astype(float))
        images.loc[images["score"].isna(), "_label"] = np.nan
        images["_score"] = images["_score"].fillna(0.0)
        ranking = Ranking("_label", "_score")
        if "image_auroc" in defined:
            fast = self._bootstrap(ranking, min(self.n, FEWER), images)
            if abs(fast.value - values["image_auroc"]) < _EXACT:
                found["image_auroc"] = fast
                defined.remove("image_auroc")
        if defined:
            slow = self._bootstrap(_WithImages(self.task, images, defined), min(self.n, _IMAGE_DRAWS))
            found |= {name: slow[name] for name in defined if name in slow}
        return found

    def _pooled(self, names: Sequence[str]) -> dict[str, Any]:
        values = self.task.metrics(self.units).values
        out: dict[str, Any] = {}
        for name in names:
            if is_rank_metric(name):
                out[name] = {"value": None, "reason": "scores of different models are not ranked together"}
            elif values.get(name) is None:
                out[name] = {"value": None, "reason": "not defined over all folds without slices"}
            else:
                out[name] = {"value": values[name]}
        return out


class _WithImages:
    """Metrics of resampled units and the slices of each; a unit that is drawn twice becomes two."""

    def __init__(self, task: Task, images, names: Sequence[str]):
        self.task, self.names = task, names
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
        values = self.task.metrics(renamed, pd.concat(own, ignore_index=True) if own else None).values
        return {name: values.get(name) for name in self.names}


def find_ranking(
    task: Task, by_fold: Sequence[pd.DataFrame], name: str, values: Sequence[float | None]
) -> Ranking | None:
    """The label and score column whose AUROC or average precision a metric is, where it is one.

    It is recognised by its name and by giving the same number in every fold.

    Args:
        by_fold: units of each fold.
        values: of the metric in each fold.
    """
    kind = {"auroc": "auroc", "ap": "ap"}.get(name.split("_")[0])
    for output in task.outputs if kind else ():
        # of several outputs the plain name is a mean or one of their own making
        names = (f"{kind}_{output.name}", kind) if len(task.outputs) == 1 else (f"{kind}_{output.name}",)
        if output.kind != "binary" or name not in names:
            continue
        ranking = Ranking(output.label_column, output.score_columns[0], kind)
        if all(_same(value, ranking(units)) for value, units in zip(values, by_fold)):
            return ranking
    return None


def _same(value: float | None, other: float) -> bool:
    if value is None or math.isnan(value):
        return math.isnan(other)
    return abs(value - other) < _EXACT


def better(task: Task, name: str) -> bool:
    """Whether higher values of a metric are better."""
    return task.higher_is_better if name == task.main_metric else bool(task.directions.get(name, True))


def _fold_mean(values: Sequence[float | None]) -> float:
    fine = [value for value in values if value is not None]
    return float(np.mean(fine)) if fine else float("nan")


def _figure(interval: Interval, higher: bool, reason: str) -> dict[str, Any]:
    value = interval.value if math.isfinite(interval.value) else None
    return {
        "value": value,
        "low": interval.low if value is not None else None,
        "high": interval.high if value is not None else None,
        "higher_is_better": higher,
        "patients": interval.groups,
        "resamples": interval.resamples,
        "undefined_resamples": interval.undefined,
        "reason": "" if value is not None and interval.low is not None else (reason or interval.reason),
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
