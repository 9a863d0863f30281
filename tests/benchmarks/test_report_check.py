"""What the page says about synthetic patients, and what it says once instead of at every row."""

from __future__ import annotations

import json

import pytest

from benchmarks.pages.content.check import check_parts, check_verdict
from benchmarks.pages.content.published import published_parts
from benchmarks.pages.content.sets import differences_table, results_table, search_table
from benchmarks.pages.document import Bullets, Fold, Table
from benchmarks.pages.sentences import facts_of, flags_of
from benchmarks.read.rows import group_runs, pairs_of
from benchmarks.read.run import read_run
from benchmarks.statistics.compare import RunInterval
from benchmarks.statistics.measure import Plan, Statistics, measure
from tests.benchmarks.run_maker import KINETICS, SYNTHETIC, VOCO, write_run

NO_IDENTITY = "split by study, not by patient: the data set has no patient identity"
SEARCH = {"search": {"setting": "train.lr", "tried": {"1e-4": 0.6, "1e-3": 0.7, "1e-2": 0.5}, "chosen": 1e-3}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A synthetic test set of scratch, VoCo and a line without an encoder, with its numbers."""
    root = tmp_path_factory.mktemp("runs")
    marks = [SYNTHETIC, NO_IDENTITY]
    for seed in range(2):
        write_run(root / f"scratch-{seed}", seed=seed, gain=2, patients=40, marks=marks, cell=SEARCH)
        write_run(root / f"voco-{seed}", seed=seed, gain=3, patients=40, marks=marks, provenance=[VOCO],
                  trained=seed == 0)  # fmt: skip
    for seed in range(2):
        write_run(root / f"kinetics-{seed}", seed=seed, gain=1, patients=40, marks=marks, provenance=[KINETICS],
                  trained=False)  # fmt: skip
    for name, parameters in (("metadata", None), ("slices", 11_000_000)):
        line = write_run(root / name, gain=0, patients=40, marks=marks, encoder=name, cell={"cheap": True,
                         "source": name})  # fmt: skip
        results = json.loads((line / "results.json").read_text())
        results["facts"]["parameters_encoder"] = parameters
        (line / "results.json").write_text(json.dumps(results))
    write_run(root / "wide", gain=2, patients=40, marks=[*marks, "a mark of its own"], encoder="r3d_18", trained=True)
    ((one,), _) = group_runs([read_run(folder) for folder in sorted(root.iterdir())])
    plan = Plan(({"a": "voco3d", "b": "scratch"},), {"": 0.05}, time="2026-05-01T00:00:00+00:00")
    statistics = Statistics(root / "numbers.json")
    intervals, comparisons, _ = measure([(one, pairs_of(one))], statistics, plan)
    return one, intervals, comparisons


def test_synthetic_patients_check_the_pipeline(measured):
    one, intervals, comparisons = measured
    parts = check_parts(1, one, comparisons, intervals)
    (bullets,) = [part for part in parts if isinstance(part, Bullets)]
    scratch = next(row for row in one.rows if row.source == "scratch" and row.first.encoder == "cnn3d_s")
    words = dict(reversed([(word, text) for word, text in bullets.items]))  # the first of each word
    assert f"all labels: AUROC {intervals[id(scratch)].point:.3f} [" in words["from scratch"]
    assert words["without an encoder"].startswith("metadata AUROC 0.")
    # two seeds leave a wide interval
    assert words["check"] == "not passed: scratch (cnn3d_s) is not surely better than metadata."
    assert "slices" not in words["without an encoder"]
    assert words["mode full"] == "2 of 4 rows trained in every run (all labels)."
    (table,) = [part for part in parts if isinstance(part, Table)]
    ((first, second, _, _, p, margin, network, mode, labels),) = [[cell.text for cell in row] for row in table.rows]
    assert (first, second, network, mode, labels, margin) == ("voco3d", "scratch", "cnn3d_s", "full", "100 %", "0.05")
    assert float(p) <= 1 and "says nothing about sources" in table.caption


@pytest.mark.parametrize(
    ("rows", "low", "verdict"),
    [("whole", 0.7, "passed:"), ("whole", 0.4, "not passed: scratch (cnn3d_s) is not surely better than metadata."),
     ("untrained", 0.7, "not passed: scratch (cnn3d_s) did not train in every run."), ("none", 0.7, "not possible"),
     ("unjudged", 0.7, "not possible here: whether"), ("alone", 0.7, "not possible here: no line"),
     ("lower", 0.7, "not passed: scratch (cnn3d_s) is not surely better"), ("lower", 0.4, "passed:")],
)  # fmt: skip
def test_the_check_is_passed_where_scratch_is_surely_above_cheap_lines(measured, rows, low, verdict, monkeypatch):
    one, *_ = measured
    scratch = next(row for row in one.rows if row.source == "scratch" and row.first.encoder == "cnn3d_s")
    line = next(row for row in one.rows if row.first.cheap)
    if rows in ("untrained", "unjudged"):
        monkeypatch.setitem(scratch.first.results["verdict"], "trained", False if rows == "untrained" else None)
    monkeypatch.setattr(one.task.main, "higher_is_better", rows != "lower")
    values = {"units": 40, "patients": 40, "runs": 2, "direction": "higher"}
    high = 0.9 if rows != "lower" else low + 0.05  # with a metric of which less is better the upper end decides
    intervals = {id(scratch): RunInterval(0.8, low, high, **values), id(line): RunInterval(0.5, 0.5, 0.5, **values)}
    lines = [line] if rows != "alone" else []
    assert check_verdict(one, [scratch] if rows != "none" else [], lines, intervals).startswith(verdict)


def test_marks_of_all_runs_stand_once(measured):
    one, intervals, _ = measured
    assert f"All runs: {NO_IDENTITY}." in facts_of(one)
    flags = [row[4].text for row in results_table("x", one, intervals).rows]
    assert not any(NO_IDENTITY in text for text in flags)
    assert sum("a mark of its own" in text for text in flags) == 1
    assert all("synthetic" in text for text in flags)


def test_differences_name_what_both_rows_are_and_no_p_of_what_did_not_train(measured):
    one, _, comparisons = measured
    rows = [[cell.text for cell in row] for row in differences_table("x", one, comparisons).rows]
    named = {(row[0], row[1], row[2]): row for row in rows}
    system = named["scratch", "scratch", "r3d_18 / cnn3d_s"]
    assert system[5].startswith("system comparison") and system[9] and system[10] == ""
    assert named["voco3d", "scratch", "cnn3d_s"][9]  # a primary keeps its p
    exploratory = [row for row in rows if "did not train" in row[-1] and "primary" not in row[5]]
    assert exploratory and all(row[6] for row in exploratory)
    silent = [c for c in comparisons if c.silent and not c.primary]
    assert silent and all(c.p is None and not c.shown for c in silent)
    assert all(not c.shown for c in comparisons if c.better.failed)


def test_settings_of_the_input_are_named_one_by_one(measured, tmp_path):
    one, *_ = measured
    other = write_run(tmp_path / "other", gain=2, patients=40, marks=[SYNTHETIC, NO_IDENTITY])
    text = (other / "encoder" / "config.json").read_text()
    (other / "encoder" / "config.json").write_text(text.replace("-200.0, 400.0", "-1000.0, 1000.0"))
    scratch = next(row for row in one.rows if row.source == "scratch" and row.first.encoder == "cnn3d_s")
    ((found,), _) = group_runs([scratch.first, read_run(other)])
    (pair,) = pairs_of(found)
    words = {"input windows (resolved): [[-200.0, 400.0]] / [[-1000.0, 1000.0]]",
             "input windows (resolved): [[-1000.0, 1000.0]] / [[-200.0, 400.0]]"}  # fmt: skip
    assert len(pair.differs) == 1 and set(pair.differs) <= words


def test_what_was_searched_has_every_trial(measured):
    one, *_ = measured
    (row,) = [row for row in search_table("x", one).rows if row[0].text == "scratch"]
    assert row[0].text == "scratch" and row[5].text == "within what was tried"
    assert row[4].text == "train.lr 0.001, of 3 trials on validation (0.0001: 0.600, 0.001: 0.700, 0.01: 0.500)"


@pytest.mark.parametrize(("patients", "flag"), [(9, True), (10, False)])
def test_verdicts_from_few_patients_are_flagged(tmp_path, patients, flag):
    unjudged = write_run(tmp_path / "unjudged", seed=1, patients=patients)
    results = json.loads((unjudged / "results.json").read_text())
    results["parts"].pop("validation")
    results["verdict"]["trained"] = None
    (unjudged / "results.json").write_text(json.dumps(results))
    ((one,), _) = group_runs([read_run(write_run(tmp_path / "run", patients=patients)), read_run(unjudged)])
    found = RunInterval(0.6, 0.5, 0.7, units=9, patients=9, runs=1, direction="higher")
    assert (f"training judged on {patients} validation patients" in flags_of(one.rows[0], found)) is flag


def test_one_reason_for_all_published_numbers_stands_once(measured, monkeypatch):
    one, intervals, _ = measured
    monkeypatch.setattr(one.task, "name", "rsna_pe")
    parts = published_parts([one], intervals)
    folds = [part for part in parts if isinstance(part, Fold)]
    assert parts == folds and folds
    for fold in folds:
        table = fold.parts[-1]
        assert table.caption.endswith("not comparable with any row of this report: own patients are synthetic.")
        assert table.columns[-1] == "remark" and "why not" not in table.columns
