"""Did it train at all: the main metric on validation against a predictor that knows only how common labels are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from voco.stats import bootstrap
from voco.tasks.base import Task
from voco.transfer.intervals import find_ranking

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 500


def constant_scores(task: Task, train: pd.DataFrame) -> dict[int, dict[str, float]]:
    """Scores of a predictor that knows only how common the labels are, per fold.

    Args:
        train: label columns and ``fold`` of the cases that were trained on.
    """
    return {int(fold): task.constant_scores(rows) for fold, rows in train.groupby("fold")}


def verdict(task: Task, predictions, constants, n: int, seed: int) -> dict[str, Any]:
    """Whether the main metric is above that of a constant predictor on the validation patients."""
    import pandas as pd

    rows = predictions[predictions["split"] == "validation"]
    base: dict[str, Any] = {"trained": None, "text": "", "constant": None, "difference": None}
    if rows.empty or not constants or set(rows["fold"]) - set(constants):
        why = "no validation predictions" if rows.empty else "the labels of the training cases are not known"
        return base | {"text": f"not judged: {why}"}
    tables = []
    for fold, own in rows.groupby("fold"):
        units = task.to_units(own)
        blind = task.to_units(own.assign(**constants[int(fold)]))
        tables.append(units.assign(**{f"constant_{name}": blind[name] for name in task.score_columns}))
    units = pd.concat(tables, ignore_index=True)
    sign = 1.0 if task.higher_is_better else -1.0

    def blind_value(frame) -> float:
        return task.main_value(frame.assign(**{name: frame[f"constant_{name}"] for name in task.score_columns}))

    each = {name: bootstrap(units, units["patient"], f, n=0, folds=units["fold"]) for name, f in
            (("run", task.main_value), ("constant", blind_value))}  # fmt: skip
    run, constant = each["run"].value, each["constant"].value
    if not (math.isfinite(run) and math.isfinite(constant)):
        return base | {"text": f"not judged: {task.main_metric} is not defined on validation"}
    by_fold = [own for _, own in units.groupby("fold")]
    ranking = find_ranking(task, by_fold, task.main_metric, [task.main_value(own) for own in by_fold])
    if ranking is not None and ranking.kind == "auroc":  # that of a constant is 0.5, whoever is drawn
        drawn = bootstrap(units, units["patient"], ranking, n=n, seed=seed, folds=units["fold"])
        limits = [None if limit is None else limit - 0.5 for limit in (drawn.low, drawn.high)]
    else:
        drawn = bootstrap(
            units,
            units["patient"],
            lambda frame: sign * (task.main_value(frame) - blind_value(frame)),
            n=min(n, _DRAWS),
            seed=seed,
            folds=units["fold"],
        )
        limits = [drawn.low, drawn.high]
    trained = limits[0] is not None and limits[0] > 0
    side = "above" if task.higher_is_better else "below"
    shown = "" if limits[0] is None else f"; better by {_between(limits[0], limits[1])}, 95 % interval"
    text = (
        f"{'trained' if trained else 'did not train'}: validation {task.main_metric} {run:.3f} is "
        f"{'' if trained else 'not surely '}{side} the {constant:.3f} of a constant predictor{shown}"
    )
    difference = {"value": sign * (run - constant), "low": limits[0], "high": limits[1]}
    return {"trained": trained, "text": text, "constant": constant, "difference": difference}


def _between(low: float, high: float) -> str:
    return f"{low:+.3f} to {high:+.3f}"
