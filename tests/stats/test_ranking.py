"""Ranking metrics against their definitions, written out by pairs and thresholds."""

import math

import numpy as np
import pytest

from voco.stats.ranking import auroc, average_precision, why_undefined


def literal_auroc(labels, scores):
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return sum(pairs) / len(pairs)


def literal_ap(labels, scores):
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        hits = labels[taken].sum()
        total += (hits / labels.sum() - recall) * hits / taken.sum()
        recall = hits / labels.sum()
    return total


@pytest.mark.parametrize("seed", range(4))
def test_definitions_with_ties(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random(40) < 0.3).astype(float)
    labels[:2] = 0, 1
    scores = rng.integers(0, 6, 40) / 5.0
    assert auroc(labels, scores) == pytest.approx(literal_auroc(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(literal_ap(labels, scores), abs=1e-12)


def test_unknown_labels_are_left_out():
    labels, scores = np.array([0, 1, np.nan, 1, 0]), np.array([0.1, 0.9, 5.0, 0.3, 0.3])
    known = ~np.isnan(labels)
    assert auroc(labels, scores) == literal_auroc(labels[known], scores[known]) == 0.875
    assert average_precision(labels, scores) == pytest.approx(literal_ap(labels[known], scores[known]), abs=1e-12)


def test_constant_score():
    labels = np.array([0, 0, 0, 1.0])
    assert auroc(labels, np.full(4, 0.7)) == 0.5
    assert average_precision(labels, np.full(4, 0.7)) == 0.25


@pytest.mark.parametrize(
    ("labels", "why"), [([0, 0], "no positive among 2"), ([1, 1, 1], "no negative among 3"), ([np.nan], "no case")]
)
def test_undefined(labels, why):
    assert math.isnan(auroc(labels, np.arange(len(labels))))
    assert math.isnan(average_precision(labels, np.arange(len(labels)))) == (why != "no negative among 3")
    assert why_undefined(labels).startswith(why)


def test_what_is_not_a_ranking():
    with pytest.raises(ValueError, match="expected 0 and 1"):
        auroc([0, 1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="not finite"):
        auroc([0, 1], [np.nan, 1])
    with pytest.raises(ValueError, match="one length"):
        average_precision([0, 1], [1])
    assert why_undefined([0, 1]) == ""
