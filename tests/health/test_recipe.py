"""Folds judged as one: pooled by patient, lines pooled before the better state is taken, nothing mixed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from voco.errors import InputError
from voco.health.judged import Judged, lines_of
from voco.health.recipe import Recipe, write_states
from voco.health.report import HealthReport, joined, mean_of
from voco.health.scores import Tally
from voco.health.verdict import judge

REFERENCES = {"balanced_chance": 1 / 9, "position_chance": 0.25, "best_constant": 0.6}
SCORE = "encoder_position_accuracy_balanced"
CELLS, QUERIES = 9, 4


def report(hits: np.ndarray, *, seed=0, windows=1, **changes) -> HealthReport:
    """(S, cells) right answers of ``QUERIES`` per cell."""
    tally = Tally(np.asarray(hits, float), np.full(np.shape(hits), float(QUERIES)), share=True)
    facts = {"scans": len(hits), "windows": windows, "seed": seed, "disjoint_missing": "too shallow"}
    return HealthReport("trained", {SCORE: tally}, **facts | changes)


def answers(rng, patients: int, right: float) -> np.ndarray:
    return rng.binomial(QUERIES, right, (patients, CELLS))


def write_fold(folder, trained: HealthReport, states: dict, step=5):
    folder.mkdir(parents=True)
    fold = Judged(folder, REFERENCES, warmup=1)
    fold.latest, fold.lines = trained, lines_of(states)
    fold.judge(step)
    fold.write(step)
    write_states(folder, states)
    return folder


def states_of(rng, patients: int, networks=6, right=0.2) -> dict:
    names = ["step0", *(f"untrained {number}" for number in range(networks))]
    both = {name: [report(answers(rng, patients, right)) for _ in range(2)] for name in names}
    return both | {"histogram": [report(answers(rng, patients, right))]}


@pytest.fixture
def folds(tmp_path):
    rng, sizes = np.random.default_rng(0), (3, 3, 2)
    made = [
        (write_fold(tmp_path / f"fold-{i}", report(answers(rng, n, 0.6)), states := states_of(rng, n)), states)
        for i, n in enumerate(sizes)
    ]
    return tmp_path, dict(made)


def test_the_recipe_is_judged_on_all_patients_together(folds):
    out, states = folds
    recipe = Recipe(out, {folder: [] for folder in states}, warmup=1)
    trained = [HealthReport.from_dict(json.loads((f / "health.json").read_text())["report"]) for f in states]
    hits = np.concatenate([one.tallies[SCORE].hits for one in trained])
    assert recipe.latest.score(SCORE) == pytest.approx((hits.sum(0) / (8 * QUERIES)).mean())
    saved = json.loads((out / "health.json").read_text())
    assert saved["concerns"] == "recipe" and saved["folds"] == 3 and saved["step"] == 5
    [judged] = saved["judged"]
    assert judged["clusters"] == 8 and judged["learned"]
    assert any(sentence.startswith("learned: position accuracy") for sentence in saved["verdict"])
    # alone, no fold could be judged
    for folder in states:
        assert not json.loads((folder / "health.json").read_text())["judged"][0]["learned"]
    assert recipe.provenance({})["concerns"] == "recipe"


def test_one_network_is_one_network_in_every_fold(folds):
    """The better of the two states of a network is asked of all patients: in each fold alone it would be luck."""
    out, states = folds
    lines = Recipe(out, {folder: [] for folder in states}, warmup=1).lines
    for number in range(6):
        pooled = []
        for state in range(2):
            parts = [found[f"untrained {number}"][state].tallies[SCORE] for found in states.values()]
            pooled.append((sum(part.hits.sum(0) for part in parts) / (8 * QUERIES)).mean())
        assert lines["untrained"].networks[number][SCORE].value == pytest.approx(max(pooled))
    parts = [lines_of(found)["step0"].tallies[SCORE] for found in states.values()]
    lucky = (sum(part.hits.sum(0) for part in parts) / (8 * QUERIES)).mean()
    assert lines["step0"].score(SCORE) < lucky


def test_folds_that_fell_are_named(folds):
    out, states = folds
    rows = {folder: [] for folder in states}
    last = list(states)[-1]
    rows[last] = [{"step": 0, f"heldout/{SCORE}": 0.9}, {"step": 5, f"heldout/{SCORE}": 0.5}]
    sentences = Recipe(out, rows, warmup=1).verdict
    assert [s for s in sentences if "fell" in s] == [
        "note: fell: in 1 of 3 folds a score of the encoder at the end is below an earlier one of the same fold "
        "(fold-2); look at figures/positions.png of these folds."
    ]


@pytest.mark.parametrize("odd", [{"step": 4}, {"seed": 1}])
def test_folds_of_different_runs_are_not_judged_together(folds, odd):
    out, states = folds
    rng = np.random.default_rng(1)
    trained = report(answers(rng, 2, 0.5), seed=odd.get("seed", 0))
    other = write_fold(out / "other", trained, states_of(rng, 2), step=odd.get("step", 5))
    with pytest.raises(InputError, match="folds of different runs"):
        Recipe(out, {folder: [] for folder in (*states, other)}, warmup=1)


def test_joined_reports():
    rng = np.random.default_rng(2)
    disjoint = Tally(np.ones((2, 3)), np.ones((2, 3)))
    one = report(answers(rng, 2, 0.5), windows=2, values={"padded_share": 0.1}, padded={"a": 0.3})
    two = report(answers(rng, 3, 0.5), windows=6, values={"padded_share": 0.5}, padded={"b": 0.6})
    deep = HealthReport("trained", two.tallies | {"disjoint": disjoint}, disjoint_missing=None, windows=6, scans=3)
    both = joined([one, two])
    assert both.tallies[SCORE].clusters == 5 and both.scans == 5 and both.windows == 8
    assert both.values["padded_share"] == pytest.approx((2 * 0.1 + 6 * 0.5) / 8)
    assert both.padded == {"a": 0.3, "b": 0.6} and both.disjoint_missing == "too shallow"
    # a fold of shallow scans takes the disjoint score from no other
    mixed = joined([one, deep])
    assert mixed.disjoint_missing is None and mixed.tallies["disjoint"].clusters == 2
    assert mixed.tallies[SCORE].clusters == 5
    with pytest.raises(InputError, match="not the same line"):
        joined([one, HealthReport("untrained", two.tallies, networks=(two.tallies,))])


def draw(rng, quality: np.ndarray, patient: np.ndarray) -> HealthReport:
    """Answers of networks of a quality, one for each patient, to patients of a difficulty (both in log odds)."""
    odds = -1.2 + quality + patient + 0.3 * rng.normal(size=len(patient))
    return report(rng.binomial(QUERIES, np.repeat(1 / (1 + np.exp(-odds)), CELLS).reshape(-1, CELLS)))


def is_called_learned(rng, patients: int, folds: int, luck: float, shared: float, effect: float = 0.0) -> bool:
    """One recipe in a world where networks differ by luck, a share of which the folds have in common by their start."""
    patient, fold = 0.3 * rng.normal(size=patients), np.arange(patients) % folds
    start = np.sqrt(shared) * luck * rng.normal()
    drift = np.sqrt(1 - shared) * luck * rng.normal(size=folds)
    networks = [draw(rng, np.full(patients, luck * rng.normal()), patient) for _ in range(6)]
    lines = {
        "step0": draw(rng, np.full(patients, start), patient),
        "untrained": mean_of(networks, "untrained"),
        "histogram": draw(rng, np.full(patients, -0.3), patient),
    }
    return judge(draw(rng, (start + drift)[fold] + effect, patient), lines, REFERENCES, SCORE).above


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "folds"), [(6, 3), (9, 3), (9, 9), (14, 5)])
def test_the_rate_holds_when_folds_share_their_luck_and_when_they_do_not(patients, folds):
    """Patients of a fold share a network, so they are not independent: the limit of untrained networks covers that."""
    count = 400
    most = 0.025 + 1.96 * np.sqrt(0.025 * 0.975 / count)
    for world, (luck, shared) in enumerate(((0.0, 1.0), (0.4, 1.0), (0.4, 0.5), (0.4, 0.0))):
        rng = np.random.default_rng([patients, folds, world])
        rate = np.mean([is_called_learned(rng, patients, folds, luck, shared) for _ in range(count)])
        assert rate <= most, (luck, shared, rate)
    rng = np.random.default_rng([patients, folds, 9])
    found = np.mean([is_called_learned(rng, patients, folds, 0.4, 0.5, effect=1.5) for _ in range(100)])
    assert found >= 0.5, found
