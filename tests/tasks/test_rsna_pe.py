"""Task rsna_pe: presets, flips, official loss against loops, consistency rules."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tests.data.test_layouts_chest import NEGATIVE, POSITIVE, UNSURE, pe_rows, pe_tree
from voco.errors import InputError, ScanError
from voco.tasks import create_task
from voco.tasks.rsna_pe_loss import EXAM_LABELS, breaks_rules, official_loss, repair

# As published, written down once more.
WEIGHTS = {
    "negative_exam_for_pe": 0.0736196319, "indeterminate": 0.09202453988, "chronic_pe": 0.1042944785,
    "acute_and_chronic_pe": 0.1042944785, "central_pe": 0.1877300613, "leftsided_pe": 0.06257668712,
    "rightsided_pe": 0.06257668712, "rv_lv_ratio_gte_1": 0.2346625767, "rv_lv_ratio_lt_1": 0.0782208589,
}  # fmt: skip


def literal_loss(exam_labels, exam_probs, image_labels, image_probs, image_exam):
    def entropy(y, p):
        p = min(max(p, 1e-15), 1 - 1e-15)
        return -math.log(p) if y else -math.log(1 - p)

    total = weight = 0.0
    for e in range(len(exam_labels)):
        for k, name in enumerate(EXAM_LABELS):
            total += WEIGHTS[name] * entropy(exam_labels[e][k], exam_probs[e][k])
            weight += WEIGHTS[name]
        own = [i for i in range(len(image_exam)) if image_exam[i] == e]
        q = sum(image_labels[i] for i in own) / len(own) if own else 0.0
        for i in own:
            total += 0.07361963 * q * entropy(image_labels[i], image_probs[i])
            weight += 0.07361963 * q
    return total / weight


@pytest.mark.parametrize("seed", range(6))
def test_official_loss_equals_loops(seed):
    rng = np.random.default_rng(seed)
    exams = int(rng.integers(1, 8))
    sizes = rng.integers(1, 30, exams) if seed else np.ones(exams, int)  # seed 0: one image each
    exam = np.repeat(np.arange(exams), sizes)
    y = (rng.random(len(exam)) < 0.3).astype(float)
    y[exam == 0] = 0  # an exam without positives
    p, labels = rng.random(len(exam)), (rng.random((exams, 9)) < 0.4).astype(float)
    probs = rng.random((exams, 9))
    if seed > 2:  # certain, and sometimes wrong
        p[::3], p[1::3], probs[:, ::2], probs[0] = 0.0, 1.0, 1.0, 0.0
    order = rng.permutation(len(exam))
    found = official_loss(labels, probs, y[order], p[order], exam[order])
    assert found == pytest.approx(literal_loss(labels, probs, y, p, exam), rel=1e-12, abs=1e-12)
    assert np.isfinite(found)


def test_official_loss_of_a_perfect_and_an_ignorant_submission():
    labels = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 0]], float)
    exam, y = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1.0])
    assert official_loss(labels, labels, y, y, exam) < 1e-14
    half = np.full((2, 9), 0.5)
    assert official_loss(labels, half, y, np.full(4, 0.5), exam) == pytest.approx(math.log(2), abs=1e-12)
    with pytest.raises(ValueError, match="image_exam"):
        official_loss(labels, half, y, y, exam + 1)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        official_loss(labels, half * 3, y, y, exam)


def literal_rules(p, any_image):
    on = {name: int(value > 0.5) for name, value in zip(EXAM_LABELS, p)}
    ratios = on["rv_lv_ratio_gte_1"] + on["rv_lv_ratio_lt_1"]
    places = on["central_pe"] + on["rightsided_pe"] + on["leftsided_pe"]
    ages = on["chronic_pe"] + on["acute_and_chronic_pe"]
    if any_image:
        return ratios == 1 and places > 0 and ages < 2 and not on["negative_exam_for_pe"] and not on["indeterminate"]
    return on["negative_exam_for_pe"] + on["indeterminate"] == 1 and ratios + places + ages == 0


def test_rules_and_repair():
    every = np.array(list(product([0.2, 0.7], repeat=9)))
    rng = np.random.default_rng(0)
    probs = np.vstack([every, every, rng.random((300, 9)), np.full((2, 9), 0.5)])
    state = np.concatenate([np.zeros(512), np.ones(512), rng.random(300) < 0.5, [0, 1]]).astype(bool)
    broken = breaks_rules(probs, state)
    assert broken.tolist() == [not literal_rules(p, s) for p, s in zip(probs, state)]
    fixed = repair(probs, state)
    assert not breaks_rules(fixed, state).any()
    np.testing.assert_array_equal(fixed[~broken], probs[~broken])
    # nothing is moved further than across the threshold, and nothing that need not move
    moved = fixed != probs
    assert np.isin(fixed[moved], [0.5, 0.5 + 1e-6]).all()
    column = {name: k for k, name in enumerate(EXAM_LABELS)}
    p = np.full((1, 9), 0.1)
    p[0, column["rv_lv_ratio_gte_1"]], p[0, column["rv_lv_ratio_lt_1"]] = 0.9, 0.8
    p[0, column["central_pe"]], p[0, column["leftsided_pe"]] = 0.3, 0.4
    expected = p.copy()
    expected[0, column["rv_lv_ratio_lt_1"]], expected[0, column["leftsided_pe"]] = 0.5, 0.5 + 1e-6
    np.testing.assert_array_equal(repair(p, np.array([True])), expected)


FOUR = pe_rows("d4", [0] * 30 + [1] * 4 + [0] * 30, rv_lv_ratio_lt_1=1, leftsided_pe=1)


def test_presets_and_indeterminate_exams(tmp_path):
    pe_tree(tmp_path, [*POSITIVE, *NEGATIVE, *UNSURE, *FOUR])
    labels = {}
    for name, options in {
        "default": {}, "negative": {"indeterminate": "negative"}, "ke_3d": {"preset": "ke_3d"},
        "ke_lrcn": {"preset": "ke_lrcn"},
    }.items():  # fmt: skip
        task = create_task("rsna_pe", **options)
        manifest = task.read(tmp_path)
        labels[name] = {case.id: task.targets(case)["pe"] for case in manifest.cases}
        assert any(note.startswith("1 indeterminate exams were") for note in manifest.notes)
    assert labels["default"] == {"a1": 1, "b2": 0, "d4": 1}
    assert labels["negative"] == {"a1": 1, "b2": 0, "c3": 0, "d4": 1}
    assert labels["ke_lrcn"] == {"a1": 1, "b2": 0, "c3": 1, "d4": 1}
    assert labels["ke_3d"] == {"a1": 0, "b2": 0, "c3": 0, "d4": 1}, "two positive images are too few"
    # once the order of slices is known: four in a row across the border of two windows of 32 are in neither
    task = create_task("rsna_pe", preset="ke_3d")
    cases = {case.id: case for case in task.read(tmp_path).cases}
    where = np.arange(64.0)
    at = {start: np.isin(np.arange(64), range(start, start + 4)).astype(float) for start in (10, 30)}
    assert task.targets_from_slices(cases["d4"], where, at[10]) == {"pe": 1.0}
    assert task.targets_from_slices(cases["d4"], where, at[30]) == {"pe": 0.0}
    overlapping = create_task("rsna_pe", preset="ke_3d", window_stride=16)
    assert overlapping.targets_from_slices(cases["d4"], where, at[30]) == {"pe": 1.0}
    assert task.targets_from_slices(cases["c3"], where, at[10]) == {"pe": 0.0}
    with pytest.raises(ScanError, match="order of slices"):
        task.targets_from_slices(cases["d4"], np.zeros(0), np.zeros(0))
    assert create_task("rsna_pe").targets_from_slices(cases["d4"], where, at[30]) == {"pe": 1.0}
    assert task.window_targets(at[10][:13]) == {"pe": 0.0} and task.window_targets(at[10][:14]) == {"pe": 1.0}
    assert create_task("rsna_pe").window_targets(at[10][:11]) == {"pe": 1.0}


def test_test_part_and_options(tmp_path):
    pe_tree(tmp_path, NEGATIVE, part="test")
    case = create_task("rsna_pe").read_unlabeled(tmp_path).cases[0]
    assert math.isnan(create_task("rsna_pe").targets(case)["pe"])
    for options, why in (
        ({"preset": "ke"}, "task.preset must be one of"),
        ({"heads": "exam", "preset": "ke_3d"}, "belongs to task.heads=pe"),
        ({"min_positive_slices": 33}, "from 0 to the window"),
    ):
        with pytest.raises(InputError, match=why):
            create_task("rsna_pe", **options)
    pe_tree(tmp_path / "x", UNSURE)
    with pytest.raises(InputError, match="all 1 exams"):
        create_task("rsna_pe").read(tmp_path / "x")


def test_flips_swap_sides():
    task = create_task("rsna_pe", heads="exam")
    targets = {name: float(k) for k, name in enumerate(EXAM_LABELS)}
    swapped = task.flip_targets(targets, [2])
    assert swapped["leftsided_pe"] == targets["rightsided_pe"] and swapped["rightsided_pe"] == targets["leftsided_pe"]
    assert task.flip_targets(swapped, [2]) == targets and task.flip_targets(targets, []) == targets
    assert {name for name in targets if swapped[name] != targets[name]} == {"leftsided_pe", "rightsided_pe"}
    with pytest.raises(InputError, match="belong to studies"):
        task.window_targets(np.ones(3))


def frames(seed=0, studies=40):
    """Predictions of nine heads and of images, as they are stored."""
    rng = np.random.default_rng(seed)
    state = rng.integers(0, 3, studies)  # positive, negative, indeterminate
    units = pd.DataFrame({"case": [f"c{k}" for k in range(studies)]})
    units["unit"] = units["patient"] = units["case"]
    units["fold"], units["split"] = 0, "test"
    for name in EXAM_LABELS:
        label = (rng.random(studies) < 0.5) & (state == 0)
        label = {"negative_exam_for_pe": state == 1, "indeterminate": state == 2}.get(name, label)
        units[f"label_{name}"], units[f"score_{name}"] = label.astype(float), rng.random(studies)
    images = pd.DataFrame({"unit": np.repeat(units["unit"], 5)}).sample(frac=1, random_state=seed, ignore_index=True)
    positive = images["unit"].isin(units["unit"][state == 0])
    images["label"] = (positive & (rng.random(len(images)) < 0.5)).astype(float)
    images["score"], images["sop_uid"] = rng.random(len(images)), [f"i{k}" for k in range(len(images))]
    return units, images, state


def test_metrics_of_nine_heads():
    units, images, state = frames()
    task = create_task("rsna_pe", heads="exam")
    found = task.measure(task.to_units(units), images).values
    row = {unit: k for k, unit in enumerate(units["unit"])}
    args = (
        units[[f"label_{n}" for n in EXAM_LABELS]].to_numpy(), units[[f"score_{n}" for n in EXAM_LABELS]].to_numpy(),
        images["label"].to_numpy(), images["score"].to_numpy(), images["unit"].map(row).to_numpy(),
    )  # fmt: skip
    assert found["log_loss"] == pytest.approx(literal_loss(*args), abs=1e-12)
    state_on = [any(images["score"][images["unit"] == unit] > 0.5) for unit in units["unit"]]
    fixed = repair(args[1], np.array(state_on))
    assert found["log_loss_repaired"] == pytest.approx(literal_loss(args[0], fixed, *args[2:]), abs=1e-12)
    assert found["inconsistent_exams"] == sum(not literal_rules(p, s) for p, s in zip(args[1], state_on)) > 0
    score = 1 - units["score_negative_exam_for_pe"] - units["score_indeterminate"]
    sure = state != 2
    assert found["auroc"] == pytest.approx(roc_auc_score(state[sure] == 0, score[sure].clip(lower=0)))
    assert found["image_auroc"] == pytest.approx(roc_auc_score(images["label"], images["score"]))
    taken = create_task("rsna_pe", heads="exam", indeterminate="negative").main_value(units)
    assert taken == pytest.approx(roc_auc_score(state == 0, score.clip(lower=0)))
    rows = task.submission(task.to_units(units), images)
    assert len(rows) == 40 * 9 + 200 and rows[0][0] == "c0_negative_exam_for_pe" and rows[-1][0] == "i199"


def test_what_is_not_defined_says_why():
    units, images, _ = frames(1, 6)
    exam, pe = create_task("rsna_pe", heads="exam"), create_task("rsna_pe")
    for given, why in (
        (None, "needs image scores"),
        (images[images["unit"] != "c0"], "1 of 6 exams have no image scores"),
        (images.assign(score=images["score"].where(images.index != 3)), "1 of 30 images have no score"),
    ):
        found = exam.measure(units, given)
        assert found.values["log_loss"] is None and why in found.reasons["log_loss"]
    units["label_pe"], units["score_pe"] = [1.0] * 6, 0.5
    found = pe.measure(units)
    assert found.values["auroc"] is None and "no negative among 6" in found.reasons["auroc"]
    assert "task.heads=exam" in found.reasons["log_loss"] and found.reasons["image_auroc"] == "no image scores"
    assert math.isnan(pe.main_value(units))
    with pytest.raises(InputError, match="lack the columns score_pe"):
        pe.measure(units.drop(columns="score_pe"))
