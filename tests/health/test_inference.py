"""Sign flips, intervals and prediction limits against literal loops, scipy and simulated cohorts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from voco.errors import InputError
from voco.health.inference import chance_limit, compare, interval, sign_flip_p
from voco.health.scores import Tally, position_tallies, tally_rows


def test_swapping_run_and_line_within_patients_and_pooling_again_gives_the_p_value():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, (7, 5)).astype(float)
    one, other = (Tally(rng.binomial(weight.astype(int), p).astype(float), weight) for p in (0.6, 0.4))
    observed, count = one.value - other.value, 0
    for swapped in itertools.product((False, True), repeat=7):
        choice = np.array(swapped)[:, None]
        mine, theirs = np.where(choice, other.hits, one.hits), np.where(choice, one.hits, other.hits)
        count += Tally(mine, weight).value - Tally(theirs, weight).value >= observed - 1e-12
    found = compare(one, other)
    assert found.value == pytest.approx(observed)
    assert found.p == pytest.approx(count / 2**7)


def test_sign_flips_of_one_sample_are_scipys_permutation_test():
    change = np.random.default_rng(1).normal(0.3, 1, 9)
    expected = stats.permutation_test(
        (change,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert sign_flip_p(change) == pytest.approx(expected.pvalue)
    many = np.random.default_rng(2).normal(0.35, 1, 40)
    assert sign_flip_p(many) == pytest.approx(stats.ttest_1samp(many, 0, alternative="greater").pvalue, abs=0.01)
    assert sign_flip_p(many) == sign_flip_p(many)


def test_few_patients_cannot_be_sure_and_nothing_is_not_a_difference():
    assert sign_flip_p(np.ones(5)) == 2**-5 and sign_flip_p(np.ones(6)) == 2**-6
    assert sign_flip_p(np.zeros(8)) == 1.0 and sign_flip_p(np.array([1.0, np.nan])) == 1.0
    same = tally_rows(np.arange(8), np.linspace(0, 1, 8), share=True)
    found = compare(same, same)
    assert (found.value, found.p, found.low, found.needed) == (0.0, 1.0, None, None)
    assert not found.surely_above


@pytest.mark.parametrize("patients", [2, 3, 4, 6, 10, 20])
def test_equal_descriptors_are_called_better_at_the_stated_rate(patients):
    rng = np.random.default_rng(patients)
    called = 0
    for _ in range(800):
        one, other = (tally_rows(np.arange(patients), rng.binomial(24, 0.3, patients) / 24) for _ in range(2))
        called += compare(one, other).surely_above
    assert called / 800 <= 0.025 + 2.5 * np.sqrt(0.025 * 0.975 / 800)
    assert patients >= 6 or called == 0


@pytest.mark.parametrize("patients", [4, 6, 10, 25])
def test_intervals_hold_the_true_score_about_95_times_in_100(patients):
    rng = np.random.default_rng(patients)
    inside = 0
    for _ in range(600):
        skill = rng.beta(6, 9, patients)  # patients differ; the mean is 0.4
        found = interval(tally_rows(np.arange(patients), rng.binomial(24, skill) / 24, share=True))
        inside += found is not None and found[0] < 0.4 < found[1]
    assert 0.92 <= inside / 600 <= 0.985


def test_the_interval_of_a_plain_mean_is_students():
    scans = np.random.default_rng(3).normal(0.4, 0.1, 12)
    low, high = interval(tally_rows(np.arange(12), scans))
    expected = stats.t.interval(0.95, 11, loc=scans.mean(), scale=scans.std(ddof=1) / np.sqrt(12))
    assert (low, high) == pytest.approx(expected)
    assert interval(tally_rows(np.zeros(3), np.ones(3))) is None  # one patient
    assert interval(tally_rows(np.arange(3), np.ones(3))) is None  # no width
    assert interval(tally_rows(np.arange(3), [1.0, 1.0, 0.9], share=True))[1] == 1.0


def test_influence_is_the_derivative_of_the_balanced_score():
    rng = np.random.default_rng(4)
    scan, labels = np.repeat(np.arange(6), 20), rng.random((120, 4))
    similarity = labels + rng.normal(scale=0.3, size=labels.shape)
    tally = position_tallies(scan, similarity, labels)["accuracy_balanced"]
    assert tally.value == pytest.approx(balanced_accuracy_score(labels.argmax(1), similarity.argmax(1)))
    assert tally.contributions.sum() == pytest.approx(tally.value)
    assert tally.influence.sum() == pytest.approx(0.0, abs=1e-12)
    for patient in range(6):
        weights = np.ones(6)
        weights[patient] += 1e-6
        moved = Tally(tally.hits * weights[:, None], tally.weight * weights[:, None])
        assert (moved.value - tally.value) / 1e-6 == pytest.approx(tally.influence[patient], abs=1e-5)


def test_scores_of_other_queries_are_not_compared():
    one = tally_rows(np.arange(12), np.linspace(0, 1, 12))
    with pytest.raises(InputError, match="same windows"):
        compare(one, tally_rows(np.arange(11), np.linspace(0, 1, 11)))


@pytest.mark.parametrize("networks", [5, 6])
def test_one_more_network_of_the_same_kind_passes_the_limit_in_one_of_forty(networks):
    rng = np.random.default_rng(networks)
    draws = rng.normal(0.3, 0.03, (4000, networks + 1))
    passed = np.mean([row[-1] > chance_limit(row[:-1]) for row in draws])
    assert passed == pytest.approx(0.025, abs=2.5 * np.sqrt(0.025 * 0.975 / 4000))


def test_so_many_patients_as_are_asked_for_do_show_the_difference():
    rng = np.random.default_rng(6)
    pilot = tally_rows(np.arange(400), rng.normal(0.1, 0.15, 400))
    nothing = tally_rows(np.arange(400), np.zeros(400))
    needed = compare(pilot, nothing).needed
    assert 17 <= needed <= 23  # paired t-test: 20 for a power of 0.8
    shown = [sign_flip_p(rng.normal(0.1, 0.15, needed)) <= 0.025 for _ in range(300)]
    assert 0.7 <= np.mean(shown) <= 0.9
