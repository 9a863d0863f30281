"""Intervals: the fast path against scikit-learn on repeated rows, patients drawn whole, folds averaged, coverage."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from voco.stats.bootstrap import auroc_interval, bootstrap, resample_counts
from voco.stats.ranking import auroc, average_precision
from voco.tasks.outputs import Output
from voco.tasks.standard import AUROC, AveragePrecision


def table(n=60, positive=0.3, seed=0, scans=1, effect=1.0, ties=False):
    """n patients with correlated scans of the same label."""
    rng = np.random.default_rng(seed)
    y = np.repeat((rng.random(n) < positive).astype(float), scans)
    z = effect * y + np.repeat(rng.normal(size=n), scans) + 0.3 * rng.normal(size=n * scans)
    scores = np.round(z) if ties else z
    return pd.DataFrame({"y": y, "s": scores, "patient": np.repeat([f"p{i}" for i in range(n)], scans)})


def ranking(kind="auroc"):
    """A ranking of the column ``s`` by labels in ``y``."""
    metric = {"auroc": AUROC, "ap": AveragePrecision}[kind]
    return metric((Output("y"),), arrays=lambda rows: [(rows["y"].to_numpy(float), rows[["s"]].to_numpy(float))])


@pytest.mark.parametrize("ties", [False, True])
def test_weights_stand_for_repeated_rows(ties):
    frame = table(ties=ties)
    y, s = frame["y"].to_numpy(), frame["s"].to_numpy()
    counts = np.random.default_rng(1).multinomial(len(y), np.full(len(y), 1 / len(y)), size=20)
    for fast, slow in ((auroc, roc_auc_score), (average_precision, average_precision_score)):
        expected = [slow(np.repeat(y, row), np.repeat(s, row)) for row in counts]
        assert fast(y, s, counts) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(auroc(y, s, np.array([y, 1 - y]))).all()
    assert np.isnan(average_precision(y, s, (1 - y)[None])).all()


def test_blocks_do_not_change_the_result(monkeypatch):
    frame = table(40)
    counts = resample_counts(40, 50, 0)
    whole = auroc(frame["y"], frame["s"], counts)
    monkeypatch.setattr("voco.stats.ranking._CELLS", 130)
    assert np.array_equal(auroc(frame["y"], frame["s"], counts), whole)


@pytest.mark.parametrize("kind,slow", [("auroc", roc_auc_score), ("ap", average_precision_score)])
def test_both_ways_give_the_same_interval(kind, slow):
    frame = table(200, scans=2)
    groups, folds = frame["patient"], np.arange(len(frame)) // 2 % 3

    def plain(rows):
        return slow(rows["y"], rows["s"]) if 0 < rows["y"].sum() < len(rows) else None

    for own in (None, folds):
        fast = bootstrap(frame, groups, ranking(kind), n=25, folds=own)
        named = bootstrap(frame, groups, lambda rows: {"m": plain(rows)}, n=25, folds=own)["m"]
        if kind == "auroc":  # AP without positives is NaN in the one and left out in the other all the same
            assert fast.undefined == named.undefined
        assert (fast.point, fast.low, fast.high) == pytest.approx((named.point, named.low, named.high), abs=1e-12)
    expected = np.mean([plain(frame[folds == f]) for f in range(3)])
    assert fast.point == pytest.approx(expected, abs=1e-12) and fast.patients == 200


def test_patients_are_drawn_whole():
    frame = pd.DataFrame({"patient": np.repeat(list("abcdefghijkl"), 3), "x": np.repeat([0.0, 1.0, 2.0, 3.0] * 3, 3)})
    sizes = []

    def mean(rows):
        sizes.append(tuple(rows["patient"].value_counts() % 3))
        return rows["x"].mean()

    found = bootstrap(frame, frame["patient"], mean, n=200)
    assert all(not any(size) for size in sizes) and found.low < 1.5 < found.high
    # scans that say nothing new do not narrow the interval
    single = bootstrap(frame[::3], frame["patient"][::3], lambda rows: rows["x"].mean(), n=200)
    assert (found.low, found.high) == (single.low, single.high)


def test_repeats_of_a_cross_validation_do_not_narrow_the_interval():
    frame = table(80)
    once = bootstrap(frame, frame["patient"], ranking(), n=500)
    many = pd.concat([frame] * 10, ignore_index=True)
    repeated = bootstrap(many, many["patient"], ranking(), n=500, folds=np.repeat(np.arange(10), 80))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-12)


def test_undefined_draws_are_counted_and_too_many_give_no_interval():
    rare = pd.DataFrame({"y": [1.0] + 11 * [0.0], "s": np.arange(12) % 7, "patient": list("abcdefghijkl")})
    found = bootstrap(rare, rare["patient"], ranking("ap"), n=1000)
    assert found.undefined == pytest.approx(1000 * (11 / 12) ** 12, abs=60) and found.low is not None
    half = bootstrap(rare, rare["patient"], lambda rows: 1.0 if rows["y"].sum() > 3 else np.nan, n=200)
    assert half.low is None and "not defined" in half.reason
    mostly = bootstrap(rare, rare["patient"], lambda rows: 1.0 if len(set(rows["patient"])) == 12 else None, n=200)
    assert mostly.low is None and mostly.point == 1.0 and "of 200 resamples" in mostly.reason
    alone = bootstrap(rare, ["a"] * 12, ranking(), n=10)
    assert alone.low is None and alone.point == pytest.approx(0.5 / 11)
    assert bootstrap(rare[:0], [], ranking()).reason == "no rows"


def test_few_patients_have_no_interval_of_percentiles_and_nobody_has_one_of_no_width():
    frame = table(40)
    few = frame[:9]
    assert "9 patients are too few" in bootstrap(few, few["patient"], lambda rows: rows["s"].mean(), n=50).reason
    right = bootstrap(frame, frame["patient"], lambda rows: 1.0, n=50)
    assert right.low is None and "the same in every resample" in right.reason
    blind = bootstrap(frame.assign(s=0.3), frame["patient"], ranking(), n=50)
    assert blind.point == 0.5 and blind.low is None and "the same" in blind.reason
    for n in (1, 2, 3, 20, 200):  # scores that part the classes perfectly
        y = np.repeat([0.0, 1.0], n)
        found = bootstrap(pd.DataFrame({"y": y, "s": y}), np.arange(2 * n), ranking(), n=200)
        assert found.point == found.high == 1.0 and found.low < 1 - 1 / (2 * n + 1)
        assert found.low == auroc_interval(1.0, n, n)[0]


def test_the_interval_of_few_cases_solves_newcombes_equation():
    """The formula of method 5, written out, and its limit by a grid."""
    for area, m, n in ((1.0, 2, 2), (0.83, 6, 11), (0.5, 9, 4), (0.0, 5, 8)):
        grid = np.linspace(0, 1, 200_001)
        others = 0.5 * (m + n) - 1
        v = grid * (1 - grid) / (m * n) * (1 + others * (1 - grid) / (2 - grid) + others * grid / (1 + grid))
        inside = grid[(grid - area) ** 2 <= 1.959964**2 * v]
        assert auroc_interval(area, m, n) == pytest.approx((inside.min(), inside.max()), abs=1e-5)
    # what patients say several times does not count several times, nor does a second fold of the same ones
    few = table(12, positive=0.5, seed=2)
    once = bootstrap(few, few["patient"], ranking(), n=100)
    twice = pd.concat([few, few])
    assert bootstrap(twice, twice["patient"], ranking(), n=100).low == pytest.approx(once.low)
    folds = np.repeat([0, 1], 12)
    assert bootstrap(twice, twice["patient"], ranking(), n=100, folds=folds).low == pytest.approx(once.low)


def test_the_seed_is_all_that_counts():
    frame = table(120)
    one, same, other = (bootstrap(frame, frame["patient"], ranking(), n=200, seed=s) for s in (0, 0, 1))
    assert one == same and one.low != other.low


def test_the_interval_agrees_with_another_bootstrap():
    from scipy.stats import bootstrap as reference

    frame = table(120)
    ours = bootstrap(frame, frame["patient"], ranking(), n=2000)
    y, s = frame["y"].to_numpy(), frame["s"].to_numpy()

    def statistic(index):
        return auroc(y, s, np.bincount(index, minlength=len(y))[None])[0]

    theirs = reference((np.arange(len(y)),), statistic, n_resamples=1000, vectorized=False, method="percentile",
        random_state=0).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_speed():
    frame = table(1000)
    start = time.process_time()
    bootstrap(frame, frame["patient"], ranking(), n=2000, seed=5)
    assert time.process_time() - start < 2


@pytest.mark.slow
@pytest.mark.parametrize("scans", [1, 3])
def test_intervals_cover_the_truth(scans):
    """Binormal scores whose AUROC is known, correlated within patients: 95 % intervals hold it about as often."""
    from scipy.stats import norm

    spread = np.sqrt(2 * (1 + 0.3**2))
    truth = norm.cdf(1.2 / spread)
    inside = []
    for seed in range(400):
        frame = table(150, 0.35, seed, scans, effect=1.2)
        found = bootstrap(frame, frame["patient"], ranking(), n=1000, seed=seed)
        inside.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(inside) <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("scans", [1, 3])
@pytest.mark.parametrize("cases", [(2, 2), (3, 5), (5, 10), (10, 30)])
@pytest.mark.parametrize("truth", [0.5, 0.75, 0.9, 0.97])
def test_aurocs_of_few_cases_are_covered(scans, cases, truth):
    """In 91 % of draws at least, of two against two in 86 %; percentiles cover 9 % there."""
    from scipy.stats import norm

    patients = sum(cases)
    shift, missed = np.sqrt(2) * norm.ppf(truth), []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        who = np.repeat(np.arange(patients), rng.integers(1, scans + 1, patients))
        y = (who < cases[0]).astype(float)
        s = shift * y + np.sqrt(0.7) * rng.normal(size=patients)[who] + np.sqrt(0.3) * rng.normal(size=len(who))
        found = bootstrap(pd.DataFrame({"y": y, "s": s}), who, ranking(), n=100, seed=seed)
        missed.append(found.low > truth or found.high < truth)
    assert np.mean(missed) <= (0.14 if cases == (2, 2) else 0.09)
