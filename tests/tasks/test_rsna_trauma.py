"""Abdominal trauma: the official score against a table of 13 columns and scikit-learn, patients, single organs."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from finetune.training import expected_weights
from voco.data.layouts.labeled import LabeledCase
from voco.data.manifest import Case
from voco.data.splits import make_splits
from voco.errors import InputError
from voco.tasks import create_task
from voco.tasks.metrics import Metric
from voco.tasks.rsna_trauma_score import official_score

GRADES = {"bowel": 2, "extravasation": 2, "kidney": 3, "liver": 3, "spleen": 3}
TASK = create_task("rsna_trauma")


def literal_score(labels, probabilities):
    """The published rule on wide tables, with scikit-learn's log loss; labels are given, so none may be absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses, healthy_true, healthy = [], [], []
        for organ, count in GRADES.items():
            truth = pd.get_dummies(pd.Categorical(labels[organ], categories=range(count))).astype(float)
            guess = pd.DataFrame(probabilities[organ])
            guess = guess.div(guess.sum(axis=1), axis=0)
            weights = {2: [1, 2 if organ == "bowel" else 6], 3: [1, 2, 4]}[count]
            weight = (truth * weights).sum(axis=1)
            losses.append(sk.log_loss(labels[organ], guess.to_numpy(), sample_weight=weight, labels=range(count)))
            healthy_true.append(truth[0])
            healthy.append(guess[0])
        truth = (1 - pd.concat(healthy_true, axis=1)).max(axis=1)
        guess = (1 - pd.concat(healthy, axis=1)).max(axis=1)
        losses.append(sk.log_loss(truth, guess, sample_weight=np.where(truth == 1, 6, 1), labels=[0, 1]))
    return np.mean(losses), losses


def random_case(seed, n=60):
    rng = np.random.default_rng(seed)
    labels = {o: rng.choice(k, n, p=[0.8, *[0.2 / (k - 1)] * (k - 1)]) for o, k in GRADES.items()}
    return labels, {o: rng.dirichlet(np.ones(k), n) * rng.uniform(0.2, 3, (n, 1)) for o, k in GRADES.items()}


def certain(seed):
    """Probabilities of exactly 0 and 1, right and wrong."""
    labels, _ = random_case(seed)
    rng = np.random.default_rng(seed)
    return labels, {o: np.eye(k)[rng.integers(0, k, 60)] for o, k in GRADES.items()}


def no_injury(seed):
    labels, probabilities = random_case(seed)
    return {o: np.zeros_like(v) for o, v in labels.items()}, probabilities


def no_low_grade(seed):
    labels, probabilities = random_case(seed)
    return {o: np.where(v == 1, 0, v) if GRADES[o] == 3 else v for o, v in labels.items()}, probabilities


def one_patient(seed):
    return random_case(seed, 1)


@pytest.mark.parametrize("case", [random_case, certain, no_injury, no_low_grade, one_patient])
@pytest.mark.parametrize("seed", [0, 1])
def test_official_score(case, seed):
    labels, probabilities = case(seed)
    expected, losses = literal_score(labels, probabilities)
    got = official_score(labels, probabilities)
    assert got["score"] == pytest.approx(expected, abs=1e-9)
    assert list(got.values())[1:] == pytest.approx(losses, abs=1e-9)
    assert list(got)[1:] == [*(f"loss_{organ}" for organ in GRADES), "loss_any_injury"]


