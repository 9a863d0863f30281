from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.pages.charts.flow import flow_chart
from benchmarks.pages.findings import finding
from benchmarks.pages.paper import escaped, latex
from benchmarks.pages.sentences import facts_of, flags_of, search_flags
from benchmarks.read.flops import forward_flops
from benchmarks.read.rows import Pair, group_runs, pairs_of
from benchmarks.read.run import read_run
from benchmarks.report import main, write_report
from benchmarks.statistics.compare import METHOD, Difference, RunInterval
from benchmarks.statistics.measure import Comparison, Plan, Statistics, measure
from tests.benchmarks.run_maker import KINETICS, SYNTHETIC, VOCO, write_run
from tests.tasks.tables import Brier
from voco.figures import save
from voco.tasks.metrics import METRICS

# Words that no report may use, whatever comes out.
FORBIDDEN = r"\b(best|winner|superior|outperform\w*|clinical\w*|diagnos\w*|radiologist\w*|state.of.the.art)\b"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    for seed in range(2):
        write_run(root / f"scratch-{seed}", seed=seed, gain=0.6, patients=60)
        write_run(root / f"voco-{seed}", seed=seed, gain=3.6, patients=60, provenance=[VOCO])
    write_run(root / "kinetics", gain=7, patients=60, provenance=[KINETICS])
    write_run(root / "flat", gain=0, patients=60, provenance=[KINETICS, VOCO], trained=False)
    drawn = {"patients": 20, "labels_seed": 3, "marks": [SYNTHETIC], "trained": True}
    write_run(root / "phantom-a", gain=1, **drawn)
    write_run(root / "phantom-b", gain=6, provenance=[VOCO], **drawn)
    (root / "begun").mkdir()
    (root / "begun" / "config.yaml").write_text("seed: 0\n")
    (root / "begun" / "run.json").write_text('{"state": "running"}')
    return root


def without_pdf(figure, path, title):
    """Tests of charts write real ones, which take a tenth of a second each."""
    if path.suffix == ".pdf":
        path.write_text("%PDF")
        return path
    return save(figure, path, title)


