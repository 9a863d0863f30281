from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from benchmarks.statistics.power import detectable, detectable_in, detectable_kappa, holm, power
from tests.benchmarks.tables import PE, table
from voco.errors import InputError
from voco.tasks import create_task


def test_holm_is_the_example_worked_by_hand():
    # 0.01 x 4, 0.03 x 2 and 0.04 x 1 raised to the one before, 0.005 x 4 ...
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    with pytest.raises(InputError):
        holm([0.1, 1.2])


def test_detectable_differences_are_those_of_the_standard_errors():
    # example of Hanley and McNeil (1982): AUROC 0.893 of 51 abnormal and 58 normal cases, standard error 0.032; t of
    # about 80 degrees of freedom in place of a normal adds some hundredths
    both = norm.ppf(0.975) + norm.ppf(0.8)
    assert detectable(109, 51, auroc=0.893, correlation=0.5) == pytest.approx(1.015 * both * 0.032, rel=0.02)
    assert detectable(10, 0) == float("inf")
    with pytest.raises(InputError):
        detectable(10, 11)
    with pytest.raises(InputError, match="runs of one source agree"):
        detectable(100, 50, correlation=0.9)
    # kappa 0 with chance p: variance p / (n (1 - p))
    assert detectable_kappa(100, 0.5, kappa=0) == pytest.approx(both * 0.1, rel=0.02)
    y = np.repeat([0.0, 1.0], [58, 51])
    assert detectable_in(PE, table(y, y), auroc=0.893)[0] == pytest.approx(detectable(109, 51, auroc=0.893))


def test_more_runs_and_more_patients_detect_smaller_differences():
    by_runs = [detectable(120, 48, runs=runs, run_sd=0.04) for runs in (3, 5, 10, 1000)]
    assert by_runs == sorted(by_runs, reverse=True)
    # what the patients share is left in the end: z of 2 SE^2 (0.8 - 0.5) where one run has 2 SE^2 (1 - 0.5)
    one = detectable(100_000, 40_000)
    assert detectable(100_000, 40_000, runs=100_000) == pytest.approx(one * np.sqrt(0.3 / 0.5), rel=1e-3)
    assert detectable(400, 3) > detectable(400, 6) > detectable(400, 200)


@pytest.mark.parametrize(("runs", "patients"), [(3, 40), (10, 40), (1, 12)])
def test_power_is_that_of_simulated_tests(runs, patients):
    """Estimates drawn from the model, judged by t with the degrees of freedom of the model."""
    rng, n, effect, of_runs, of_patients = np.random.default_rng(runs), 200_000, 0.1, 0.002, 0.0015
    spread = of_runs / runs * (runs > 1)
    variance = spread + of_patients
    freedom = variance**2 / (of_patients**2 / patients + (spread**2 / (runs - 1) if runs > 1 else 0))
    drawn = effect + np.sqrt(variance) * rng.normal(size=n)
    error = np.sqrt(variance * rng.chisquare(freedom, n) / freedom)
    share = (np.abs(drawn / error) > t.ppf(0.975, freedom)).mean()
    found = power(effect, of_runs=of_runs, of_patients=of_patients, runs=runs, patients=patients)
    assert found == pytest.approx(share, abs=0.005)


def test_other_metrics_are_planned_from_a_constant_predictor():
    task = create_task("table", labels=["x"], kind="regression", metric="mae")
    task._define()
    y = np.random.default_rng(0).normal(size=200)
    units = pd.DataFrame({"unit": np.arange(200), "patient": np.arange(200), "label_x": y})
    found, words = detectable_in(task, units)
    error = np.abs(y - np.median(y)).std() / np.sqrt(200)  # with correlation 0.5 the difference varies as one does
    assert words == "spread of a constant predictor's metric"
    assert found == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * error, rel=0.05)