def test_any_injury_is_the_sixth_term_of_the_loss():
    """Against scikit-learn, on the probabilities that the logits mean."""
    task, n = create_task("rsna_trauma", any_injury=True), 40
    rng = np.random.default_rng(0)
    logits = {
        o: torch.from_numpy(rng.normal(0, 2, (n, 1 if k == 2 else k))).requires_grad_() for o, k in GRADES.items()
    }
    labels, _ = random_case(0, n)
    targets = {o: torch.from_numpy(v.astype(float)) for o, v in labels.items()}
    weights = {name: torch.tensor(row, dtype=torch.float64) for name, row in task.class_weights().items()}
    assert weights["any_injury"].tolist() == [1, 6]
    columns = task.scores({o: z.detach().numpy() for o, z in logits.items()})
    injured = [columns[f"score_{o}"] if k == 2 else 1 - columns[f"score_{o}_healthy"] for o, k in GRADES.items()]
    truth = np.any([v > 0 for v in labels.values()], axis=0)
    weight = np.where(truth, 6.0, 1.0)
    by_hand = sk.log_loss(truth, np.max(injured, axis=0), sample_weight=weight) * weight.sum() / n
    terms = task.loss(logits, targets, class_weights=weights)
    assert terms["any_injury"].item() == pytest.approx(by_hand, rel=1e-9)
    plain = create_task("rsna_trauma").loss(logits, targets, class_weights=weights)
    assert list(plain) == list(GRADES) and all(torch.equal(plain[o], terms[o]) for o in GRADES)
    expected = task.loss(logits, targets, class_weights=weights, expected={"any_injury": 2.5})["any_injury"]
    assert expected.item() == pytest.approx(by_hand / 2.5, rel=1e-9)
    targets["liver"][:5] = torch.nan
    rest = task.loss(logits, targets, class_weights=weights)["any_injury"].item() * n
    lost = (
        sk.log_loss(truth[5:], np.max(injured, axis=0)[5:], sample_weight=weight[5:], labels=[0, 1]) * weight[5:].sum()
    )
    assert rest == pytest.approx(lost, rel=1e-9)
    terms["any_injury"].backward()
    assert sum(int((z.grad != 0).any(1).sum()) for z in logits.values()) == n  # one organ of each patient answers
    with pytest.raises(InputError, match="from all five organs"):
        create_task("rsna_trauma", any_injury=True, organs=["liver"])


def test_every_grade_of_every_organ_is_balanced_over_the_folds():
    rng, shares = np.random.default_rng(0), {"bowel": [0.02], "extravasation": [0.06], "kidney": [0.035, 0.02]}
    shares |= {"liver": [0.08, 0.02], "spleen": [0.065, 0.05]}
    table = {o: rng.choice(len(s) + 1, 2000, p=[1 - sum(s), *s]) for o, s in shares.items()}
    cases = [
        LabeledCase(Case(id=f"s{i}", path=f"s{i}", patient=f"p{i}"), {o: int(v[i]) for o, v in table.items()})
        for i in range(2000)
    ]
    worst = {}
    for strata in ("rarest", "all"):
        task = create_task("rsna_trauma", strata=strata)
        splits = make_splits(cases, task.stratum, rule="kfold", folds=5, val=0.0, seed=1)
        tested = [[int(case[1:]) for case in fold.ids("test")] for fold in splits.folds]
        off = [
            abs((table[o][part] == grade).sum() - (table[o] == grade).sum() / 5)
            for part in tested for o, s in shares.items() for grade in range(1, len(s) + 1)
        ]  # fmt: skip
        worst[strata] = max(off)
    assert worst["all"] <= 4 < worst["rarest"], worst


def test_rows_that_cannot_be_normalised():
    labels, probabilities = random_case(0)
    probabilities["liver"][7] = 0
    with pytest.raises(InputError, match=r"liver: 1 of 60 rows are all zero \(first: row 7\)"):
        official_score(labels, probabilities)
    del probabilities["liver"]
    with pytest.raises(InputError, match="needs all five organs; liver are missing"):
        official_score(labels, probabilities)


def frame(labels, probabilities, units=None):
    n = len(labels["bowel"])
    ids = units or [f"p{i:03d}" for i in range(n)]
    rows = {"case": [f"{u}-{i}" for i, u in enumerate(ids)], "patient": ids, "unit": ids, "fold": 0, "split": "test"}
    for output in TASK.outputs:
        organ = output.name
        rows[output.label_column] = np.asarray(labels[organ], float)
        scores = np.asarray(probabilities[organ], float)
        scores = scores / scores.sum(1, keepdims=True)
        columns = scores[:, 1:] if scores.shape[1] == 2 else scores
        rows.update(zip(output.score_columns, columns.T))
    return pd.DataFrame(rows)