@pytest.fixture(scope="module")
def out(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.pages.charts.chart.save", without_pdf)
        assert main([str(root), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(out):
    return Page((out / "report.html").read_text())


@pytest.fixture(scope="module")
def sets(root):
    names = ("scratch-0", "scratch-1", "voco-0", "voco-1", "kinetics", "flat", "phantom-a", "phantom-b")
    return group_runs([read_run(root / name) for name in names])[0]


class Page(HTMLParser):
    """Tables, visible text and everything that could load something."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.links, self.text, self._inside, self._cell = [], [], "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside.append(tag)
        names = dict(attributes)
        self.links += [v for k, v in attributes if k in ("src", "href", "data", "action", "srcset", "xlink:href")]
        if tag in ("meta", "path", "circle", "rect", "polygon", "polyline"):
            self._inside.pop()
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = [names.get("data-v"), ""]
            self.tables[-1][-1].append(self._cell)

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if not {"style", "script"} & set(self._inside):
            self.text += data + " "
            if self._cell is not None:
                self._cell[1] += data

    def rows(self, head: str) -> list[list[str]]:
        """Texts of the tables whose first column has this head."""
        return [[cell[1] for cell in row] for table in self.tables if table[0][0][1] == head for row in table[1:]]


def auroc(folder) -> float:
    rows = pd.read_csv(folder / "predictions.csv")
    rows = rows[rows["split"] == "test"]
    return roc_auc_score(rows["label_label"], rows["score_label"])


def test_figures_are_those_of_scikit_learn(page, root):
    rows = {row[0]: row for row in page.rows("source") if row[6] == "cnn3d_s" and "synthetic" not in row[4]}
    for name, folders in {"scratch": ("scratch-0", "scratch-1"), "voco3d": ("voco-0", "voco-1")}.items():
        expected = np.mean([auroc(root / folder) for folder in folders])
        assert rows[name][2] == f"{expected:.3f}"
        low, high = map(float, re.findall(r"[\d.]+", rows[name][3]))
        assert low < expected < high
    differences = {(row[0], row[1]): row[6] for row in reversed(page.rows("first"))}  # synthetic ones come last
    expected = np.mean([auroc(root / f"voco-{i}") - auroc(root / f"scratch-{i}") for i in range(2)])
    assert differences["voco3d", "scratch"] == f"{expected:+.3f}"


def test_the_page_loads_nothing_and_forbids_it(page, out):
    assert page.links and all(link.startswith("#") for link in page.links)
    text = (out / "report.html").read_text()
    assert "default-src 'none'" in text and not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme:dark" in text and "@media print" in text and 'name="viewport"' in text


def test_no_report_says_more_than_its_numbers(page, out):
    for text in (page.text, (out / "report.md").read_text(), (out / "paper" / "methods.txt").read_text()):
        assert not re.search(FORBIDDEN, text, re.IGNORECASE)


def test_every_row_has_what_must_stand_beside_it(page):
    rows = page.rows("source")
    assert len(rows) == 6
    assert all(re.fullmatch(r"\d+ no match found", row[8]) and row[9] == "2" for row in rows)
    flags = {(row[0], "synthetic" in row[4]): row[4] for row in rows}
    assert "ceiling" in flags["kinetics400", False] and "ceiling" not in flags["scratch", False]
    assert "did not train (1 of 1)" in flags["kinetics400 → voco3d", False]
    assert "2 seeds (fewer than 5)" in flags["voco3d", False]
    assert "AUROC ↑" in page.text and "Looks at this test set so far: 2" in page.text


def test_nothing_is_said_of_sources_from_synthetic_patients(page, out):
    assert "1 of 2 test sets is synthetic: pipeline check, says nothing about sources." in page.text
    assert page.text.count("was higher than") == (out / "report.md").read_text().count("was higher than") > 0
    assert "on 20 test patients" not in page.text
    for name in ("02-table-effects", "02-table-1-label-roc", "02-table-flow"):
        assert "synthetic: pipeline check" in (out / "paper" / "figures" / f"{name}.svg").read_text()
    assert "synthetic" not in (out / "paper" / "figures" / "01-table-effects.svg").read_text()


def test_a_report_on_synthetic_patients_alone_says_so_in_its_title(root, tmp_path):
    found = write_report([root / "phantom-a", root / "phantom-b"], tmp_path, paper=False)
    shown = Page(found.read_text())
    assert "Pretraining sources compared: pipeline check, says nothing about sources" in shown.text
    assert "was higher than" not in shown.text and "no difference shown" not in shown.text


def test_pretraining_on_synthetic_data_is_marked_wherever_its_row_stands(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "runs" / f"scratch-{seed}", seed=seed, gain=0.6)
        drawn = VOCO | {"synthetic": True}
        write_run(tmp_path / "runs" / f"voco-{seed}", seed=seed, gain=5, provenance=[drawn])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.pages.charts.chart.save", without_pdf)
        found = write_report([tmp_path / "runs"], tmp_path)
    shown, text = Page(found.read_text()), (tmp_path / "report.md").read_text()
    banner = "Pretraining on synthetic data stands behind 1 of 2 rows (voco3d). They say nothing about"
    for words in (banner, "one pretraining run of voco3d. Pretrained on synthetic data: voco3d."):
        assert words in shown.text and words in text
    flags = {row[0]: row[4] for row in shown.rows("source")}
    assert "pretrained on synthetic data: voco3d" in flags["voco3d"] and "synthetic" not in flags["scratch"]
    assert shown.rows("first")[0][-1].startswith("pretrained on synthetic data: voco3d")
    assert shown.rows("training")[0][2].startswith("synthetic: ")
    assert "pretrained on synthetic" in (tmp_path / "paper" / "figures" / "01-table-effects.svg").read_text()
    assert "pretrained on synthetic" in (tmp_path / "paper" / "tables" / "01-table-results.tex").read_text()


def test_cost_learning_provenance_and_what_was_left_out(page, root):
    cost = {row[1]: row for row in page.rows("test set")}
    assert cost["scratch"][7] == "none" and cost["kinetics400"][7] == "published (unknown)"
    assert cost["voco3d"][7] == "2.0 h" and cost["voco3d"][8] == "40,000" and cost["scratch"][10] == "10.0 min"
    spent = forward_flops("cnn3d_s", "{}", ((-200.0, 400.0),), (24, 32, 32)) * 3 * 800
    assert cost["scratch"][12] == f"{spent / 1e12:,.4g} T"
    health = {row[0]: row for row in page.rows("training")}
    assert health["voco3d"][7] == "0.520" and "not measured here" in health["kinetics400"][-1]
    assert len(page.rows("folder")) == 8
    assert f"{root / 'begun'} has not finished (state 'running')" in page.text


def test_the_markdown_twin_has_the_same_tables(page, out):
    text = (out / "report.md").read_text()
    assert len(re.findall(r"^\|(?: ---:? \|)+$", text, re.MULTILINE)) == len(page.tables)
    for picture in re.findall(r"\]\((paper/[^)]+)\)", text):
        assert (out / picture).is_file()
    plain = [cell for table in page.tables for row in table for _, cell in row]
    assert all(cell.replace("|", "\\|") in text for cell in plain)


def test_the_paper_folder_has_every_figure_with_its_numbers(out, sets):
    figures = out / "paper" / "figures"
    names = {path.stem for path in figures.glob("*.svg")}
    assert {"01-table-effects", "01-table-labels-1", "01-table-1-label-roc", "01-table-cost", "01-table-flow"} <= names
    for name in names:
        ElementTree.parse(figures / f"{name}.svg")
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with (figures / f"{name}.csv").open() as file:
            rows = list(csv.reader(file))
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1
    table = (out / "paper" / "tables" / "01-table-results.tex").read_text()
    assert table.count(r" \\") == 1 + 4 and r"\toprule" in table and r"$\uparrow$" in table
    assert escaped("50 % of a_b → {x} \\") == r"50 \% of a\_b $\to$ \{x\} \textbackslash{}"
    flow = flow_chart("flow", sets[0])
    assert ("340 scans in the data set", "340", "") in flow.rows and ("rejected", 2, "cannot be read") in flow.rows
    assert ("train: 200 patients", "200", "200 scans") in flow.rows


def comparison(sets, a="voco3d", b="scratch", index=0, **kw) -> Comparison:
    one = next(one for one in sets if one.synthetic == bool(index))
    rows = {row.label: row for row in one.rows}
    values = {"point": 0.1, "low": 0.05, "high": 0.15, "p": 0.001} | kw.pop("numbers", {})
    found = Difference(units=60, patients=60, runs=5, runs_a=5, runs_b=5, direction="higher", **values)
    return Comparison(Pair(rows[a], rows[b], "source"), found, **kw), one


def test_sentences(sets):
    shown, one = comparison(sets)
    assert finding(shown, one) == (
        "AUROC, cnn3d_s, full, all labels: voco3d was higher than scratch by 0.100 [0.050, 0.150] on 60 test patients, "
        "5 seeds, one pretraining run of voco3d."
    )
    turned, _ = comparison(sets, "scratch", "voco3d", numbers={"point": -0.1, "low": -0.15, "high": -0.05})
    assert finding(turned, one) == finding(shown, one)
    both, _ = comparison(sets, "voco3d", "kinetics400", numbers={"low": -0.0512, "high": 0.2})
    assert finding(both, one).endswith(
        "no difference shown between voco3d and kinetics400 (+0.100 [-0.051, +0.200]); differences above 0.200 are "
        "excluded, on 60 test patients, 5 seeds, one pretraining run each."
    )
    inside = replace(both, margin=0.3)
    assert finding(inside, one).endswith("The interval lies within the margin of 0.3 that was named beforehand.")
    assert "reaches beyond the margin of 0.1" in finding(replace(both, margin=0.1), one)
    assert "margin" not in finding(replace(shown, margin=0.1), one)
    assert finding(replace(shown, margin=0.2), one).endswith("within the margin of 0.2 that was named beforehand.")


def test_a_difference_is_shown_when_the_better_side_trained(sets):
    text = finding(*comparison(sets, "voco3d", "kinetics400 → voco3d"))
    assert text.startswith(
        "AUROC, cnn3d_s, full, all labels: kinetics400 → voco3d did not train (1 of 1 runs), voco3d did; voco3d was "
        "higher by 0.100 [0.050, 0.150] on 60 test patients"
    )
    text = finding(*comparison(sets, "kinetics400 → voco3d", "voco3d"))
    assert "no gain is stated: kinetics400 → voco3d did not train (1 of 1 runs), though it was higher than" in text
    assert finding(*comparison(sets, index=1)).endswith("pipeline check, says nothing about sources.")


def test_only_where_neither_side_trained_nothing_is_said(sets, monkeypatch):
    one = next(one for one in sets if not one.synthetic)
    rows = {row.label: row for row in one.rows}
    for run in rows["scratch"].runs:
        monkeypatch.setitem(run.results["verdict"], "trained", False)
    neither, _ = comparison(sets, "scratch", "kinetics400 → voco3d")
    assert not neither.shown and neither.p is None
    assert finding(neither, one).endswith(
        "nothing is said of their difference, because neither trained: scratch did not in 2 of 2 runs and "
        "kinetics400 → voco3d did not in 1 of 1 runs."
    )
    # not known to have failed is not failed: the number is shown, and that nobody judged
    monkeypatch.setitem(rows["kinetics400 → voco3d"].first.results["verdict"], "trained", None)
    unknown, _ = comparison(sets, "kinetics400 → voco3d", "scratch")
    text = finding(unknown, one)
    assert unknown.shown and "scratch did not train (2 of 2 runs); kinetics400 → voco3d was higher by 0.100" in text
    assert text.endswith("Whether training worked was not judged: kinetics400 → voco3d.")
    # one failed run of three does not silence a row, and is named
    monkeypatch.setitem(rows["voco3d"].first.results["verdict"], "trained", False)
    monkeypatch.setattr(rows["voco3d"], "runs", [*rows["voco3d"].runs, rows["voco3d"].runs[1]])
    some, _ = comparison(sets, "voco3d", "kinetics400")
    assert some.shown and finding(some, one).endswith("Did not train: voco3d in 1 of 3 runs.")


def test_sentences_say_whom_they_concern(sets):
    fixed, one = comparison(sets, "kinetics400", "kinetics400 → voco3d", numbers={"design": "fixed"})
    assert "on 60 test patients, one run each, one pretraining run each. With" in finding(fixed, one)
    assert "this concerns these two trained networks, not their sources." in finding(fixed, one)
    nested, _ = comparison(sets, "voco3d", "kinetics400", numbers={"design": "nested"})
    text = finding(nested, one)
    assert "2 and 1 runs" in text and "With one run of kinetics400 this concerns that trained network" in text
    numbers = {"low": -0.02, "high": 0.22, "fixed_low": 0.04, "fixed_high": 0.16}
    text = finding(*comparison(sets, numbers=numbers))
    assert "no difference shown between voco3d and scratch" in text
    assert text.endswith(
        "With these runs held fixed the interval is [+0.040, +0.160]: these trained networks differ, and another set "
        "of runs need not."
    )
    assert "held fixed" not in finding(*comparison(sets, numbers=numbers | {"fixed_low": -0.01}))


def test_a_primary_that_does_not_hold_after_holm_is_not_shown(sets):
    held, one = comparison(sets, primary=True, p_holm=0.03)
    assert finding(held, one).endswith(", p 0.030 after Holm.")
    lost, _ = comparison(sets, primary=True, p_holm=0.2)
    assert "no difference shown between voco3d and scratch after Holm's correction" in finding(lost, one)


def test_where_lower_is_better_the_words_turn_round(sets, monkeypatch):
    shown, one = comparison(sets)
    for row in (shown.pair.a, shown.pair.b):
        monkeypatch.setattr(row.first.task.main, "higher_is_better", False)
    monkeypatch.setattr(one.task.main, "higher_is_better", False)
    text = finding(shown, one)
    assert "scratch was lower than voco3d by 0.100 [0.050, 0.150] (lower is better)" in text


def test_a_search_that_ends_on_its_edge_is_flagged(sets):
    run = replace(
        sets[0].run, cell={"search": {"setting": "train.lr", "tried": {"1e-4": 0.6, "1e-3": 0.7}, "chosen": 1e-3}}
    )
    assert search_flags([run]) == ["train.lr 0.001 lies on the edge of the search"]
    run.cell["search"]["tried"]["1e-2"] = 0.5
    assert search_flags([run]) == []


def test_primaries_count_only_when_named_before_the_first_look(sets, root, tmp_path):
    one = next(one for one in sets if not one.synthetic)
    item = {"a": "scratch", "b": "voco3d", "task": "table"}
    look = {"time": "2026-05-02T00:00:00+00:00", "test_set": ""}
    (one.run.folder / "test_ledger.jsonl").write_text(json.dumps(look) + "\n")
    statistics = Statistics(tmp_path / "numbers.json")
    pairs = [(one, pairs_of(one))]
    _, found, warnings = measure(pairs, statistics, Plan((item,), {"": 0.02}, time="2026-05-01T00:00:00+00:00"))
    named = [c for c in found if c.primary]
    assert [(c.pair.a.source, c.pair.b.source, c.margin) for c in named] == [("scratch", "voco3d", 0.02)]
    assert named[0].difference.point < 0 and named[0].p_holm == named[0].difference.p and warnings == []
    one.run.__dict__.pop("first_look", None)
    _, found, warnings = measure(pairs, statistics, Plan((item,), {"": 0.02}, time="2026-05-03T00:00:00+00:00"))
    assert {c.margin for c in found} == {None}
    assert not any(c.primary for c in found) and "not stored before the first look" in warnings[0]
    _, _, warnings = measure(pairs, statistics, Plan(({"a": "x", "b": "scratch"},), time="2026-05-01T00:00:00+00:00"))
    assert "has no matched pair of rows" in warnings[0]
    (one.run.folder / "test_ledger.jsonl").unlink()


def test_swapping_two_runs_swaps_the_signs(root, tmp_path):
    runs = [read_run(root / name) for name in ("scratch-0", "voco-0")]
    signs = []
    for reference in ("scratch", "voco3d"):
        one = group_runs(runs)[0][0]
        (pair,) = pairs_of(one, reference)
        d = Statistics(tmp_path / "numbers.json").difference(pair)
        signs.append((d.point, d.low, d.high))
    assert signs[0] == pytest.approx([-signs[1][0], -signs[1][2], -signs[1][1]], abs=1e-12)


def test_numbers_are_computed_once_for_the_same_predictions(root, tmp_path):
    folder = write_run(tmp_path / "run", patients=20)
    counts = []
    for change in ("", "", "score"):
        if change:
            rows = pd.read_csv(folder / "predictions.csv", dtype={"case": str})
            rows.loc[rows["split"] == "test", "score_label"] = rows.loc[rows["split"] == "test", "score_label"][
                ::-1
            ].values
            rows.to_csv(folder / "predictions.csv", index=False)
        statistics = Statistics(tmp_path / "numbers.json")
        row = group_runs([read_run(folder)])[0][0].rows[0]
        found = statistics.interval(row)
        statistics.save()
        counts.append(statistics.computed)
    assert counts == [1, 0, 1]
    assert any("results.json differs" in flag for flag in flags_of(row, found))


def test_memory_for_influences_is_bounded(root, tmp_path, monkeypatch):
    one = group_runs([read_run(root / name) for name in ("scratch-0", "voco-0", "kinetics")])[0][0]
    found = {}
    for kept in (2**29, 1):
        monkeypatch.setattr("benchmarks.statistics.measure._KEPT_BYTES", kept)
        statistics = Statistics(tmp_path / f"{kept}.json")
        found[kept] = [statistics.interval(row) for row in one.rows] + [statistics.difference(p) for p in pairs_of(one)]
        assert len(statistics._influences) == (3 if kept > 1 else 1)
    assert found[1] == found[2**29]


def test_numbers_of_an_older_method_are_not_used_again(tmp_path):
    row = group_runs([read_run(write_run(tmp_path / "run", patients=20))])[0][0].rows[0]
    path, said = tmp_path / "numbers.json", []
    for _ in range(2):
        statistics = Statistics(path, say=said.append)
        found = statistics.interval(row)
        statistics.save()
    assert statistics.computed == 0 and said == []
    kept = json.loads(path.read_text())
    assert kept["method"] == METHOD
    (name,) = kept["values"]
    wrong = kept["values"][name] | {"point": 0.123}
    bootstrap = {name: wrong}  # as files were before they named their method
    for old in ({"method": METHOD | {"version": 0}, "values": {name: wrong}}, bootstrap):
        path.write_text(json.dumps(old))
        statistics = Statistics(path, say=said.append)
        assert statistics.interval(row) == found and statistics.computed == 1
    assert f"those of {METHOD['name']} 0" in said[0] and "those of an older method" in said[1]


def test_the_page_names_its_method_and_the_rule_of_verdicts(page, out, root, sets):
    method = f"Statistical method: {METHOD['name']}, version {METHOD['version']}."
    assert method in page.text and method in (out / "paper" / "methods.txt").read_text()
    one = next(one for one in sets if not one.synthetic)
    runs = [run for row in one.rows for run in row.runs]
    with pytest.MonkeyPatch.context() as patch:
        for run in runs:
            patch.delitem(run.results["verdict"], "rule", raising=False)
        assert "was judged under an older rule" in facts_of(one)
        patch.setitem(runs[0].results["verdict"], "rule", {"name": "nested folds", "version": 2})
        words = facts_of(one)
        assert f"by the rule nested folds 2; of {len(runs) - 1} of {len(runs)} runs under an older rule" in words


def test_an_own_metric_is_compared_and_named(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS._items, "brier", Brier)
    folders = []
    for name, gain, provenance in (("scratch", 0.5, []), ("voco", 4.0, [VOCO])):
        for seed in range(2):
            folder = tmp_path / f"{name}-{seed}"
            folders.append(write_run(folder, seed=seed, gain=gain, provenance=provenance, metric="brier"))
    assert main([*map(str, folders), "--out", str(tmp_path / "out"), "--no-paper"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "brier ↓ lower is better" in text and "Brier score: mean squared error of probabilities" in text
    rows = group_runs([read_run(folder) for folder in folders])[0][0].rows
    expected = {
        row.source: np.mean([((u["score_label"] - u["label_label"]) ** 2).mean() for u in (r.units for r in row.runs)])
        for row in rows
    }
    kept = Statistics(tmp_path / "numbers.json")
    for row in rows:
        found = kept.interval(row)
        assert found.point == pytest.approx(expected[row.source]) and 0 < found.low < found.point < found.high < 1
    (pair,) = pairs_of(group_runs([read_run(folder) for folder in folders])[0][0])
    found = kept.difference(pair)
    assert found.direction == "lower" and abs(found.point) == pytest.approx(abs(np.subtract(*expected.values())))


def test_old_options_of_the_bootstrap_are_still_taken(root, tmp_path):
    words = [str(root / "scratch-0"), "--out", str(tmp_path), "--no-paper", "--resamples", "200", "--seed", "1"]
    assert main(words) == 0


def test_bad_input_is_one_message(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "nothing to report on" in capsys.readouterr().err
    write_run(tmp_path / "run", patients=4)
    (tmp_path / "plan.json").write_text('{"primaries": []}')
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--plan", str(tmp_path / "plan.json")]) == 2
    assert "found primaries" in capsys.readouterr().err


def test_latex_of_a_table_without_rows_is_whole():
    from benchmarks.pages.document import Table

    assert r"\end{table}" in latex(Table("x", "c", ("a", "b"), []))


def test_rows_say_when_their_pretraining_did_not_learn_and_when_seeds_change_nothing(tmp_path):
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining" / "health.json").write_text(json.dumps({"verdict": ["nothing learned: as the constant"]}))
    for seed in range(2):
        folder = write_run(tmp_path / f"voco-{seed}", seed=seed, patients=20, provenance=[VOCO])
        settings = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(
            settings.replace("weights: null", f"weights: {tmp_path}/pretraining/encoder")
        )
    (row,) = group_runs([read_run(tmp_path / f"voco-{seed}") for seed in range(2)])[0][0].rows
    found = RunInterval(0.6, 0.5, 0.7, units=20, patients=20, runs=2, direction="higher")
    flags = flags_of(row, found)
    assert "pretraining voco3d did not learn (see below)" in flags and not any("every seed" in flag for flag in flags)
    for run in row.runs:
        run.results["main"]["value"] = 0.6
    assert "the same figure with every seed: nothing random is left" in flags_of(row, found)
