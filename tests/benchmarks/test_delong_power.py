from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.compare import delong, delong_of, detectable, detectable_kappa, holm
from benchmarks.power import detectable_in
from tests.benchmarks.tables import PE, table
from voco.errors import InputError
from voco.tasks import create_task


def literal_delong(y, a, b):
    """Formulas of the paper (1988), sums over pairs written out."""
    psi = lambda x, z: 1.0 if x > z else 0.5 if x == z else 0.0  # noqa: E731
    up, down, auc = [], [], []
    for scores in (a, b):
        x, z = scores[y == 1], scores[y == 0]
        up.append([sum(psi(i, j) for j in z) / len(z) for i in x])
        down.append([sum(psi(i, j) for i in x) / len(x) for j in z])
        auc.append(sum(up[-1]) / len(x))
    s10, s01 = np.cov(np.array(up)), np.cov(np.array(down))
    s = s10 / len(up[0]) + s01 / len(down[0])
    error = np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    return auc, error


@pytest.mark.parametrize("decimals", [9, 1])
def test_delong_is_the_formula_of_the_paper(decimals):
    rng = np.random.default_rng(decimals)
    y = (rng.random(60) < 0.4).astype(float)
    a, b = (np.round(rng.normal(size=60) + shift * y, decimals) for shift in (1.2, 0.6))
    found, (auc, error) = delong(y, a, b), literal_delong(y, a, b)
    z = norm.ppf(0.975)
    wanted = (*auc, auc[0] - auc[1], auc[0] - auc[1] - z * error, auc[0] - auc[1] + z * error)
    assert (found.auc_a, found.auc_b, found.difference, found.low, found.high) == pytest.approx(wanted, abs=1e-9)
    assert found.p == pytest.approx(2 * norm.sf(abs(auc[0] - auc[1]) / error), abs=1e-9)
    same = delong(y, a, a)
    assert (same.difference, same.p) == (0, 1)


def test_delong_refuses_where_it_does_not_apply():
    y, s = np.array([0, 1, 0, 1.0]), np.array([0.1, 0.9, 0.4, 0.3])
    for wrong, words in (
        ((y, s, s[:3]), "one length"),
        ((np.array([0, 1, 2, 1]), s, s), "labels 0 and 1"),
        ((np.array([0, 0, 0, 1]), s, s), "two cases of each class"),
        ((y, s, np.array([1, np.nan, 0, 1])), "finite"),
        ((y, y, np.zeros(4)), "no variance"),
    ):
        with pytest.raises(InputError, match=words):
            delong(*wrong)
    with pytest.raises(InputError, match="one case per patient"):
        delong(y, s, s[::-1], patients=["a", "a", "b", "c"])
    one = table(np.tile(y, 2), np.tile(s, 2), folds=np.repeat([0, 1], 4))
    with pytest.raises(InputError, match="2 folds"):
        delong_of(PE, one, one)
    with pytest.raises(InputError, match="one yes-or-no output"):
        delong_of(create_task("imageclef_tb"), one, one)
    y, s = np.tile(y, 5), np.random.default_rng(0).normal(size=20)
    a, b = table(y, s), table(y, s**2)
    assert delong_of(PE, a, b.iloc[::-1]) == delong(y, s, s**2)


def test_holm_is_the_example_worked_by_hand():
    # 0.01 x 4, 0.03 x 2 and 0.04 x 1 raised to the one before, 0.005 x 4 ...
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(InputError):
        holm([0.1, 1.2])


def test_detectable_differences_are_those_of_the_standard_errors():
    # example of Hanley and McNeil (1982): AUROC 0.893 of 51 abnormal and 58 normal cases, standard error 0.032
    both = norm.ppf(0.975) + norm.ppf(0.8)
    assert detectable(109, 51, auroc=0.893, correlation=0.5) == pytest.approx(both * 0.032, abs=both * 0.0006)
    more = detectable(109, 51, auroc=0.893, correlation=0.5, seeds=4, seed_sd=0.2)
    assert more == pytest.approx(np.hypot(detectable(109, 51, auroc=0.893), both * 0.1), rel=1e-9)
    assert detectable(10, 0) == float("inf")
    with pytest.raises(InputError):
        detectable(10, 11)
    # kappa 0 with chance p: variance p / (n (1 - p))
    assert detectable_kappa(100, 0.5, kappa=0) == pytest.approx(both * 0.1)
    y = np.repeat([0.0, 1.0], [58, 51])
    assert detectable_in(PE, table(y, y), auroc=0.893)[0] == pytest.approx(detectable(109, 51, auroc=0.893))
