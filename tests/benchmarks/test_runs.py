from __future__ import annotations

import json

import pandas as pd
import pytest

from benchmarks.read.provenance import entry_words, pretraining_cost, source_words
from benchmarks.read.rows import group_runs, make_pair, paired_runs, pairs_of
from benchmarks.read.run import find_runs, plural, read_run, why_not_comparable
from tests.benchmarks.run_maker import KINETICS, SYNTHETIC, VOCO, write_run
from voco.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        write_run(root / f"scratch-{seed}", seed=seed, patients=20)
        write_run(root / f"chain-{seed}", seed=seed, patients=20, provenance=[KINETICS, VOCO], train={"lr": 0.01})
    write_run(root / "long", patients=20, train={"steps": 300})
    write_run(root / "other", patients=20, labels_seed=5)
    write_run(root / "phantom", patients=20, marks=[SYNTHETIC], fraction=0.1)
    return root


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ([], "scratch"),
        ([KINETICS], "kinetics400"),
        ([KINETICS, VOCO], "kinetics400 -> voco3d"),
        ([{"method": "video"}, VOCO, {"method": "finetune rsna_pe"}], "video -> voco3d -> supervised rsna_pe"),
        ([{"source": "resnet18.a1_in1k", "data": ["ImageNet-1k"]}], "imagenet1k"),
        ([{"source": "file", "file": "x.pth"}], "file x.pth"),
    ],
)
def test_sources_are_chains_of_words(history, words):
    assert source_words(history) == words


def test_a_run_is_read_from_its_folder(root):
    run = read_run(root / "chain-1")
    assert (run.seed, run.fraction, run.mode, run.split, run.encoder) == (1, 1.0, "full", "test", "cnn3d_s")
    assert run.source == "kinetics400 -> voco3d" and run.task.name == "table"
    assert len(run.units) == 20 and set(run.units["split"]) == {"test"} and len(run.units_of("validation")) == 20
    assert run.leaks == "20 no match found" and run.looks == 2 and not run.synthetic
    assert run.cost["hours"] == pytest.approx(1 / 6) and run.cost["peak_memory_bytes"] == 2**31
    assert not run.stored_value_differs()
    assert read_run(root / "phantom").synthetic


def test_test_sets_of_one_task_are_told_apart_by_its_options(tmp_path):
    for name, labels, kind in (("a", 1, "binary"), ("b", 2, "multilabel")):
        results = json.loads((write_run(tmp_path / name, patients=20, labels_seed=labels) / "results.json").read_text())
        results["options"]["kind"] = kind
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    runs = [read_run(tmp_path / name) for name in "ab"]
    assert {one.note for one in group_runs(runs)[0]} == {"kind binary", "kind multilabel"}
    assert [one.note for one in group_runs(runs[:1])[0]] == [""]


def test_pretraining_on_synthetic_data_is_recognised(tmp_path):
    history = [{"method": "video", "synthetic": True}, VOCO]
    run = read_run(write_run(tmp_path / "run", patients=20, provenance=history))
    assert run.synthetic_pretraining == ["video"] and not run.synthetic
    assert [training.synthetic for training in run.trainings] == [True, False]


def test_figures_are_of_the_predictions_even_where_the_results_say_otherwise(tmp_path):
    folder = write_run(tmp_path / "x", patients=20)
    stored = json.loads((folder / "results.json").read_text())
    stored["main"]["value"] += 0.01
    (folder / "results.json").write_text(json.dumps(stored))
    assert read_run(folder).stored_value_differs()


def test_what_is_no_finished_run_is_refused(root, tmp_path):
    with pytest.raises(InputError, match=r"no run folder: run.json and config.yaml missing"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "x", patients=4)
    (folder / "run.json").write_text(json.dumps({"state": "stopped"}))
    with pytest.raises(InputError, match="has not finished"):
        read_run(folder)
    (folder / "run.json").write_text(json.dumps({"state": "finished"}))
    (folder / "predictions.csv").unlink()
    with pytest.raises(InputError, match=r"no predictions\.csv"):
        read_run(folder)
    with pytest.raises(InputError, match="is no folder"):
        find_runs([tmp_path / "absent"])
    found, without = find_runs([root, root / "long", root / "long" / "encoder"])
    assert len(found) == 7 and [path.name for path, _ in without] == ["encoder"]


def test_the_cost_of_published_weights_is_never_nothing():
    assert pretraining_cost([]) == {"hours": 0.0, "flops": 0.0, "volumes_seen": 0.0, "words": "none"}
    own = pretraining_cost([VOCO])
    assert own["hours"] == 2.0 and own["flops"] == 40000 * 10**11 and own["words"] == ""
    counted_otherwise = {key: value for key, value in VOCO["cost"].items() if key != "flops_rule"}
    old = pretraining_cost([VOCO | {"cost": counted_otherwise}])
    assert old["flops"] is None and old["hours"] == 2.0
    chain = pretraining_cost([KINETICS, VOCO])
    assert chain["hours"] is None and chain["words"] == "published (unknown)"
    assert pretraining_cost([{"source": "file"}])["words"] == "unknown"
    assert entry_words({}) == "unknown"


