from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from benchmarks.statistics.compare import difference, influence, interval, why_not_paired
from tests.benchmarks.tables import PE, sources, table
from voco.errors import InputError


def test_a_difference_is_the_mean_over_runs_of_scikit_learns():
    a, b = sources(np.random.default_rng(3), (1.4, 0.9), seeds=3, n=50)
    found = difference(PE, a, b)
    y = a[0]["label_pe"]
    each = [roc_auc_score(y, i["score_pe"]) - roc_auc_score(y, j["score_pe"]) for i, j in zip(a, b)]
    assert found.point == pytest.approx(np.mean(each), abs=1e-12)
    assert (found.units, found.patients, found.runs, found.direction) == (50, 50, 3, "higher")
    assert found.design == "crossed" and found.notes == ["fewer than 5 runs (3)"]
    half = t.ppf(0.975, found.freedom) * found.error
    assert (found.low, found.high) == pytest.approx((found.point - half, found.point + half))
    assert found.p == pytest.approx(2 * t.sf(abs(found.point) / found.error, found.freedom))
    assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


def test_runs_that_were_read_before_give_the_same_numbers():
    a, b = sources(np.random.default_rng(4), (1.4, 0.9), seeds=2, n=40)
    kept = [[influence(PE, one) for one in side] for side in (a, b)]
    for paired in (True, False):
        assert difference(PE, *kept, paired=paired) == difference(PE, a, b, paired=paired)
    assert interval(PE, kept[0]) == interval(PE, a)
    with pytest.raises(InputError, match="other test units"):
        difference(PE, kept[0], [influence(PE, one.iloc[1:]) for one in b])


def test_swapping_mirrors():
    a, b = sources(np.random.default_rng(5), (1.3, 1.0))
    for paired, other, design in ((True, b, "crossed"), (False, b[:2], "nested"), (False, b[:1], "nested")):
        one, two = difference(PE, a, other, paired=paired), difference(PE, other, a, paired=paired)
        assert (two.point, two.low, two.high) == pytest.approx((-one.point, -one.high, -one.low), abs=1e-12)
        assert (two.fixed_low, two.fixed_high) == pytest.approx((-one.fixed_high, -one.fixed_low), abs=1e-12)
        assert one.p == pytest.approx(two.p) and one.design == two.design == design
    assert (one.runs_a, one.runs_b, two.runs_a) == (3, 1, 1) and "runs are not paired: 3 and 1" in one.notes


def test_where_nothing_varies_there_is_no_interval():
    a, _ = sources(np.random.default_rng(5), (1.3, 1.0))
    same = difference(PE, a, a)
    assert (same.point, same.low, same.p) == (0, None, None) and "nothing varies" in same.notes[-1]
    y = np.repeat([0.0, 1.0], 10)
    perfect = interval(PE, [table(y, y)])
    assert perfect.point == 1 and perfect.low is None  # no interval of zero width


def test_the_order_of_rows_changes_nothing_and_one_run_says_so():
    a, b = sources(np.random.default_rng(7), (1.3, 1.0), seeds=1)
    shuffled = [one.sample(frac=1, random_state=0) for one in b]
    found = difference(PE, a, b)
    assert difference(PE, a, shuffled) == found == difference(PE, a, b, paired=False)
    assert found.design == "fixed" and (found.low, found.high) == (found.fixed_low, found.fixed_high)
    words = "one run: the interval says nothing about another training run"
    assert words in interval(PE, a).notes and words in found.notes


def test_a_row_stays_within_the_range_of_its_metric():
    y = np.repeat([0.0, 1.0], 12)
    rng = np.random.default_rng(6)
    for shift in (0, 1, 3):
        found = interval(PE, [table(y, rng.normal(size=24) + shift * y) for _ in range(3)])
        assert 0 < found.low < found.point < found.high < 1
        assert found.low <= found.fixed_low < found.point < found.fixed_high <= found.high or shift < 3


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
    one_class = interval(PE, [table([0, 0, 0], [1, 2, 3])])
    assert np.isnan(one_class.point) and one_class.low is None and "not defined" in one_class.notes[0]