def test_metrics_of_predictions():
    labels, probabilities = random_case(3)
    units = TASK.to_units(frame(labels, probabilities))
    out = TASK.measure(units)
    expected, _ = literal_score(labels, probabilities)
    assert out.values["score"] == pytest.approx(expected, abs=1e-9) == TASK.main_value(units)
    rows = {o: p / p.sum(1, keepdims=True) for o, p in probabilities.items()}
    ap, recall, precision = {}, {}, {}
    for organ, count in GRADES.items():
        y, p = labels[organ], rows[organ]
        assert out.values[f"auroc_{organ}"] == pytest.approx(sk.roc_auc_score(y > 0, 1 - p[:, 0]), abs=1e-9)
        if count == 2:
            ap[organ] = sk.average_precision_score(y, p[:, 1])
            recall[organ] = sk.recall_score(y, p[:, 1] >= 0.5)
            precision[organ] = sk.precision_score(y, p[:, 1] >= 0.5)
        else:
            ap[organ] = np.mean([sk.average_precision_score(y == k, p[:, k]) for k in range(3)])
            recall[organ] = sk.recall_score(y, p.argmax(1), average="macro")
            precision[organ] = sk.precision_score(y, p.argmax(1), average="macro", zero_division=0)
        assert out.values[f"ap_{organ}"] == pytest.approx(ap[organ], abs=1e-9)
    for name, values in (("map", ap), ("recall", recall), ("precision", precision)):
        assert out.values[name] == pytest.approx(np.mean(list(values.values())), abs=1e-9)
        solid = np.mean([values[organ] for organ in ("kidney", "liver", "spleen")])
        assert out.values[f"{name}_solid"] == pytest.approx(solid, abs=1e-9)


def test_fold_without_injuries_and_without_labels():
    labels, probabilities = no_injury(4)
    out = TASK.measure(TASK.to_units(frame(labels, probabilities)))
    assert out.values["score"] == pytest.approx(literal_score(labels, probabilities)[0], abs=1e-9)
    assert out.values["auroc_kidney"] is None and out.reasons["auroc_kidney"] == "no positive among 60"
    assert out.values["ap_bowel"] is None and out.reasons["ap_bowel"] == "no patient with an injury"
    out = TASK.measure(TASK.to_units(frame({o: np.full(60, np.nan) for o in labels}, probabilities)))
    assert out.values["score"] is None and out.reasons["score"] == "no patient whose labels are all known"
    assert set(out.values.values()) == {None}


def test_patient_is_put_together_from_series():
    p = {
        "bowel": [[0.9, 0.1], [0.3, 0.7]],
        "extravasation": [[0.5, 0.5]] * 2,
        "kidney": [[0.8, 0.2, 0.0], [0.2, 0.3, 0.5]],
        "liver": [[1, 0, 0]] * 2,
        "spleen": [[1, 0, 0]] * 2,
    }
    rows = frame({o: [0, 0] for o in GRADES}, {o: np.array(v) for o, v in p.items()}, ["a", "a"])
    mean = TASK.to_units(rows)
    assert len(mean) == 1 and mean.unit[0] == "a" and "case" not in mean
    assert mean.score_bowel[0] == pytest.approx(0.4)
    assert mean[[f"score_kidney_{g}" for g in ("healthy", "low", "high")]].iloc[0].tolist() == pytest.approx(
        [0.5, 0.25, 0.25]
    )
    largest = create_task("rsna_trauma", patient_score="max").to_units(rows)
    assert largest.score_bowel[0] == pytest.approx(0.7 / 1.6)
    assert largest[[f"score_kidney_{g}" for g in ("healthy", "low", "high")]].iloc[0].tolist() == pytest.approx(
        [0.8 / 1.6, 0.3 / 1.6, 0.5 / 1.6]
    )
    rows.loc[1, ["score_liver_healthy", "score_liver_low", "score_liver_high"]] = 0.0
    with pytest.raises(InputError, match="liver: 1 of 2 rows are all zero"):
        TASK.to_units(rows)


