"""The verdict on training: p against all arrangements, patients as wholes, choices paid for, few patients."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from voco.tasks import create_task
from voco.tasks.metrics import Metric
from voco.transfer.verdict import LEVEL, candidates, log_arrangements, shuffles, verdict

PE, TB = create_task("rsna_pe"), create_task("imageclef_tb")
CONSTANT = {0: {"score_pe": 0.4}}


def frame(labels, scores, patients=None, folds=0):
    names = [f"{i:03d}" for i in range(len(labels))]
    own = names if patients is None else [f"p{i:03d}" for i in patients]
    return pd.DataFrame(
        {"case": names, "patient": own, "unit": names, "fold": folds, "split": "validation",
         "label_pe": np.asarray(labels, float), "score_pe": np.asarray(scores, float)}
    )  # fmt: skip


def judged(*args, among=1, seed=0, **kw):
    return verdict(PE, frame(*args, **kw), CONSTANT, {0: among}, seed)


def test_p_is_the_share_of_all_arrangements_that_are_as_good():
    labels, scores = np.array([0, 0, 1, 0, 1, 1, 0, 1]), np.array([0.1, 0.4, 0.3, 0.2, 0.9, 0.5, 0.5, 0.8])
    value = roc_auc_score(labels, scores)
    each = [roc_auc_score(order, scores) for order in set(permutations(labels))]
    exact = np.mean([other >= value - 1e-12 for other in each])
    found = judged(labels, scores)
    assert len(each) == round(math.exp(log_arrangements(Counter({((0,),): 4, ((1,),): 4})))) == 70
    assert found["p"] == pytest.approx(exact, abs=4 * np.sqrt(exact / 2000))
    assert found["trained"] is bool(exact <= LEVEL) and found["patients"] == 8 and found["judged_on"] == "validation"
    assert found["difference"]["value"] == pytest.approx(value - 0.5) and "version" in found["rule"]
    assert judged(labels, scores) == found and judged(labels, scores, seed=1)["p"] != found["p"]


def test_below_the_number_where_anything_could_be_shown_nothing_is_said():
    for n in (2, 4, 6, 7):
        labels = np.arange(n) % 2
        found = judged(labels, labels)
        assert found["trained"] is None and found["p"] is None
        assert f"cannot be judged with {n} validation patients" in found["text"] and "about 8" in found["text"]
    labels = np.arange(8) % 2
    assert judged(labels, labels)["trained"] is True
    # what was chosen among twenty needs more
    assert "among 20 scorings" in judged(labels, labels, among=20)["text"]
    assert judged(np.arange(14) % 2, np.arange(14) % 2, among=20)["trained"] is True
    for patients, trained in ((1, None), (5, None), (6, True)):  # many scans are not many patients
        labels = np.arange(10 * patients) % 2
        assert judged(labels, labels, patients=np.arange(10 * patients) // 10)["trained"] is trained


def test_a_choice_among_many_is_paid_for():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    scores = labels + 2.6 * rng.normal(size=40)
    once, many = judged(labels, scores), judged(labels, scores, among=50)
    assert once["trained"] is True and many["trained"] is False and "would show a difference" in many["text"]
    assert many["p"] == pytest.approx(50 * once["p"], rel=0.5)
    training = {
        "0": {"chosen_among": 7, "best_step": 3}, "1": {"regularization_tried": {"1": 0.5, "2": 0.6, "3": None}},
        "2": {"best_step": 3}, "3": {"regularization": {"pe": 1.0}}, "4": {"units": 9},
    }  # fmt: skip
    assert candidates({"training": training}) == {0: 7, 1: 2, 2: None, 3: 6, 4: 1} and candidates({}) == {}
    unknown = verdict(PE, frame(labels, labels), CONSTANT, {0: None}, 0)
    assert unknown["trained"] is None and "is not known" in unknown["text"]


def test_constant_scores_and_undefined_metrics_are_never_trained():
    labels = np.arange(30) % 2
    assert judged(labels, np.full(30, 0.4))["trained"] is False
    assert judged(labels, 1.0 - labels)["trained"] is False
    same = judged(np.ones(30), np.arange(30))
    assert same["trained"] is None and "not defined" in same["text"]
    assert verdict(PE, frame(labels, labels).assign(split="test"), CONSTANT, {}, 0)["trained"] is None
    assert "not known" in verdict(PE, frame(labels, labels), {}, {}, 0)["text"]


def test_better_than_shuffled_but_worse_than_the_constant_is_not_trained():
    """Scores that follow the values at the wrong height: the error is less than with any other order, and too large."""
    task = create_task("table", labels=["v"], kind="regression")
    y = np.linspace(0, 1, 30)
    rows = pd.DataFrame({"case": range(30), "patient": range(30), "unit": range(30), "fold": 0, "split": "validation"})
    for offset, trained in ((0.0, True), (0.6, False)):
        own = rows.assign(label_v=y, score_v=y + offset + 0.1 * np.cos(9 * y))
        found = verdict(task, own, {0: {"score_v": 0.5}}, {}, 0)
        assert found["trained"] is trained and found["p"] is not None


def test_labels_move_with_their_patient():
    blocks = [np.array([0]), np.array([1, 4]), np.array([2, 3, 5, 6]), np.array([7, 8])]
    owner = np.zeros(9, int)
    for patient, block in enumerate(blocks):
        owner[block] = patient
    places = shuffles(blocks, 500, np.random.default_rng(0))
    for row in places:
        givers = [set(owner[row[block]]) for block in blocks]
        assert all(len(giver) == 1 for giver in givers) and set.union(*givers) == {0, 1, 2, 3}
        if givers[1] == {3}:  # as many units: each label once
            assert sorted(row[blocks[1]]) == [7, 8]
        if givers[2] == {2}:
            assert sorted(row[blocks[2]]) == [2, 3, 5, 6]
    assert {tuple(row[blocks[1]]) for row in places} >= {(7, 8), (8, 7), (1, 4), (4, 1)}
    alone = shuffles([np.array([i]) for i in range(5)], 300, np.random.default_rng(1))
    assert (np.sort(alone, 1) == np.arange(5)).all() and len({tuple(row) for row in alone}) > 80


def test_the_ways_to_shuffle_are_counted():
    def brute(blocks):
        """All label vectors that come of exchanging blocks of equal size and ordering each."""
        orders = set(permutations(blocks))
        return len({sum(made, ()) for order in orders for made in product(*(set(permutations(b)) for b in order))})

    for blocks in ([(0,), (0,), (1,), (2,)], [(0, 1), (0, 1), (0, 1)], [(0, 1), (0, 0), (1, 1)]):
        kinds = Counter((block[0],) if len(set(block)) == 1 else tuple(sorted(block)) for block in blocks)
        assert math.exp(log_arrangements(kinds)) == pytest.approx(brute(blocks))


def test_twins_are_judged_within_their_pair():
    """Each patient has one scan of either class, and patients differ far more than scans do."""
    rng = np.random.default_rng(0)
    labels, patients = np.tile([0, 1], 12), np.repeat(np.arange(12), 2)
    scores = 5 * rng.normal(size=12)[patients] + labels
    assert judged(labels, scores, patients=patients)["trained"] is True
    assert judged(labels, scores)["trained"] is False


def test_folds_are_judged_as_one_of_them_would_be():
    """Five copies of one fold say what one says; five folds of noise say nothing."""
    rng = np.random.default_rng(3)
    labels = np.arange(30) % 2
    scores = labels + 0.8 * rng.normal(size=30)
    alone = judged(labels, scores)
    rows = pd.concat([frame(labels, scores, folds=f) for f in range(5)], ignore_index=True)
    copies = verdict(PE, rows, dict.fromkeys(range(5), CONSTANT[0]), {}, 0)
    assert copies["trained"] is alone["trained"] is True and copies["p"] == pytest.approx(alone["p"], abs=0.005)
    noise = pd.concat([frame(labels, rng.normal(size=30), folds=f) for f in range(5)], ignore_index=True)
    assert verdict(PE, noise, dict.fromkeys(range(5), CONSTANT[0]), {}, 0)["trained"] is False


def test_several_labels_some_unknown():
    task = create_task("table", labels=["a", "b"], kind="multilabel")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (40, 2)).astype(float)
    keys = {"case": range(40), "patient": range(40), "unit": range(40), "fold": 0, "split": "validation"}
    for effect, trained in ((2.0, True), (0.0, False)):
        s = effect * y + rng.normal(size=y.shape)
        known = np.where(rng.random(y.shape) < 0.2, np.nan, y)
        rows = pd.DataFrame({**keys, "label_a": known[:, 0], "label_b": known[:, 1], "score_a": s[:, 0],
            "score_b": s[:, 1]})  # fmt: skip
        assert verdict(task, rows, {0: {"score_a": 0.5, "score_b": 0.5}}, {}, 0)["trained"] is trained


def test_kappa_is_judged_alike():
    rng = np.random.default_rng(0)
    y = np.arange(50) % 5
    keys = {"case": range(50), "patient": range(50), "unit": range(50), "fold": 0, "split": "validation"}
    for effect, trained in ((3.0, True), (0.0, False)):
        p = np.exp(effect * np.eye(5)[y] + rng.normal(size=(50, 5)))
        rows = pd.DataFrame({**keys, TB.label_columns[0]: y.astype(float), **dict(zip(TB.score_columns, p.T))})
        found = verdict(TB, rows, {0: dict.fromkeys(TB.score_columns, 0.2)}, {}, 0)
        assert found["trained"] is trained and found["constant"] == 0.0


@pytest.mark.parametrize("kind", ["kappa", "multilabel", "multiclass", "regression", "auroc_b"])
def test_fast_and_plain_metrics_of_shuffled_labels_are_the_same(kind):
    rng = np.random.default_rng(0)
    task = {
        "kappa": lambda: TB,
        "multilabel": lambda: create_task("table", labels=["a", "b"], kind="multilabel"),
        "auroc_b": lambda: create_task("table", labels=["a", "b"], kind="multilabel", metric="auroc_b"),
        "multiclass": lambda: create_task("table", labels=["m"], kind="multiclass", classes={"m": ["x", "y", "z"]}),
        "regression": lambda: create_task("table", labels=["v", "w"], kind="regression"),
    }[kind]()
    units = pd.DataFrame({"case": range(25), "patient": range(25), "unit": range(25)})
    for output in task.outputs:
        labels = rng.normal(size=25) if kind == "regression" else rng.integers(0, max(2, output.width), 25)
        labels = np.where(rng.random(25) < 0.1, np.nan, labels)
        scores = dict(zip(output.score_columns, rng.dirichlet(np.ones(output.width + 1), 25).T))
        units = units.assign(**{output.label_column: labels}, **scores)
    places = rng.integers(0, 25, (30, 25))
    fast, plain = task.main.shuffled(units, places), Metric.shuffled(task.main, units, places)
    assert np.isfinite(plain).all() and fast == pytest.approx(plain, abs=1e-12)
