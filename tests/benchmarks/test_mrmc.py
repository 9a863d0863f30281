"""Multi-reader multi-case analysis against published results and slow formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t

from benchmarks.statistics.mrmc import TWO_RUNS, Side, analyse, crossed, limits, p_value
from benchmarks.statistics.power import power

# Van Dyke et al. (1993), cine MRI in aortic dissection: 5 readers, 2 modalities, 114 patients. Empirical AUROCs and the
# covariances of the jackknife as printed for "dataset02" in Chakraborty's RJafroc book (chapters on the
# Obuchowski-Rockette method) and, with the same results, in the README of Smith and Hillis' MRMCaov 0.1.5.
AUROC = np.array(
    [[0.9196457, 0.8587762, 0.9038647, 0.9731079, 0.8297907], [0.9478261, 0.9053140, 0.9217391, 0.9993559, 0.9299517]]
)
VAR, COV1, COV2, COV3 = 0.0008022883, 0.0003466137, 0.0003440748, 0.0002390284
# of each modality alone: error variance, Cov2
ALONE = ((0.0010141028, 0.0004839618), (0.0005904738, 0.0002041879))
MANY = 10**9  # patients, so that those have no degrees of freedom of their own, as in the papers


def sums_of(covariance: np.ndarray) -> np.ndarray:
    """(J, 1, P) sums whose products are a covariance matrix."""
    return np.linalg.cholesky(covariance)[:, None, :]


@pytest.fixture(scope="module")
def van_dyke():
    same_reader, same_modality = np.tile(np.eye(5, dtype=bool), (2, 2)), np.kron(np.eye(2, dtype=bool), np.ones((5, 5)))
    matrix = np.where(same_modality, COV2, COV3)
    matrix[same_reader] = COV1
    np.fill_diagonal(matrix, VAR)
    sums = sums_of(matrix)
    return Side(AUROC[0], sums[:5]), Side(AUROC[1], sums[5:])


def test_the_example_of_van_dyke(van_dyke):
    found = analyse([crossed(*van_dyke)], [MANY], MANY)
    low, high = limits(found.point, found.error, found.freedom, 0.95)
    printed = (-0.04380032, 0.02074862, 15.25967, -0.0879594986, 0.0003588544)
    assert (found.point, found.error, found.freedom, low, high) == pytest.approx(printed, rel=2e-5, abs=1e-7)
    assert p_value(found.point, found.error, found.freedom) == pytest.approx(0.05166569, rel=2e-5)


def test_the_example_with_readers_held_fixed(van_dyke):
    found = analyse([crossed(*van_dyke)], [MANY], MANY)
    low, high = limits(found.point, found.fixed_error, found.fixed_freedom, 0.95)
    assert (low, high) == pytest.approx((-0.080485914, -0.0071147303), rel=2e-5)
    assert (found.point / found.fixed_error) ** 2 == pytest.approx(5.4759532, rel=2e-5)
    assert p_value(found.point, found.fixed_error, found.fixed_freedom) == pytest.approx(0.019279843, rel=2e-5)


@pytest.mark.parametrize(
    ("modality", "printed"),
    [(0, (0.8970370, 0.03317360, 12.74465, 0.8252236, 0.9688505)),
     (1, (0.9408374, 0.02156637, 12.71019, 0.8941378, 0.9875369))],
)  # fmt: skip
def test_the_example_one_modality_alone(modality, printed):
    variance, shared = ALONE[modality]
    matrix = np.full((5, 5), shared) + (variance - shared) * np.eye(5)
    found = analyse([Side(AUROC[modality], sums_of(matrix))], [MANY], MANY)
    low, high = limits(found.point, found.error, found.freedom, 0.95)
    assert (found.point, found.error, found.freedom, low, high) == pytest.approx(printed, rel=2e-5)


def test_the_published_power_of_a_larger_study():
    """Ten readers and 165 patients would find the difference of the example: 0.80541995, in the tests of RJafroc."""
    of_reader, smaller = 0.00020040252, 114 / 165
    parts = {
        "of_runs": 2 * (of_reader + smaller * (VAR - COV1 - COV2 + COV3)),
        "of_patients": 2 * smaller * (COV2 - COV3),
    }
    assert power(0.043800322, **parts, runs=10) == pytest.approx(0.80541995, abs=1e-6)


def runs_of(rng, runs, groups=2, patients=30):
    return Side(rng.normal(size=runs), rng.normal(size=(runs, groups, patients)))


def test_nested_runs_are_the_formula_written_out():
    rng = np.random.default_rng(0)
    a, b = runs_of(rng, 4), runs_of(rng, 3)
    a, b = (Side(30 * side.values, side.sums) for side in (a, b))  # runs differ more than patients explain
    found = analyse([a, Side(b.values, b.sums, -1)], [10, 20], 30)
    x, y = a.sums.sum(1), b.sums.sum(1)  # (runs, patients)
    cov2 = [np.mean([s[i] @ s[j] for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (x, y)]
    cov3 = np.mean([i @ j for i in x for j in y])
    shared = max(sum(cov2) - 2 * cov3, 0)
    single = [side.values.var(ddof=1) / side.runs for side in (a, b)]
    groups = ((a.sums.mean(0) - b.sums.mean(0)) ** 2).sum(-1)
    freedom = groups.sum() ** 2 / (groups[0] ** 2 / 9 + groups[1] ** 2 / 19)
    variance = sum(single) + shared
    wanted = variance**2 / (single[0] ** 2 / 3 + single[1] ** 2 / 2 + shared**2 / min(freedom, 29))
    assert variance > found.fixed_error**2
    assert found.error == pytest.approx(np.sqrt(variance)) and found.freedom == pytest.approx(wanted)
    assert found.fixed_error == pytest.approx(np.linalg.norm(x.mean(0) - y.mean(0)))


def test_a_side_of_one_run_is_fixed():
    """Only the spread of the other side counts between runs: the same as differences from the one run."""
    rng = np.random.default_rng(1)
    a, line = runs_of(rng, 5), runs_of(rng, 1)
    found = analyse([a, Side(line.values, line.sums, -1)], [15, 15], 30)
    differences = analyse([crossed(a, line)], [15, 15], 30)
    for name in ("point", "error", "freedom", "fixed_error", "fixed_freedom"):
        assert getattr(found, name) == pytest.approx(getattr(differences, name))


def test_one_run_each_leaves_the_patients():
    rng = np.random.default_rng(2)
    a, b = runs_of(rng, 1), runs_of(rng, 1)
    for sides in ([crossed(a, b)], [a, Side(b.values, b.sums, -1)]):
        found = analyse(sides, [15, 15], 30)
        assert found.error == found.fixed_error == pytest.approx(np.linalg.norm((a.sums - b.sums).sum((0, 1))))


def test_runs_that_differ_wildly_are_students_t():
    """Nothing shared over patients: a one-sample t over runs, as textbooks have it."""
    values = np.array([0.1, 0.3, 0.2])
    found = analyse([Side(values, np.zeros((3, 1, 8)))], [8], 8)
    low, high = limits(found.point, found.error, found.freedom, 0.95)
    half = t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half)) and found.freedom == pytest.approx(2)


def test_runs_that_agree_leave_a_normal_over_patients():
    sums = np.tile(np.random.default_rng(3).normal(size=(1, 1, 50)), (4, 1, 1))
    found = analyse([Side(np.full(4, 0.2), sums)], [MANY], MANY)
    assert found.error == pytest.approx(found.fixed_error)
    assert p_value(found.point, found.error, found.freedom) == pytest.approx(2 * norm.sf(0.2 / found.error), rel=1e-6)


def test_other_runs_are_never_surer_than_these_runs():
    """Runs that agree by chance more than their patients allow: the variance is that of these runs."""
    rng = np.random.default_rng(5)
    side = Side(np.array([0.2, 0.2001, 0.1999]), rng.normal(size=(3, 1, 40)))
    found = analyse([side], [40], 40)
    assert found.error == found.fixed_error and found.freedom == found.fixed_freedom
    spread = analyse([Side(side.values * [1, 200, -200], side.sums)], [40], 40)
    assert spread.error > spread.fixed_error and spread.freedom < spread.fixed_freedom


def test_two_runs_have_few_degrees_of_freedom_unless_nothing_is_random():
    sums = np.tile(np.random.default_rng(6).normal(size=(1, 1, 50)), (2, 1, 1))
    for values, freedom in (((0.2, 0.3), TWO_RUNS), ((0.2, 0.2), 49)):
        found = analyse([Side(np.array(values), sums)], [50], 50)
        assert found.freedom == pytest.approx(freedom)


def test_many_analyses_at_once_are_the_single_ones():
    rng = np.random.default_rng(4)
    a, b = (Side(rng.normal(size=(6, 3)), rng.normal(size=(6, 3, 2, 20)), sign) for sign in (1, -1))
    together = analyse([a, b], [10, 10], 20)
    for i in range(6):
        alone = analyse([Side(a.values[i], a.sums[i]), Side(b.values[i], b.sums[i], -1)], [10, 10], 20)
        assert (together.error[i], together.freedom[i]) == pytest.approx((alone.error, alone.freedom))