def test_runs_that_differ_in_seed_alone_are_one_row(root):
    sets, again = group_runs([read_run(path) for path in (*find_runs([root])[0], root / "long")])
    assert [path.name for path, _ in again] == ["long"]
    main = max(sets, key=lambda one: len(one.rows))
    assert sorted((row.label, tuple(row.seeds), row.fraction) for row in main.rows) == [
        ("kinetics400 → voco3d", (0, 1), 1.0),
        ("scratch", (0,), 0.1),
        ("scratch", (0, 1), 1.0),
        ("scratch (steps 300)", (0,), 1.0),
    ]
    positive = int(pd.read_csv(root / "long" / "predictions.csv").query("split == 'test'")["label_label"].sum())
    assert main.counts["classes"] == {"label": {"negative": 20 - positive, "positive": positive}}
    assert main.synthetic and len(sets) == 2


def test_a_source_effect_needs_everything_else_equal(root):
    sets, _ = group_runs([read_run(path) for path in find_runs([root])[0] if path.name != "phantom"])
    pairs = {(p.a.label, p.b.label): p for p in pairs_of(max(sets, key=lambda one: len(one.rows)))}
    matched = pairs["kinetics400 → voco3d", "scratch"]
    assert matched.kind == "source" and not matched.differs  # another learning rate is part of the search
    assert [run.seed for run in paired_runs(matched)[0]] == [0, 1] and paired_runs(matched)[2]
    longer = pairs["scratch (steps 300)", "scratch"]
    assert longer.kind == "system" and longer.differs == ("train.steps: 300 / 100",)


@pytest.mark.parametrize(("kinds", "kind"), [(("source", "source"), "source"), (("source", "system"), "system")])
def test_a_grid_says_whether_its_cells_are_matched(tmp_path, kinds, kind):
    a = write_run(tmp_path / "a", patients=10, cell={"comparison": kinds[0]})
    b = write_run(tmp_path / "b", patients=10, cell={"comparison": kinds[1]}, provenance=[VOCO])
    pair = make_pair(*group_runs([read_run(a), read_run(b)])[0][0].rows)
    assert pair.kind == kind and len(pair.differs) == (kind == "system")


def test_the_rule_of_a_split_is_that_by_which_a_grid_drew_it(tmp_path):
    assert read_run(write_run(tmp_path / "a", patients=4, cell={"split_rule": "ke2023"})).split_rule == "ke2023"
    run = read_run(write_run(tmp_path / "b", patients=4))
    assert run.split_rule == run.results["rule"]


def test_other_training_patients_are_no_source_effect(tmp_path):
    a = write_run(tmp_path / "a", patients=10)
    b = write_run(tmp_path / "b", patients=10, provenance=[VOCO])
    (b / "splits.csv").write_text((b / "splits.csv").read_text().replace("t7,pt7,0,train,1", "t7,pt7,0,train,0"))
    rows = group_runs([read_run(a), read_run(b)])[0][0].rows
    pair = make_pair(*rows)
    assert pair.kind == "system" and "splits.csv" in pair.differs[0]


def test_other_patients_or_labels_cannot_be_compared(root, tmp_path):
    run = read_run(root / "scratch-0")
    assert why_not_comparable(run, read_run(root / "chain-0")) == ""
    assert why_not_comparable(run, read_run(root / "other")) == "the same test scans have other labels"
    fewer = read_run(write_run(tmp_path / "fewer", patients=12))
    assert why_not_comparable(run, fewer) == "other test scans (20 and 12, 12 in common)"


@pytest.mark.parametrize("one, several", [("study", "studies"), ("scan", "scans"), ("patient", "patients")])
def test_plural(one, several):
    assert plural(one) == several


def test_verdicts_of_a_chain_are_read_from_its_run_folders(tmp_path):
    """``video`` learned nothing, and what started from it learned in part."""
    sentences = {"video": ["nothing learned: as the constant"], "voco": ["learned: position", "not learned: disjoint"]}
    for name, file in (("video", "video.json"), ("voco", "health.json")):
        (tmp_path / name / "encoder").mkdir(parents=True)
        (tmp_path / name / file).write_text(json.dumps({"verdict": sentences[name]}))
        (tmp_path / name / "run.json").write_text('{"state": "finished"}')
    (tmp_path / "video" / "config.yaml").write_text("encoder: {weights: null}\n")
    (tmp_path / "voco" / "config.yaml").write_text(f"encoder: {{weights: {tmp_path / 'video' / 'encoder'}}}\n")
    history = [{"method": "video"}, VOCO]
    run = read_run(write_run(tmp_path / "run", patients=20, provenance=history, weights=f"{tmp_path}/voco/encoder"))
    assert [one.doubt for one in run.trainings] == ["did not learn", "learned not all that was measured"]
    gone = read_run(write_run(tmp_path / "gone-run", patients=20, provenance=history, weights=f"{tmp_path}/gone"))
    assert [one.doubt for one in gone.trainings] == ["", ""]
