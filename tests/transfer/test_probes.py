"""Probes against scikit-learn and against the formula, written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from voco.errors import InputError
from voco.tasks.base import Output
from voco.transfer.probes import knn_scores, linear_probe

BINARY, MULTI, VALUE = (
    Output("b"),
    Output("m", "multiclass", ("a", "b", "c")),
    Output("v", "regression"),
)


def data(seed=0, n=60, classes=2):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n).astype(float)
    x = rng.normal(size=(n, 5)) * [1, 10, 0.1, 1, 1] + 4
    x[:, 0] += y
    return x, y


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("output", [BINARY, MULTI, VALUE], ids=lambda o: o.kind)
def test_knn_is_the_weighted_vote_written_out(output):
    x, y = data(classes=3 if output is MULTI else 2)
    y[4] = np.nan
    test, _ = data(1, 4)
    got = knn_scores(output, x, y, test, neighbours=7, temperature=0.2)
    for row, z in zip(test, got):
        cosine = [row @ a / np.linalg.norm(row) / np.linalg.norm(a) if not np.isnan(b) else -2 for a, b in zip(x, y)]
        near = np.argsort(cosine)[::-1][:7]
        weight = np.exp(np.array(cosine)[near] / 0.2)
        votes = [weight[y[near] == c].sum() / weight.sum() for c in range(3)]
        if output is BINARY:
            assert sigmoid(z[0]) == pytest.approx(votes[1], abs=1e-4)
        elif output is MULTI:
            np.testing.assert_allclose(softmax(z[None])[0], votes, atol=1e-4)
        else:
            assert z[0] == pytest.approx((weight * y[near]).sum() / weight.sum(), abs=1e-4)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_probe_is_sklearns_with_the_best_c_of_its_cross_validation(classes, weight):
    output, grid = {2: BINARY, 3: MULTI}[classes], (10.0, 0.001, 0.1)
    (x, y), (new, _) = data(classes=classes), data(1, classes=classes)
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, class_weight=weight, max_iter=5000)) for C in grid
    ]
    folds = StratifiedGroupKFold(5)
    losses = [
        log_loss(y, cross_val_predict(m, x, y, groups=np.arange(len(y)), cv=folds, method="predict_proba"))
        for m in models
    ]
    best = int(np.argmin(losses))
    probe = linear_probe(output, x, y, grid=grid, class_weight=weight)
    assert grid[best] == probe.C and probe.value == pytest.approx(-losses[best], rel=1e-6)
    got = probe.logits(new)
    got = sigmoid(got[:, 0]) if classes == 2 else softmax(got)
    wanted = models[best].fit(x, y).predict_proba(new)
    np.testing.assert_allclose(got, wanted[:, 1] if classes == 2 else wanted, atol=1e-5)
    again = linear_probe(output, x, y, grid=grid, class_weight=weight)
    assert np.array_equal(again.weight, probe.weight)


def test_where_nothing_can_be_chosen_the_middle_is_taken():
    x, _ = data(n=12)
    alone = np.where(np.arange(12) == 3, 1.0, 0.0)
    assert linear_probe(BINARY, x, alone, grid=(10.0, 0.001, 0.1)).C == 0.1


def test_regression_is_ridge_on_standardised_features():
    x, _ = data()
    y = 3 * x[:, 0] - 2
    probe = linear_probe(VALUE, x, y, grid=(0.5,))
    model = make_pipeline(StandardScaler(), Ridge(alpha=2.0)).fit(x, y)
    np.testing.assert_allclose(probe.logits(x)[:, 0], model.predict(x), rtol=1e-8)


def test_patients_stay_together_inside():
    """Two scans of a patient are equal and labels are chance: only a leak could reward a weak penalty."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(30), 2)
    x, y = rng.normal(size=(30, 40))[patient], rng.integers(0, 2, 30)[patient].astype(float)
    grid = (1e-4, 100.0)
    assert linear_probe(BINARY, x, y, grid=grid, groups=patient).C == 1e-4
    together = linear_probe(BINARY, x, y, grid=grid, groups=patient).value
    apart = linear_probe(BINARY, x, y, grid=grid).value
    assert apart > together


def test_missing_labels_and_classes():
    x, y = data(classes=3)
    y[:5] = np.nan
    two = linear_probe(MULTI, x, np.where(y == 1, np.nan, y), grid=(1.0,))
    p = softmax(two.logits(x))
    assert p[:, 1].max() < 1e-9 and np.isfinite(np.log(p)).all()
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000))
    kept = np.isin(y, (0, 2))
    np.testing.assert_allclose(p[:, 2], reference.fit(x[kept], y[kept]).predict_proba(x)[:, 1], atol=1e-5)
    one = linear_probe(BINARY, x, np.ones(len(x)))
    assert len(set(one.logits(x)[:, 0])) == 1 and sigmoid(one.logits(x)[0, 0]) > 0.99
    with pytest.raises(InputError, match="no vector has a label"):
        linear_probe(BINARY, x, np.full(len(x), np.nan))
    with pytest.raises(InputError, match="features are"):
        knn_scores(BINARY, x, y[:3], x)
