"""What a fold begins with, the class prior of the head, and the loss that validation goes by."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from finetune.scoring import Predictions, _loss
from finetune.training import class_prior
from voco.sequence import MultiOutputHead
from voco.tasks import create_task
from voco.tasks.base import Output
from voco.transfer.predict import StudyScores


class TwoOutputs:
    outputs = (Output("leak"), Output("grade", "multiclass", ("none", "low", "high")))


def test_a_head_begins_at_the_best_constant_answer():
    rng = np.random.default_rng(0)
    count = 20000  # the unit's worth that every class gets does not show
    targets = {
        "leak": rng.choice([0.0, 1.0, np.nan], count, p=[0.7, 0.1, 0.2]),
        "grade": rng.choice([0.0, 1.0, 2.0], count, p=[0.6, 0.3, 0.1]),
    }
    shares = np.where(targets["grade"] == 2, 4.0, 1.0)
    shares /= shares.sum()
    weights = {"leak": [1.0, 6.0], "grade": [1.0, 2.0, 4.0]}
    prior = class_prior(TwoOutputs, targets, shares, weights)
    head = MultiOutputHead(3, {"leak": 1, "grade": 3})
    head.set_prior(prior)
    logits = {name: value[0].detach().requires_grad_() for name, value in head(torch.zeros(1, 3)).items()}
    # the gradient of the weighted loss, each unit as often as it is drawn, vanishes there
    known = ~np.isnan(targets["leak"])
    y, w = torch.tensor(targets["leak"][known]), torch.tensor(shares[known])
    each = F.binary_cross_entropy_with_logits(logits["leak"].double().expand(len(y)), y, reduction="none")
    ((each * w * torch.where(y > 0, 6.0, 1.0)).sum() / w.sum()).backward()
    y, w = torch.tensor(targets["grade"]).long(), torch.tensor(shares)
    each = F.cross_entropy(logits["grade"].double().expand(len(y), 3), y, reduction="none")
    (each * w * torch.tensor([1.0, 2.0, 4.0])[y]).sum().backward()
    for value in logits.values():
        torch.testing.assert_close(value.grad, torch.zeros_like(value), rtol=0, atol=1e-3)
    assert abs(logits["leak"].item()) > 0.1  # 6 x 1/8 against 7/8


def test_a_class_that_training_lacks_is_not_ruled_out():
    targets = {"leak": np.zeros(9), "grade": np.array([0.0, 2.0] * 4 + [2.0])}
    prior = class_prior(TwoOutputs, targets, np.full(9, 1 / 9), None)
    np.testing.assert_allclose(prior["leak"], [9.5 / 10, 0.5 / 10])
    assert 0 < prior["grade"][1] < 0.05
    # a class of weight 0 has no best answer: the head stays as it was made
    assert "leak" not in class_prior(TwoOutputs, targets, np.full(9, 1 / 9), {"leak": [1.0, 0.0]})


class Case:
    """One study whose ``a`` is always known and whose ``b`` may not be."""

    def __init__(self, a, b):
        self.targets = {"a": a, "b": b}


def test_the_validation_loss_weighs_cases_against_each_other():
    """By itself a case cancels the weight of its class; the order of cases, and so of processes, changes nothing."""
    task = create_task("table", labels=["a", "b"], kind="multilabel")
    rng = np.random.default_rng(1)
    cases = [Case(*row) for row in [(0.0, np.nan), (1.0, 1.0), (0.0, 0.0), (0.0, np.nan), (1.0, 0.0)]]
    logits = [{"a": rng.normal(size=(1, 1)), "b": rng.normal(size=(1, 1))} for _ in cases]
    weights = {"a": [0.7, 5.0], "b": [1.0, 3.0]}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in weights.items()}
    rows = [
        _loss(case, StudyScores({}, {}, np.zeros((1, 3)), z), task, None, "study", tensors)
        for case, z in zip(cases, logits)
    ]
    means = []
    for name in weights:
        known = [(c.targets[name], z[name].item()) for c, z in zip(cases, logits) if c.targets[name] == c.targets[name]]
        y, z = np.array(known).T
        means.append(log_loss(y, 1 / (1 + np.exp(-z)), sample_weight=np.array(weights[name])[y.astype(int)]))
    found = Predictions(losses=rows).loss()
    assert found == pytest.approx(np.mean(means), rel=1e-12)
    assert Predictions(losses=rows[::-1]).loss() == found
    assert Predictions(losses=rows[:1]).loss() == pytest.approx(rows[0]["a"][0] / 0.7), "b is left out where unknown"
    assert np.isnan(Predictions().loss())
