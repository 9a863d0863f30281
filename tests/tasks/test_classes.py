"""Metrics of classes against scikit-learn."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from voco.errors import InputError
from voco.tasks import classes


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 60)
    predicted = np.where(rng.random(60) < 0.4, labels, rng.integers(0, 5, 60))
    matrix = classes.confusion(labels, predicted, 5)
    assert (matrix == sk.confusion_matrix(labels, predicted, labels=range(5))).all()
    assert classes.cohen_kappa(matrix) == pytest.approx(sk.cohen_kappa_score(labels, predicted), abs=1e-12)
    assert classes.accuracy(matrix) == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    expected = sk.recall_score(labels, predicted, average=None, labels=range(5))
    assert classes.recalls(matrix) == pytest.approx(expected, abs=1e-12)
    expected = sk.precision_score(labels, predicted, average=None, labels=range(5), zero_division=0)
    assert classes.precisions(matrix) == pytest.approx(expected, abs=1e-12)
    balanced = sk.balanced_accuracy_score(labels, predicted)
    assert classes.mean_defined(classes.recalls(matrix)) == pytest.approx(balanced, abs=1e-12)
    scores = rng.dirichlet(np.ones(5), 60)
    expected = sk.roc_auc_score(labels, scores, multi_class="ovr", average=None)
    assert classes.one_vs_rest_auroc(labels, scores) == pytest.approx(expected, abs=1e-12)
    expected = [sk.average_precision_score(labels == k, scores[:, k]) for k in range(5)]
    assert classes.one_vs_rest_ap(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_absent_classes():
    labels, predicted = np.array([0, 0, 2]), np.array([0, 1, 0])
    matrix = classes.confusion(labels, predicted, 4)
    assert np.isnan(classes.recalls(matrix)).tolist() == [False, True, False, True]
    assert classes.recalls(matrix)[[0, 2]].tolist() == [0.5, 0.0]
    assert classes.precisions(matrix)[[0, 2]].tolist() == [0.5, 0.0]
    assert classes.cohen_kappa(matrix) == pytest.approx(sk.cohen_kappa_score(labels, predicted), abs=1e-12)


def test_kappa_that_is_not_defined():
    assert math.isnan(classes.cohen_kappa(np.zeros((3, 3))))
    assert math.isnan(classes.cohen_kappa(classes.confusion(np.ones(49), np.ones(49), 3)))
    # one class predicted for all, several true: no agreement beyond chance
    assert classes.cohen_kappa(classes.confusion(np.array([0, 1, 2]), np.zeros(3), 3)) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_log_loss_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2 + seed % 2, 40)
    probabilities = rng.dirichlet(np.ones(3), 40)
    probabilities[0], probabilities[1] = (1, 0, 0), (0, 1, 0)
    labels[:2] = 1, 1
    weights = np.array([1.0, 2, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = sk.log_loss(labels, probabilities, sample_weight=weights[labels], labels=[0, 1, 2])
    assert classes.log_loss(labels, probabilities, weights) == pytest.approx(expected, rel=1e-12)
    assert expected > 36 / 200  # the one that is wrong with certainty counts -log(eps) = 36.04
    assert math.isnan(classes.log_loss(labels[:0], probabilities[:0]))


def test_rows_that_are_no_probabilities():
    assert classes.normalised([[1, 1], [0, 3]]).tolist() == [[0.5, 0.5], [0, 1]]
    with pytest.raises(InputError, match=r"kidney: 1 of 2 rows are all zero \(first: row 1\)"):
        classes.normalised([[1, 1], [0, 0]], "kidney")
    for bad in (-0.1, float("nan")):
        with pytest.raises(InputError, match="1 of 1 rows hold a negative number or none"):
            classes.normalised([[bad, 1.0]])
    with pytest.raises(ValueError, match="expected 0 to 1"):
        classes.confusion(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="one length"):
        classes.confusion(np.array([0]), np.array([0, 1]), 2)