def test_single_organ():
    task = create_task("rsna_trauma", organs=["spleen"])
    labels, probabilities = random_case(5)
    out = task.measure(task.to_units(frame(labels, probabilities)))
    assert [output.name for output in task.outputs] == ["spleen"] and task.main_metric == "loss"
    assert (
        out.values["score"] is None and "bowel, extravasation, kidney, liver were not trained" in out.reasons["score"]
    )
    _, losses = literal_score(labels, probabilities)
    assert out.values["loss"] == out.values["loss_spleen"] == pytest.approx(losses[4], abs=1e-9)
    assert task.main_value(frame(labels, probabilities)) == pytest.approx(losses[4], abs=1e-9)
    assert task.class_weights() == {"spleen": [1, 2, 4]}
    for organs in (["heart"], [], ["liver", "liver"]):
        with pytest.raises(InputError, match=r"task\.organs takes each of bowel"):
            create_task("rsna_trauma", organs=organs)


def test_no_constant_is_better_than_the_constant_predictor():
    """Single losses only: of them the weighted share is the exact minimum."""
    labels, probabilities = random_case(6)
    rows = frame(labels, probabilities)
    shares = TASK.constant_scores(rows)
    columns = {o.name: [shares[name] for name in o.score_columns] for o in TASK.outputs}
    best = {o: np.tile(v if len(v) > 1 else [1 - v[0], v[0]], (60, 1)) for o, v in columns.items()}
    best = official_score(labels, best)
    rng = np.random.default_rng(0)
    for _ in range(50):
        other = {o: np.tile(rng.dirichlet(np.ones(k)), (60, 1)) for o, k in GRADES.items()}
        found = official_score(labels, other)
        assert all(best[f"loss_{organ}"] < found[f"loss_{organ}"] for organ in GRADES)


def test_loss_weights_are_those_of_the_metric():
    """Training loss with ``class_weights`` over all patients equals the official loss of the same probabilities."""
    import torch

    rng = np.random.default_rng(7)
    labels, _ = random_case(7)
    logits = {o.name: rng.normal(size=(60, o.width)) for o in TASK.outputs}
    rows = frame(labels, {o: np.ones((60, k)) for o, k in GRADES.items()}).assign(**TASK.scores(logits))
    targets = {k: v.astype(float) for k, v in labels.items()}
    terms = TASK.loss(
        {k: torch.tensor(v) for k, v in logits.items()},
        {k: torch.tensor(v) for k, v in targets.items()},
        class_weights={k: torch.tensor(v) for k, v in TASK.class_weights().items()},
        expected=expected_weights(TASK, targets, np.ones(60), TASK.class_weights()),
    )
    got = TASK.measure(TASK.to_units(rows)).values
    assert {k: float(v) for k, v in terms.items()} == pytest.approx({k: got[f"loss_{k}"] for k in GRADES}, rel=1e-9)


def test_targets_and_strata():
    case = LabeledCase(Case("1-2", "train_images/1/2", "1"), dict.fromkeys(GRADES, 1.0), unit="1")
    assert TASK.targets(case) == dict.fromkeys(GRADES, 1.0)
    assert TASK.stratum(case) == "bowel"
    spleen = LabeledCase(case.case, {**dict.fromkeys(GRADES, 0.0), "spleen": 2.0})
    assert TASK.stratum(spleen) == "spleen" and create_task("rsna_trauma", organs=["spleen"]).stratum(spleen) == "2"
    assert create_task("rsna_trauma", organs=["liver", "kidney"]).stratum(spleen) == "healthy"


@pytest.mark.parametrize("organs", [list(GRADES), ["liver", "bowel"]])
def test_scores_of_shuffled_labels_are_those_one_by_one(organs):
    task = create_task("rsna_trauma", organs=organs)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"case": range(14), "patient": range(14), "unit": range(14)})
    for output in task.outputs:
        labels = rng.integers(0, max(2, output.width), 14).astype(float)
        labels[rng.random(14) < 0.1] = np.nan
        p = rng.dirichlet(np.ones(max(2, output.width)), 14)
        scores = p.T if output.width > 1 else p[:, 1:].T
        frame = frame.assign(**{output.label_column: labels}, **dict(zip(output.score_columns, scores)))
    frame.loc[3, task.outputs[0].score_columns[0]] = 1e-30
    places = rng.integers(0, 14, (40, 14))
    fast, slow = task.main.shuffled(frame, places), Metric.shuffled(task.main, frame, places)
    assert np.isfinite(slow).any() and fast == pytest.approx(slow, abs=1e-12, nan_ok=True)
