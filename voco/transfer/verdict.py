"""Did it train at all: do the scores of validation patients follow their labels, beyond a constant predictor?

Labels are shuffled among the validation patients, against the scores as they are. Where a network knows nothing, every
arrangement is as likely as the real one, so the share of arrangements whose main metric is as good is an exact p, at
every number of patients (Fisher; Ernst, Statistical Science 2004). What it cannot show, it does not say: with so few
patients that even perfect scores would come up too often by chance, the verdict is that it cannot be judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from voco.rng import derive_seed
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

RULE = "labels shuffled among validation patients, version 2"
LEVEL = 0.025  # one-sided
_POWER = 0.84  # normal quantile: a difference that is there is shown in 4 of 5 samples
_LEAST_DRAWS, _DRAWS_PER_CANDIDATE, _BLOCK = 2000, 200, 200
# An end is seen before all draws are made: p is then surely above this, and no verdict hangs on its digits.
_HOPELESS, _ENOUGH = 0.1, 30
_TIE = 1e-12
_MOST_PATIENTS = 100_000


@dataclass(frozen=True)
class _Fold:
    """Validation units of a fold. ``blocks`` holds the rows of each patient."""

    number: int
    units: pd.DataFrame
    blocks: list[np.ndarray]
    value: float
    constant: float


def constant_scores(task: Task, train: pd.DataFrame) -> dict[int, dict[str, float]]:
    """Scores of a predictor that knows only how common the labels are, per fold.

    Args:
        train: label columns and ``fold`` of the cases that were trained on.
    """
    return {int(fold): task.constant_scores(rows) for fold, rows in train.groupby("fold")}


def candidates(facts: Mapping[str, Any]) -> dict[int, int | None]:
    """Per fold, among how many models validation chose the one that is judged; None where that is not known.

    Args:
        facts: of ``results.json``. Those of older runs lack ``chosen_among``: their penalty was chosen on validation.
    """
    found: dict[int, int | None] = {}
    for fold, training in (facts.get("training") or {}).items():
        if "chosen_among" in training:
            count = training["chosen_among"]
        elif "regularization_tried" in training:
            count = sum(value is not None for value in training["regularization_tried"].values())
        elif "regularization" in training:  # lines without an encoder tried six penalties
            count = 6
        else:
            count = None if "best_step" in training else 1
        found[int(fold)] = None if count is None else max(1, int(count))
    return found


def verdict(
    task: Task, predictions: pd.DataFrame, constants, chosen_among: Mapping[int, int | None], seed: int
) -> dict[str, Any]:
    """Whether the main metric on validation is beyond that of a constant predictor, and not by chance.

    Labels move with their patient: all units of one receive, in random order, those of another; where the other has
    more units a part of its labels is drawn, where it has fewer they repeat. What validation chose among k models has
    its p multiplied by k (Bonferroni). Folds share patients between training and validation in ways that shuffling does
    not undo, so their metrics are taken as if they rose and fell together: a mean over folds is judged as surely as one
    of its folds would be.

    Args:
        predictions: rows as in ``predictions.csv``.
        constants: per fold, from ``constant_scores``.
        chosen_among: per fold, see ``candidates``; a fold that is missing chose nothing on validation.
        seed: of the shuffles.

    Returns:
        ``trained`` (None: not judged), ``text``, ``constant``, ``difference`` (better is positive), ``p``, and how it
        was judged: ``rule``, ``judged_on``, ``patients``, ``chosen_among``.
    """
    rows = predictions[predictions["split"] == "validation"]
    found: dict[str, Any] = {
        "trained": None, "text": "", "constant": None, "difference": None, "p": None, "rule": RULE,
        "judged_on": "validation", "patients": int(rows["patient"].nunique()), "chosen_among": None,
    }  # fmt: skip
    if rows.empty or not constants or set(rows["fold"]) - set(constants):
        why = "no validation predictions" if rows.empty else "the labels of the training cases are not known"
        return found | {"text": f"not judged: {why}"}
    folds = [_fold(task, int(number), own, constants[int(number)]) for number, own in rows.groupby("fold")]
    folds = [fold for fold in folds if math.isfinite(fold.value) and math.isfinite(fold.constant)]
    if not folds:
        return found | {"text": f"not judged: {task.main_metric} is not defined on validation"}
    run, constant = (float(np.mean([getattr(fold, name) for fold in folds])) for name in ("value", "constant"))
    sign = 1.0 if task.higher_is_better else -1.0
    found |= {"constant": constant, "difference": {"value": sign * (run - constant)}}
    counts = [chosen_among.get(fold.number, 1) for fold in folds]
    if None in counts:
        return found | {"text": "not judged: among how many scorings the weights were chosen is not known"}
    chosen = max(counts)
    found |= {"chosen_among": chosen}
    if words := _too_few(task, folds, chosen):
        return found | {"text": words}
    p, surprise = _shuffled(task, folds, chosen, seed)
    trained = run != constant and sign * (run - constant) > 0 and p <= LEVEL
    text = _words(task, run, constant, trained, p, chosen, folds, surprise)
    return found | {"trained": trained, "text": text, "p": p}


def _fold(task: Task, number: int, rows: pd.DataFrame, constant: Mapping[str, float]) -> _Fold:
    units = task.to_units(rows)
    units = units[units[task.label_columns].notna().any(axis=1)].reset_index(drop=True)
    if units.empty:
        return _Fold(number, units, [], math.nan, math.nan)
    member = np.unique(units["patient"].astype(str), return_inverse=True)[1]
    blocks = [np.flatnonzero(member == patient) for patient in range(member.max() + 1)]
    blind = units.assign(**{name: constant[name] for name in task.score_columns})
    return _Fold(number, units, blocks, task.main_value(units), task.main_value(blind))


def _shuffled(task: Task, folds: Sequence[_Fold], chosen: int, seed: int) -> tuple[float, float]:
    """p of the mean over folds, times the models it was chosen among, and by how many standard deviations it is off."""
    sign = 1.0 if task.higher_is_better else -1.0
    value = float(np.mean([sign * fold.value for fold in folds]))
    rngs = [np.random.default_rng(derive_seed(seed, "verdict", fold.number)) for fold in folds]
    wanted, draws = max(_LEAST_DRAWS, _DRAWS_PER_CANDIDATE * chosen), np.zeros((len(folds), 0))
    while True:
        new = [
            sign * task.main.shuffled(fold.units, shuffles(fold.blocks, _BLOCK, rng)) for fold, rng in zip(folds, rngs)
        ]
        draws = np.concatenate([draws, new], 1)
        # an arrangement for which the metric is not defined counts as one that does as well
        together = np.sort(np.where(np.isfinite(draws), draws, np.inf), 1).mean(0)
        as_good = int((together >= value - _TIE).sum())
        p = min(1.0, chosen * (1 + as_good) / (1 + len(together)))
        if len(together) >= wanted or (as_good >= _ENOUGH and p > _HOPELESS):
            break
    fine = np.isfinite(together)
    spread = together[fine].std() if fine.any() else 0.0
    return p, float((value - together[fine].mean()) / spread) if spread > _TIE else 0.0


def shuffles(blocks: Sequence[np.ndarray], draws: int, rng: np.random.Generator) -> np.ndarray:
    """Random places from where units take their labels, patients as wholes.

    Args:
        blocks: places of the units of each patient, together 0 to n - 1.

    Returns:
        (R, n) places.
    """
    sizes = np.array([len(block) for block in blocks])
    table = np.zeros((len(blocks), sizes.max()), int)
    for own, block in zip(table, blocks):
        own[: len(block)] = block
    keys = rng.random((draws, *table.shape))
    keys[:, np.arange(table.shape[1]) >= sizes[:, None]] = np.inf
    order = keys.argsort(2)  # units of each patient in random order, what is empty comes last
    given = rng.permuted(np.tile(np.arange(len(blocks)), (draws, 1)), axis=1)
    places = np.zeros((draws, sizes.sum()), int)
    for patient, block in enumerate(blocks):
        giver = given[:, patient]
        for nth, unit in enumerate(block):
            places[:, unit] = table[giver, order[np.arange(draws), giver, nth % sizes[giver]]]
    return places


def _too_few(task: Task, folds: Sequence[_Fold], chosen: int) -> str:
    """Why it cannot be judged, empty where it can: even perfect scores come up too often when labels are shuffled."""
    fewest = min(folds, key=lambda fold: log_arrangements(_kinds(task, fold)))
    kinds = _kinds(task, fewest)
    ways, patients = log_arrangements(kinds), len(fewest.blocks)
    needed = math.log(chosen / LEVEL)
    if ways >= needed - 1e-9:
        return ""
    with_choice = f" and weights chosen among {chosen} scorings" if chosen > 1 else ""
    words = f"cannot be judged with {patients} validation patient{'s' * (patients != 1)}{with_choice}"
    words += " in a fold" if len(folds) > 1 else ""
    if ways <= 1e-9:
        return f"{words}: they all have the same labels"
    enough = next(
        (n for n in range(patients + 1, _MOST_PATIENTS) if log_arrangements(kinds, n / patients) >= needed - 1e-9), None
    )
    more = f"; from about {enough} on it can" if enough else ""
    return f"{words}: there are only {round(math.exp(ways))} ways to shuffle their labels{more}"


def _kinds(task: Task, fold: _Fold) -> Counter:
    """How many patients have the same labels, whatever their order."""
    labels = fold.units[task.label_columns].fillna(-1).to_numpy(float)
    found: Counter = Counter()
    for block in fold.blocks:
        rows = sorted(map(tuple, labels[block]))
        found[tuple(rows[:1] if len(set(rows)) == 1 else rows)] += 1
    return found


def log_arrangements(kinds: Mapping[tuple, int], times: float = 1.0) -> float:
    """Logarithm of the number of ways to shuffle the labels of patients, and of their units within each.

    Of a patient whose units differ only two orders count: units of a patient may drift together, and many of them must
    not stand in for other patients.

    Args:
        kinds: labels of the units of a patient, and how many patients have them.
        times: as if there were so many times the patients.
    """
    counts = {kind: times * count for kind, count in kinds.items()}
    total = math.lgamma(sum(counts.values()) + 1) - sum(math.lgamma(count + 1) for count in counts.values())
    for kind, count in counts.items():
        total += count * math.log(2) * (len(kind) > 1)
    return total


def _words(task: Task, run, constant, trained: bool, p: float, chosen: int, folds: Sequence[_Fold], surprise) -> str:
    from statistics import NormalDist

    side = "above" if task.higher_is_better else "below"
    patients = len({str(name) for fold in folds for name in fold.units["patient"]})
    how = f"p {p:.2g} when labels are shuffled among {patients} patients"
    how += f", times the {chosen} models that validation chose among" if chosen > 1 else ""
    if not trained and surprise > 0:
        needed = NormalDist().inv_cdf(1 - LEVEL / chosen) + _POWER
        size = float(f"{patients * max(1.0, (needed / surprise) ** 2):.2g}")
        how += f"; about {size:.0f} would show a difference of this size" if size < _MOST_PATIENTS else ""
    return (
        f"{'trained' if trained else 'did not train'}: validation {task.main_metric} {run:.3f} is "
        f"{'' if trained else 'not surely '}{side} the {constant:.3f} of a constant predictor ({how})"
    )
