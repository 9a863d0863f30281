"""Do the intervals keep their promise? Simulated grids whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.compare import detectable, difference, interval
from tests.benchmarks.tables import PE, sources, table, true_auroc
from voco.stats import Ranking

pytestmark = pytest.mark.slow
REPEATS = 200
# What varies: between seeds, what a source sees in a patient, what a run sees in a patient.
WORLDS = {
    "patients": {"between": 0.0, "source": 0.7, "noise": 0.4},
    "both": {"between": 0.3, "source": 0.3, "noise": 0.5},
    "seeds": {"between": 0.6, "source": 0.2, "noise": 0.3},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The task's own AUROC, without scikit-learn's checks of arguments, which would take most of the time."""
    monkeypatch.setattr(PE, "main_value", Ranking("label_pe", "score_pe"))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_two_sources_that_are_the_same_are_rarely_told_apart(world, seeds):
    rejected = plain = 0
    for repeat in range(REPEATS):
        rng = np.random.default_rng([repeat, seeds])
        a, b = sources(rng, (1.0, 1.0), seeds=seeds, **WORLDS[world])
        found = difference(PE, a, b, resamples=400, seed=repeat)
        rejected += found.p < 0.05
        plain += not found.plain_low <= 0 <= found.plain_high
    print(f"A/A {world}, {seeds} seeds: {rejected} of {REPEATS} rejected; plain percentiles {plain}")
    assert rejected <= 0.05 * REPEATS


@pytest.mark.parametrize("world", ["patients", "both"])
def test_intervals_hold_the_truth(world):
    settings = WORLDS[world]
    difference_held = row_held = 0
    truth = [true_auroc(shift, **settings) for shift in (1.4, 1.0)]
    for repeat in range(REPEATS):
        a, b = sources(np.random.default_rng([repeat, 77]), (1.4, 1.0), seeds=5, **settings)
        found = difference(PE, a, b, resamples=400, seed=repeat)
        row = interval(PE, a, resamples=400, seed=repeat)
        difference_held += found.low <= truth[0] - truth[1] <= found.high
        row_held += row.low <= truth[0] <= row.high
    print(f"coverage {world}: difference {difference_held}, row {row_held} of {REPEATS}")
    assert difference_held >= 0.93 * REPEATS
    assert row_held >= 0.93 * REPEATS - 3.6  # one standard error: percentiles of a single AUROC are a little short


def test_permuted_labels_give_a_half():
    rng = np.random.default_rng(0)
    (runs,) = sources(rng, (1.5,), n=200, seeds=1)
    values, held = [], 0
    for repeat in range(REPEATS):
        labels = rng.permutation(runs[0]["label_pe"].to_numpy())
        found = interval(PE, [table(labels, runs[0]["score_pe"])], resamples=400, seed=repeat)
        values.append(found.point)
        held += found.low <= 0.5 <= found.high
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / np.sqrt(REPEATS))
    print(f"permuted labels: mean {np.mean(values):.4f}, {held} of {REPEATS} intervals hold 0.5")
    assert held >= 0.93 * REPEATS


def test_what_is_called_detectable_is_detected_four_times_in_five():
    """One run against one run, patients as the only variation, correlation about a half."""
    settings = {"between": 0.0, "source": 0.0, "noise": 0.7}  # shared and own parts are equally large: correlation 0.5
    wide = true_auroc(1.0, **settings)
    wanted = detectable(120, 48, auroc=wide + 0.05, correlation=0.5)
    shifts = np.linspace(1, 4, 3001)
    shift = shifts[np.argmin([abs(true_auroc(s, **settings) - wide - wanted) for s in shifts])]
    found = 0
    for repeat in range(REPEATS):
        a, b = sources(np.random.default_rng([repeat, 5]), (shift, 1.0), n=120, seeds=1, **settings)
        found += difference(PE, a, b, resamples=400, seed=repeat).p < 0.05
    print(f"detectable {wanted:.3f}: found in {found} of {REPEATS}")
    assert 0.7 * REPEATS <= found <= 0.92 * REPEATS
