"""Do the tests and intervals keep their promise? Simulated grids whose truth is known, 2,000 of each kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.statistics.compare import detectable, difference, interval
from benchmarks.statistics.influence import influence
from tests.benchmarks.tables import PE, table
from tests.benchmarks.worlds import (
    METRICS,
    WORLDS,
    Drawn,
    World,
    auroc,
    compare,
    draw,
    held,
    mean_auroc,
    rejected,
    row_held,
    true_auroc,
)

pytestmark = pytest.mark.slow
REPEATS, SEED = 2000, 0
PATIENTS, SHARE = 60, 0.4
SHIFTS, WIDE = (1.3, 0.9), (1.9, 0.7)  # of two sources that differ; accuracy and kappa see less of it
MOST = {2: 0.10, 3: 0.08, 5: 0.06, 10: 0.06}  # of equal sources told apart, by runs
LEAST = {3: 0.92, 5: 0.93, 10: 0.93}  # of intervals that hold the truth
ERROR = 0.006  # one standard error of a share of 2,000 near one in twenty; of one near a third, twice as much


@pytest.fixture(scope="module")
def lines():
    """Rows of the table in docs/benchmarks_statistics.md; printed at the end (``pytest -s``)."""
    found: list[str] = []
    yield found
    print("\n" + "\n".join(found))


def of(world: World, runs, shifts, *, metric=auroc, patients=PATIENTS, share=SHARE, paired=True, key=0):
    runs = (runs, runs) if isinstance(runs, int) else runs
    rng = np.random.default_rng([SEED, key, *runs, patients])
    drawn = draw(world, rng, REPEATS, runs, shifts, patients, share)
    return drawn, *compare(drawn, metric, paired)


def percent(values) -> str:
    return f"{100 * np.mean(values):.1f}"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", WORLDS)
def test_four_worlds(name, metric, lines):
    """Equal sources are rarely told apart, intervals hold the truth, and power rises with runs."""
    world, compute, key = WORLDS[name], METRICS[metric], sorted(WORLDS).index(name)
    least = -1.0 if metric == "kappa" else 0.0
    cells, power, shifts = [f"{metric}, {name}"], {}, SHIFTS if metric == "AUROC" else WIDE
    for runs in (3, 5, 10):
        _, same, _ = of(world, runs, (shifts[1], shifts[1]), metric=compute, key=key)
        _, other, row = of(world, runs, shifts, metric=compute, key=key + 10)
        analytic = metric == "AUROC"
        truth = mean_auroc(world, SHIFTS[0]) - mean_auroc(world, SHIFTS[1]) if analytic else other.point.mean()
        wanted = mean_auroc(world, SHIFTS[0]) if analytic else row.point.mean()
        apart, holds, of_row = rejected(same).mean(), held(other, truth).mean(), row_held(row, wanted, least).mean()
        power[runs] = rejected(other).mean()
        cells.append(" / ".join(percent(v) for v in (apart, holds, of_row, power[runs])))
        # kappas of runs that differ most, about means far apart, are skewed: the docs say what that costs
        skewed = 0.025 if (metric, name) == ("kappa", "runs only") else 0.0
        assert apart <= MOST[runs] and holds >= LEAST[runs] - skewed and of_row >= LEAST[runs] - ERROR
    lines.append("| " + " | ".join(cells) + " |")
    # where all runs say the same, more of them add nothing
    more = -3 * ERROR if name == "patients only" else 3 * ERROR
    assert power[10] >= power[3] + more and power[5] >= power[3] - 3 * ERROR


@pytest.mark.parametrize("name", WORLDS)
def test_with_runs_held_fixed_three_are_never_weaker_than_one(name, lines):
    """And the claim about these networks holds as often as it says, with one run and with three.

    Power is asked of networks whose true difference is the same: where runs differ in truth, one pair has another
    difference than the mean of three.
    """
    cells, found = [f"{name}, runs held fixed"], {}
    world = replace(WORLDS[name], between=0.0)
    three, _, _ = of(world, 3, SHIFTS, key=20 + sorted(WORLDS).index(name))
    for runs in (1, 3):  # the first of the same runs, and all of them
        drawn = Drawn(
            three.labels, three.member, *([side[:, :runs] for side in sides] for sides in (three.scores, three.shifts))
        )
        fixed, _ = compare(drawn, auroc)
        truth = np.subtract(*(true_auroc(world, shifts).mean(-1) for shifts in drawn.shifts))
        holds = held(fixed, truth, fixed=True).mean()
        found[runs] = (rejected(fixed, fixed=True) & (fixed.point > 0)).mean()
        cells.append(f"{percent(holds)} / {percent(found[runs])}")
        assert holds >= 0.93
    lines.append("| " + " | ".join(cells) + " |")
    assert found[3] >= found[1]


@pytest.mark.parametrize("runs", [(3, 3), (3, 5), (5, 5), (3, 10), (5, 10), (3, 1), (5, 1), (2, 2)])
def test_nested_runs_and_lines(runs, lines):
    """Runs that share no seeds, unequal numbers of them, and a line that exists once and varies with patients alone."""
    cells = [f"{runs[0]} and {runs[1]} runs, nested"]
    for name, world in WORLDS.items():
        if 1 in runs:  # the line has no shift of its own
            drawn = draw(world, np.random.default_rng([SEED, 40, *runs]), REPEATS, runs, (0.9, 0.9), PATIENTS, SHARE)
            line = (drawn.shifts[1] - 0.9)[..., None] * drawn.labels
            truth = mean_auroc(world, 0.9) - true_auroc(world, np.array(0.9))
            drawn.scores[1][:] -= line
            found, _ = compare(drawn, auroc, paired=False)
            apart = 1 - held(found, truth).mean()
        else:
            apart = rejected(of(world, runs, (0.9, 0.9), paired=False, key=40)[1]).mean()
        cells.append(percent(apart))
        # runs that differ by 0.12 in AUROC are skewed, and beside a line no other source's skewness makes up for it
        skewed = 1 in runs and name == "runs only"
        assert apart <= (0.13 if skewed else MOST[min(count for count in runs if count > 1)] + ERROR), name
    lines.append("| " + " | ".join(cells) + " |")


@pytest.mark.parametrize(("patients", "share"), [(30, 0.1), (60, 0.1), (200, 0.3)])
def test_few_positives_and_many_patients(patients, share, lines):
    cells = [f"{patients} patients, {round(patients * share)} positive"]
    for runs in (3, 5):
        for world in WORLDS.values():
            _, same, _ = of(world, runs, (0.9, 0.9), patients=patients, share=share, key=50)
            apart = rejected(same).mean()
            cells.append(percent(apart))
            assert apart <= MOST[runs] + ERROR * (runs == 5)
    lines.append("| " + " | ".join(cells) + " |")


@pytest.mark.parametrize("name", WORLDS)
def test_several_units_of_a_patient(name, lines):
    """Three units each: counted as patients of their own they would be told apart more often than they say."""
    world = replace(WORLDS[name], per_patient=3)
    cells = [f"{name}, 3 units a patient"]
    for runs in (3, 5):
        _, same, _ = of(world, runs, (0.9, 0.9), key=60)
        apart = rejected(same).mean()
        cells.append(percent(apart))
        assert apart <= MOST[runs]
    lines.append("| " + " | ".join(cells) + " |")


def test_tables_of_units_give_what_the_simulations_use():
    drawn, found, row = of(WORLDS["all of it"], 3, SHIFTS, key=70)
    for repeat in (0, 1):
        sides = [[table(drawn.labels, scores[repeat, j]) for j in range(3)] for scores in drawn.scores]
        one, alone = difference(PE, *sides), interval(PE, sides[0])
        assert (one.point, one.error, one.freedom) == pytest.approx(
            (found.point[repeat], found.error[repeat], found.freedom[repeat])
        )
        assert alone.error == pytest.approx(row.error[repeat])


def test_permuted_labels_give_a_half(lines):
    rng = np.random.default_rng(SEED)
    labels = (np.arange(200) < 80).astype(float)
    scores = 1.5 * labels + rng.normal(size=200)
    values, holds = [], 0
    for _ in range(300):
        found = interval(PE, [influence(PE, table(rng.permutation(labels), scores))])
        values.append(found.point)
        holds += found.low <= 0.5 <= found.high
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / np.sqrt(len(values)))
    lines.append(f"permuted labels: mean {np.mean(values):.4f}, {holds} of {len(values)} intervals hold 0.5")
    assert holds >= 0.93 * len(values)


@pytest.mark.parametrize(("runs", "run_sd"), [(1, 0.0), (3, 0.0), (5, 0.05), (10, 0.05)])
def test_what_is_called_detectable_is_detected_four_times_in_five(runs, run_sd, lines):
    """What is shared by all is half of the variance, what runs of a source share 0.8: the assumptions of planning."""
    base = World(common=np.sqrt(0.5), source=np.sqrt(0.3), noise=np.sqrt(0.2))
    middle = true_auroc(base, np.array(1.2))
    slope = (true_auroc(base, np.array(1.21)) - true_auroc(base, np.array(1.19))) / 0.02
    world = replace(base, between=float(run_sd / np.sqrt(2) / slope))
    wanted = detectable(120, 48, auroc=float(middle), runs=runs, run_sd=run_sd)
    shifts = np.linspace(0, 3, 6001)
    means = np.array([mean_auroc(world, shift) for shift in shifts])
    pair = [shifts[np.argmin(np.abs(means - middle - sign * wanted / 2))] for sign in (1, -1)]
    _, found, _ = of(world, runs, pair, patients=120, key=80)
    share = rejected(found).mean()
    lines.append(f"detectable {wanted:.3f} with {runs} runs (run_sd {run_sd}): found in {percent(share)} %")
    assert 0.74 <= share <= 0.88
