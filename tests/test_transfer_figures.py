"""Pictures of finetune runs: of the promised size, curves equal to scikit-learn's, words that say the numbers."""

from __future__ import annotations

import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from voco.figures import ranking
from voco.figures.calibration import groups_of_scores, reliability, wilson
from voco.figures.confusion import confusion
from voco.figures.evidence import Evidence, evidence
from voco.figures.export import save
from voco.figures.finetune import learning_curves
from voco.figures.ranking import GRID, roc_pr


@pytest.fixture
def texts(monkeypatch):
    """Everything that was written into the figure saved last: words and their boxes in pixels."""
    seen, plain = {}, Figure.savefig

    def savefig(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        seen.clear()
        found = [t for t in self.findobj(Text) if t.get_text().strip() and t.get_visible()]
        seen.update({(t.get_text(), i): t.get_window_extent() for i, t in enumerate(found)})

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def words(texts):
    return " | ".join(text for text, _ in texts)


def check(path, texts):
    image = matplotlib.image.imread(path)
    assert image.shape[1] == 1200 and image.shape[0] > 400 and image[..., :3].std() > 0.02
    # numbers may be marks of an axis beyond its end, which are not drawn
    boxes = [box for (text, _), box in texts.items() if not re.fullmatch(r"\W?[\d.]+", text)]
    assert all(b.x0 >= 0 and b.x1 <= 1200 and b.y0 >= 0 and b.y1 <= image.shape[0] for b in boxes)
    return image


def scored(n=80, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(float)
    return y, 1 / (1 + np.exp(-(1.5 * y + rng.normal(size=n) - 1)))


def test_curves_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_curve, roc_curve

    y, s = scored()
    s = np.round(s, 1)  # ties
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    inside = fpr[fpr > 0].min() < GRID
    assert ranking.roc(y, s, np.ones(len(y)))[inside] == pytest.approx(np.interp(GRID, fpr, tpr)[inside], abs=1e-12)
    precision, recall, _ = precision_recall_curve(y, s)
    expected = [precision[np.flatnonzero(recall >= r - 1e-9)[-1]] for r in GRID[1:]]
    assert ranking.precision(y, s, np.ones(len(y)))[1:] == pytest.approx(expected, abs=1e-12)
    assert ranking.roc(np.zeros(4), np.arange(4.0), np.ones(4)) is None


@pytest.mark.parametrize("folds", [1, 4])
def test_roc_and_precision(tmp_path, texts, folds, monkeypatch):
    monkeypatch.setattr("voco.figures.ranking._DRAWS", 30)
    from sklearn.metrics import average_precision_score, roc_auc_score

    y, s = scored()
    fold = np.arange(80) % folds
    path = save(roc_pr(y, s, [f"p{i // 2}" for i in range(80)], folds=fold, name="nodule"), tmp_path / "f" / "r.png")
    check(path, texts)
    area, ap = (np.mean([f(y[fold == k], s[fold == k]) for k in range(folds)])
                for f in (roc_auc_score, average_precision_score))  # fmt: skip
    assert f"nodule: AUROC {area:.3f} (" in words(texts) and f"precision, AP {ap:.3f} (" in words(texts)
    assert "over 40 patients" in words(texts) and ("Thin lines: 4 folds" in words(texts)) == (folds > 1)


def test_one_class_only_is_said(tmp_path, texts):
    check(save(roc_pr(np.zeros(5), np.arange(5.0), list("abcde")), tmp_path / "r.png"), texts)
    assert "not defined: one class only" in words(texts) and "AUROC not defined on 5 cases, 0 positive" in words(texts)


def test_groups_of_calibration_hold_every_case_and_their_intervals_are_wilsons(tmp_path, texts):
    from scipy.stats import binomtest

    y, s = scored(120)
    rows = groups_of_scores(y, s)
    assert len(rows) == 10 and sum(row["cases"] for row in rows) == 120
    assert sum(row["positive"] for row in rows) == y.sum()
    assert np.average([row["score"] for row in rows], weights=[row["cases"] for row in rows]) == pytest.approx(s.mean())
    for hits, count in ((0, 12), (5, 12), (12, 12), (1, 1)):
        known = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits, count) == pytest.approx((known.low, known.high), abs=1e-9)
    assert len(groups_of_scores(y, np.full(120, 0.3))) == 1
    check(save(reliability(np.r_[y, np.nan], np.r_[s, 0.5], name="nodule"), tmp_path / "c.png"), texts)
    brier = np.mean((s - y) ** 2)
    assert f"Brier score {brier:.3f}" in words(texts) and f"and {y.mean():.0%} are positive" in words(texts)
    check(save(reliability([], []), tmp_path / "c.png"), texts)
    assert "No case has a known label" in words(texts)


def rows(offset=0.0):
    out = [{"step": step, "loss": 0.7 * np.exp(-step / 300)} for step in range(10, 501, 10)]
    out += [{"step": step, "validation_loss": 0.5, "validation_auroc": 0.5 + step / 2000 + offset}
            for step in range(100, 501, 100)]  # fmt: skip
    return out


def test_learning_curves_say_what_was_kept(tmp_path, texts):
    check(save(learning_curves({0: rows()}, "auroc", best_steps={0: 400}, constant=0.5), tmp_path / "l.png"), texts)
    assert "auroc on validation is 0.700 at the step that was kept" in words(texts)
    assert "step 400: 0.700" in words(texts) and "constant 0.50" in words(texts)
    both = {0: rows(), 1: rows(0.1)}
    check(save(learning_curves(both, "auroc", best_steps={0: 500, 1: 100}), tmp_path / "l.png"), texts)
    assert "auroc on validation is 0.650 to 0.750 over 2 folds" in words(texts)
    check(save(learning_curves({0: [{"step": 1, "loss": float("nan")}]}, "kappa"), tmp_path / "l.png"), texts)
    assert "No kappa was measured" in words(texts) and "no validation patients" in words(texts)


def study(positive, saliency=True):
    hu = np.full((40, 30, 36), -900.0)
    hu[:, 8:22, 8:28] = 40
    heat = np.zeros(hu.shape)
    heat[22, 14, 20] = 1
    labels = np.zeros(40)
    labels[20:25] = positive
    starts = np.array([0, 10, 20, 30])
    return Evidence("study", hu, (2.5, 1.0, 1.0), starts, 10, np.array([0.1, 0.2, 0.9, 0.1]), np.arange(40.0), labels,
        heat if saliency else None, "positive" if positive else "negative", 0.9)  # fmt: skip


def test_the_slice_shown_is_that_of_the_highest_score():
    case = study(1)
    assert case.slice_scores()[[0, 15, 25]].tolist() == [0.1, 0.2, 0.9]
    assert case.best_slice() == 22 and study(1, saliency=False).best_slice() == 25
    overlapping = Evidence("a", case.hu, case.spacing_mm, np.array([-5, 0, 20]), 10, np.array([0.2, 0.4, 0.1]))
    assert overlapping.slice_scores()[[2, 7]] == pytest.approx([0.3, 0.4])
    assert np.isnan(overlapping.slice_scores()[15]) and 5 <= overlapping.best_slice() < 10


def test_evidence_marks_positive_slices_and_saliency(tmp_path, texts):
    image = check(save(evidence([study(1), study(0, saliency=False)]), tmp_path / "e.png"), texts)
    assert "In 1 of 1 studies with positive slices the highest score falls on one of them" in words(texts)
    assert "slice 23 of 40, labeled positive" in words(texts) and "no saliency map" in words(texts)
    # the slices labeled positive are orange beside the curve: 20 to 24 of 40, from below
    column = image[132:432, 440, :3]
    orange = np.flatnonzero((column[:, 0] > 0.9) & (column[:, 2] < 0.8) & (column[:, 2] > 0.5))
    assert orange.min() >= 300 * (40 - 25) / 40 - 2 and orange.max() <= 300 * (40 - 20) / 40 + 2 and len(orange) > 30
    # the overlay is coloured, the plain slice is grey
    plain, overlay = image[132:432, 526:826, :3], image[132:432, 848:1148, :3]
    assert np.ptp(plain, axis=2).max() < 0.01 < np.ptp(overlay, axis=2).max()
    check(save(evidence([study(0)]), tmp_path / "e.png"), texts)
    assert "What the scores of 1 studies rest on" in words(texts)


def test_a_confusion_matrix_counts_what_it_is_told(tmp_path, texts):
    check(save(confusion(np.diag([3, 0, 2]), ["a", "b", "c"], noun="scans"), tmp_path / "c.png"), texts)
    assert "5 of 5 held-out scans are named right" in words(texts) and "have no held-out scan" in words(texts)
    assert "number of scans" in words(texts) and "clip" not in words(texts)
