from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.statistics.influence import LEAST_PATIENTS, WholeMetric, influence, main_parts
from tests.benchmarks.tables import PE, table
from tests.tasks.tables import TASKS, of_table, units_of
from voco.errors import InputError


@pytest.mark.parametrize("name", TASKS)
def test_parts_are_the_metric_of_the_task(name):
    task = TASKS[name]
    units = units_of(task)
    parts = main_parts(task, units)
    assert not any(isinstance(part, WholeMetric) for part in parts)
    mean = np.nanmean([part.value() for part in parts])
    assert mean == pytest.approx(task.main_value(units), abs=1e-9)
    assert task.main.range[0] <= mean <= task.main.range[1]


@pytest.mark.parametrize("name", TASKS)
def test_sums_are_what_a_jackknife_or_delong_gives(name):
    """Leave out one patient after the other with the task's own metric; AUROCs pair by pair."""
    task = TASKS[name]
    units = units_of(task)
    found = influence(task, units)
    assert found.value == pytest.approx(task.main_value(units)) and found.why_not == ""
    own = found.sums.sum(0)
    n = len(units)
    without = np.array([task.main_value(units.drop(index=i)) for i in range(n)])
    jackknife = (n - 1) / n * ((without - without.mean()) ** 2).sum()
    # of AUROCs and recalls fewer patients count than all: n / (n - 1) of a class in place of that of all
    known = not units[list(task.label_columns)].isna().any(axis=None)
    exact = known and name in ("kappa", "accuracy", "rmse", "r2", "mae")
    assert (own**2).sum() == pytest.approx(jackknife, rel=1e-9 if exact else 1.5 / (found.sizes.min() - 1))


def literal_covariance(y, scores):
    """DeLong et al. (1988), sums over pairs written out, of several AUROCs."""
    psi = lambda x, z: 1.0 if x > z else 0.5 if x == z else 0.0  # noqa: E731
    up, down = [], []
    for s in scores:
        x, z = s[y == 1], s[y == 0]
        up.append([sum(psi(i, j) for j in z) / len(z) for i in x])
        down.append([sum(psi(i, j) for i in x) / len(x) for j in z])
    return np.cov(np.array(up)) / len(up[0]) + np.cov(np.array(down)) / len(down[0])


@pytest.mark.parametrize("decimals", [9, 1])
def test_covariances_of_aurocs_are_delongs(decimals):
    rng = np.random.default_rng(decimals)
    y = (rng.random(60) < 0.4).astype(float)
    scores = [np.round(rng.normal(size=60) + shift * y, decimals) for shift in (1.2, 0.6, 0.9)]
    sums = np.stack([influence(PE, table(y, s)).sums.sum(0) for s in scores])
    assert sums @ sums.T == pytest.approx(literal_covariance(y, scores), abs=1e-12)


def literal_clustered(y, s, patient):
    """Obuchowski (1997): placements summed per patient, with patients who have units of both classes."""
    m, n, patients = (y == 1).sum(), (y == 0).sum(), np.unique(patient)
    ones, zeros = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    won = {(i, j): (s[i] > s[j]) + 0.5 * (s[i] == s[j]) for i in ones for j in zeros}
    up = {i: np.mean([won[i, j] for j in zeros]) for i in ones}
    down = {j: np.mean([won[i, j] for i in ones]) for j in zeros}
    area = np.mean(list(up.values()))
    x = np.array([sum(up[i] - area for i in np.flatnonzero((patient == p) & (y == 1))) for p in patients])
    z = np.array([sum(down[j] - area for j in np.flatnonzero((patient == p) & (y == 0))) for p in patients])
    with_up, with_down = (len(np.unique(patient[y == k])) for k in (1, 0))
    s10 = with_up / ((with_up - 1) * m) * (x**2).sum()
    s01 = with_down / ((with_down - 1) * n) * (z**2).sum()
    s11 = len(patients) / (len(patients) - 1) * (x * z).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("mixed", [False, True])
def test_units_of_a_patient_are_summed_as_in_obuchowski(mixed):
    rng = np.random.default_rng(5)
    patient = np.repeat(np.arange(30), 3)
    y = (rng.random(90) < 0.4).astype(float) if mixed else np.repeat((np.arange(30) % 2).astype(float), 3)
    s = rng.normal(size=90) + y + rng.normal(size=30)[patient]
    own = influence(PE, table(y, s, patients=patient)).sums.sum(0)
    # a patient of both classes: factors of both classes' patients stand in place of that of all, which is close
    assert (own**2).sum() == pytest.approx(literal_clustered(y, s, patient), rel=0.01 if mixed else 1e-9)


def test_two_rows_of_a_patient_that_say_the_same_are_one():
    rng = np.random.default_rng(1)
    labels, scores = np.tile([0.0, 1.0], 40), rng.normal(size=80)
    single = influence(PE, table(labels, scores))
    doubled = influence(PE, table(np.repeat(labels, 2), np.repeat(scores, 2), patients=np.repeat(np.arange(80), 2)))
    assert (doubled.sums**2).sum() == pytest.approx((single.sums**2).sum()) and doubled.patients == 80


def test_folds_are_averaged_and_repeats_do_not_count_twice():
    rng = np.random.default_rng(2)
    labels, scores = np.tile([0.0, 1.0], 40), rng.normal(size=80)
    folds = np.repeat([0, 1], 40)
    found = influence(PE, table(labels, scores + 100 * folds, folds=folds))
    each = [influence(PE, table(labels[folds == f], scores[folds == f])) for f in (0, 1)]
    assert found.value == pytest.approx(np.mean([one.value for one in each]))
    assert (found.sums**2).sum() == pytest.approx(sum((one.sums**2).sum() for one in each) / 4)
    again = pd.concat([table(labels, scores, folds=0), table(labels, scores, folds=1)])
    once = influence(PE, table(labels, scores))
    assert influence(PE, again).sums == pytest.approx(once.sums)  # the same patients twice are no more patients


def test_no_variance_where_patients_are_too_few():
    rng = np.random.default_rng(3)
    for positive, words in ((1, "one patient alone is positive"), (2, f"an interval needs {LEAST_PATIENTS}")):
        y = (np.arange(30) < positive).astype(float)
        found = influence(PE, table(y, rng.normal(size=30)))
        assert words in found.why_not and np.isfinite(found.value)
    assert influence(PE, table(np.arange(30) < 3, rng.normal(size=30))).why_not == ""
    empty = influence(PE, table(np.zeros(5), np.arange(5.0)))
    assert np.isnan(empty.value) and "not defined" in empty.why_not
    with pytest.raises(InputError, match="empty"):
        influence(PE, table([], []))


def test_a_number_that_one_patient_makes_defined_has_no_interval():
    task = TASKS["r2"]
    units = units_of(task, n=12, unknown=0).assign(label_x=np.r_[1.0, np.zeros(11)])
    assert influence(task, units).why_not == "left out one by one, 1 of 12 patients leave the number undefined"


def test_a_metric_without_parts_is_left_out_by_the_task_itself():
    task = of_table("regression", "spearman")
    units = units_of(task, n=20, unknown=0)
    found = influence(task, units)
    without = np.array([task.main_value(units.drop(index=i)) for i in range(20)])
    assert (found.sums**2).sum() == pytest.approx(19 / 20 * ((without - without.mean()) ** 2).sum())
