from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t
from sklearn.metrics import roc_auc_score

from benchmarks.compare import difference, draw, interval, why_not_paired
from tests.benchmarks.tables import PE, sources, table
from voco.errors import InputError
from voco.tasks import create_task


def literal(a, b, draws, seed):
    """Two-level bootstrap written out: patients and pairs of seeds drawn with replacement, draw after draw."""
    rng = np.random.default_rng(seed)
    y = a[0]["label_pe"].to_numpy()

    def auroc(scores, labels):  # share of pairs in the right order
        pairs = scores[labels == 1][:, None] - scores[labels == 0]
        return (pairs > 0).mean() + (pairs == 0).mean() / 2

    x, z = (np.stack([one["score_pe"].to_numpy() for one in side]) for side in (a, b))
    found = []
    for _ in range(draws):
        rows, seeds = rng.integers(0, len(y), len(y)), rng.integers(0, len(a), len(a))
        each = [[auroc(side[k, rows], y[rows]) for k in seeds] for side in (x, z)]
        found.append(np.mean(each[0]) - np.mean(each[1]))
    return np.array(found)


def test_difference_is_that_of_a_literal_two_level_bootstrap():
    a, b = sources(np.random.default_rng(3), (1.4, 0.9), seeds=3, n=50)
    found = difference(PE, a, b, resamples=4000)
    y = a[0]["label_pe"]
    each = [roc_auc_score(y, i["score_pe"]) - roc_auc_score(y, j["score_pe"]) for i, j in zip(a, b)]
    assert found.point == pytest.approx(np.mean(each), abs=1e-12)
    drawn = literal(a, b, 1000, 0)
    error = 8 * drawn.std() / np.sqrt(1000)  # a 2.5 % quantile has a standard error of 2.7 deviations / root of draws
    assert [found.plain_low, found.plain_high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=error)
    assert (found.units, found.patients, found.seeds, found.direction) == (50, 50, 3, "higher")
    assert found.notes == ["fewer than 5 seeds (3)"]


def test_runs_that_were_drawn_before_give_the_same_numbers():
    a, b = sources(np.random.default_rng(4), (1.4, 0.9), seeds=2, n=40)
    kept = [[draw(PE, one, resamples=300, seed=7) for one in side] for side in (a, b)]
    for paired in (True, False):
        options = {"resamples": 300, "seed": 7, "paired_seeds": paired}
        assert difference(PE, *kept, **options) == difference(PE, a, b, **options)
    assert interval(PE, kept[0], resamples=300, seed=7) == interval(PE, a, resamples=300, seed=7)
    with pytest.raises(InputError, match="other test units"):
        difference(PE, kept[0], [draw(PE, one.iloc[1:], resamples=300, seed=7) for one in b])


def test_few_seeds_widen_the_interval_as_the_formula_says():
    """Seeds that differ and patients that all agree: the interval is that of Student's t over the seeds."""
    labels = np.repeat([0.0, 1.0], 400)
    wide = [table(labels, labels * shift + np.tile(np.linspace(-1, 1, 400), 2)) for shift in (0.2, 0.6, 1.4)]
    flat = [table(labels, np.tile(np.linspace(-1, 1, 400), 2))] * 3
    found = difference(PE, wide, flat, resamples=1500)
    values = np.array([roc_auc_score(labels, one["score_pe"]) - 0.5 for one in wide])
    half = t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
    assert found.high - found.point > 0.75 * half  # three values: their percentiles end at the largest
    assert found.plain_high - found.point < 0.5 * half
    assert found.stretch == pytest.approx(t.ppf(0.975, 2) / norm.ppf(0.975), rel=0.05)


def test_swapping_mirrors_and_a_run_does_not_differ_from_itself():
    a, b = sources(np.random.default_rng(5), (1.3, 1.0))
    for paired, other in ((True, b), (False, b[:2])):
        one = difference(PE, a, other, resamples=500, paired_seeds=paired)
        two = difference(PE, other, a, resamples=500, paired_seeds=paired)
        assert (two.point, two.low, two.high) == pytest.approx((-one.point, -one.high, -one.low), abs=1e-12)
        assert one.p == pytest.approx(two.p, rel=1e-3)
        assert (one.p < 0.05) == (not one.low <= 0 <= one.high)
    same = difference(PE, a, a, resamples=300)
    assert (same.point, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_draws_depend_on_the_test_set_alone():
    """The order of rows, and what a row is compared with, change nothing."""
    a, b = sources(np.random.default_rng(7), (1.3, 1.0), seeds=1)
    shuffled = [one.sample(frac=1, random_state=0) for one in b]
    assert difference(PE, a, shuffled, resamples=300) == difference(PE, a, b, resamples=300)
    assert "one seed: the interval says nothing about another training run" in interval(PE, a, resamples=300).notes


def test_patients_are_drawn_whole_and_folds_are_never_ranked_together():
    rng = np.random.default_rng(1)
    labels, scores = np.tile([0.0, 1.0], 40), rng.normal(size=80)
    scores[labels == 1] += 1
    single = interval(PE, [table(labels, scores)], resamples=2000)
    # two rows of a patient that say the same are one
    doubled = table(np.repeat(labels, 2), np.repeat(scores, 2), patients=np.repeat(np.arange(80), 2))
    twice = interval(PE, [doubled], resamples=2000)
    assert twice.patients == 80 and twice.point == pytest.approx(single.point)
    assert twice.high - twice.low == pytest.approx(single.high - single.low, rel=0.1)
    # the second fold's scores have another scale: pooled ranks would suffer
    folds = np.repeat([0, 1], 40)
    found = interval(PE, [table(labels, scores + 100 * folds, folds=folds)], resamples=300)
    each = [roc_auc_score(labels[folds == f], scores[folds == f]) for f in (0, 1)]
    assert found.point == pytest.approx(np.mean(each), abs=1e-12)


def test_what_cannot_be_paired_says_why():
    a, b = (table([0, 1, 0, 1], [1, 2, 3, 4]) for _ in range(2))
    assert why_not_paired(a, b, PE) == ""
    assert "label_pe differs for 1 of 4" in why_not_paired(a, b.assign(label_pe=[0, 1, 1, 1]), PE)
    assert "other test units: 3 in both, 1 only in the first, 0" in why_not_paired(a, b.iloc[:3], PE)
    assert "other patients" in why_not_paired(a, b.assign(patient="x"), PE)
    with pytest.raises(InputError, match="table 2 cannot be paired"):
        difference(PE, [a], [b.iloc[:3]])
    with pytest.raises(InputError, match="2 runs cannot be paired with 1"):
        difference(PE, [a, a], [b])
    with pytest.raises(InputError, match="at least one table"):
        interval(PE, [])
    one_class = interval(PE, [table([0, 0, 0], [1, 2, 3])], resamples=50)
    assert np.isnan(one_class.point) and one_class.low is None and "not defined" in one_class.notes[0]


def test_a_metric_without_a_fast_version_is_drawn_slowly(monkeypatch):
    monkeypatch.setattr("benchmarks.compare.SLOW_RESAMPLES", 40)
    task = create_task("table", labels=["x"], kind="regression", metric="spearman")
    task._define()
    rng = np.random.default_rng(0)
    labels = rng.normal(size=30)
    one = table(labels, labels).rename(columns={"label_pe": "label_x", "score_pe": "score_x"})
    found = interval(task, [one.assign(score_x=labels + rng.normal(size=30))], resamples=500)
    assert found.resamples == 40 and "draw by draw" in found.notes[-1] and found.low < found.point < found.high
