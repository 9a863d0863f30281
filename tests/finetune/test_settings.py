from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import finetune.config
import finetune.figures
from finetune.config import CONFIG_DIR, check, schema
from finetune.run import build_encoder, build_view, check_together, main
from tests.finetune.made import SMALL, write_scan, write_table
from voco.config import parse, save_yaml, to_dict
from voco.errors import InputError
from voco.tasks import create_task

RECIPES = sorted(CONFIG_DIR.glob("*.yaml"))


def test_there_is_a_recipe_for_every_task_and_published_protocol():
    assert {p.stem for p in RECIPES} >= {
        "rsna_pe", "imageclef_tb", "rsna_trauma", "lidc", "table", "ke2023_rsna", "ke2023_lidc", "viptt2021_tbt",
        "voco2d_rsna2023",
    }  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_whole(path, tmp_path):
    named = yaml.safe_load(path.read_text()).get("encoder", {}).get("name")
    # networks with fixed input take what they were trained on; where none is named, any may be given
    options = [] if named else ["--encoder.name", "cnn3d_s"]
    arguments = ["--config", path.stem, "--data.root", str(tmp_path), "--out", str(tmp_path / "out"), *options]
    config = parse(schema(), arguments)
    check(config, world=1)
    assert 0 < config["score"].every <= config["train"].steps
    options = {name: value for name, value in to_dict({"o": config["task"]})["o"].items() if name != "name"}
    task = create_task(config["task"].name, **options)
    with torch.device("meta"):
        encoder = build_encoder(config)
    view, _ = build_view(config, task, encoder)
    check_together(config, task, view)
    assert view.prepare_settings() and len(view.windows((view.size[0] + 5, 256, 256))) >= 1
    if path.stem == "ke2023_rsna":  # a mapping, lists and floats without a fraction
        save_yaml(config, tmp_path / "again.yaml")
        assert to_dict(parse(schema(), ["--config", str(tmp_path / "again.yaml")])) == to_dict(config)


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    for word in (
        "--mode {full,linear,knn}",
        "--task.",
        "--encoder.weights",
        "--eval {validation,test}",
        "--allow_seen",
    ):
        assert word in said, word


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings that are right."""
    root = tmp_path_factory.mktemp("settings")
    (root / "small.yaml").write_text(SMALL)
    config = parse(
        schema(), ["--config", str(root / "small.yaml"), "--data.root", str(root), "--out", str(root / "out")]
    )
    check(config, world=2)
    return config


WRONG = [
    ({"fraction": 0.0}, "--fraction"),
    ({"folds": 1}, "--folds takes 2 or more"),
    ({"repeats": 2}, "--repeats"),
    ({"fold": -2}, "--fold -2"),
    ({"folds": 3, "fold": 3}, "there are 3 folds"),
    ({"folds": 3, "split.file": "x.csv"}, "leave --folds out"),
    ({"folds": 3, "split.rule": "ke2023"}, "--folds parts the patients anew, --split.rule ke2023 does not"),
    ({"input.window": [1.0, 2.0, 3.0]}, "pairs"),
    ({"input.chunk": -1}, "--input.chunk"),
    ({"train.steps": 0}, "--train.steps"),
    ({"train.lr": 0.0}, "--train.lr"),
    ({"train.resume": "runs/x"}, "auto or never"),
    ({"train.layer_decay": 1.5}, "layer_decay"),
    ({"train.label_smoothing": 1.0}, "label_smoothing"),
    ({"train.batch_size": 3}, "multiple of processes"),
    ({"mode": "knn", "head.pooling": "attention"}, "needs --mode full"),
    ({"mode": "linear", "head.features": "sequence"}, "needs --mode full"),
    ({"mode": "linear", "head.hidden": 8}, "needs --mode full"),
    ({"probe.neighbours": 0}, "--probe.neighbours"),
    ({"encoder.name": ""}, "no encoder given"),
    ({"data.root": None}, "no data given"),
    ({"data.root": "nowhere"}, "does not exist"),
]


@pytest.mark.parametrize(
    "changes, words", WRONG, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_settings_that_cannot_be_are_refused_before_any_work(settings, changes, words):
    config = dict(settings)
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        config[group or name] = replace(config[group], **{name: value}) if group else value
    with pytest.raises(InputError, match=words):
        check(config, world=2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    for number in range(8):
        write_scan(root / f"s{number}.nii.gz", number, number % 2 == 0)
    return root


ROWS = [(f"s{n}.nii.gz", n % 2, f"mrn-{70 + n}") for n in range(8)]
COLUMNS = ("path", "label", "patient")


def start(cohort, tmp_path, rows, columns, *options):
    (tmp_path / "small.yaml").write_text(SMALL)
    table = write_table(cohort / f"{tmp_path.name}.csv", rows, columns)
    command = ["--config", tmp_path / "small.yaml", "--data.root", table, "--out", tmp_path / "out", "--mode", "knn",
               "--data.cache", cohort / "cache", "--probe.neighbours", 2, *options]  # fmt: skip
    return main(list(map(str, command)))


BROKEN = {
    "no label column": (ROWS, ("path", "stage", "patient"), (), "has no column label"),
    "no path column": (ROWS, ("image", "label", "patient"), (), "lacks the columns path"),
    "unknown class": ([*ROWS[:7], ("s7.nii.gz", 7, "x")], COLUMNS, ("--task.kind", "binary"), "s7: '7'"),
    "class that is not listed": (
        [*ROWS[:7], ("s7.nii.gz", "x", "y")], COLUMNS,
        ("--task.kind", "multiclass", "--task.classes", '{"label": ["0", "1"]}'), "s7: 'x'",
    ),
    "a scan twice": ([*ROWS, ROWS[0]], COLUMNS, (), "twice, in lines 2 and 10"),
    "an id twice": (
        [(*row, "a" if i < 2 else f"c{i}") for i, row in enumerate(ROWS)], (*COLUMNS, "case"), (),
        "values of case more than once",
    ),
    "a patient in two parts": (
        [(row[0], row[1], "mrn-9", "train" if i < 4 else "test") for i, row in enumerate(ROWS)], (*COLUMNS, "split"),
        (), "more than one part",
    ),
    "one label only": ([(row[0], 1, row[2]) for row in ROWS], COLUMNS, (), "nothing to learn"),
    "too many broken scans": (
        [*ROWS[:4], *((f"gone{n}.nii.gz", 1, f"q{n}") for n in range(4))], COLUMNS, (), "cannot be used",
    ),
    "labels of slices": (ROWS, COLUMNS, ("--learn", "window"), "--learn window needs labels of slices"),
    "turns of oblong windows": (
        ROWS, COLUMNS, ("--mode", "full", "--augment.turn_prob", 0.5, "--input.size", 24, 32, 40), "as high as wide",
    ),
    "no weights of the task": (ROWS, COLUMNS, ("--train.class_weights", "task"), "task table has none"),
    "too small a window": (ROWS, COLUMNS, ("--input.size", 8), "smaller than this encoder takes"),
    "channels of statistics": (ROWS, COLUMNS, ("--input.mean", 0.1, 0.2), "one per channel"),
    "unknown encoder": (ROWS, COLUMNS, ("--encoder.name", "cnn3d"), "cnn3d_s"),
    "unknown recipe": (ROWS, COLUMNS, ("--config", "no_such_recipe"), "no config file 'no_such_recipe'"),
    "weights that are not there": (ROWS, COLUMNS, ("--encoder.weights", "gone.safetensors"), "gone.safetensors"),
    "no such metric": (ROWS, COLUMNS, ("--task.metric", "kappas"), "kappas"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_one_clear_error(cohort, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("finetune.folds.run_folds", None)  # nothing of this is found while training
    rows, columns, options, words = BROKEN[name]
    assert start(cohort, tmp_path, rows, columns, *options) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("error:") == 1 and "Traceback" not in said, said


SPLIT = ("case", "patient", "fold", "split")


@pytest.mark.parametrize("change, words", [
    (lambda rows: rows[:-1], "of this cohort are not in the file"),
    (lambda rows: [*rows, ("s9", "mrn-9", 0, "test")], "are not in this cohort"),
    (lambda rows: [*rows, rows[0]], "more than once"),
    (lambda rows: [(*row[:3], "holdout") for row in rows], "holds the words 'holdout'"),
])  # fmt: skip
def test_a_split_file_that_does_not_match(cohort, tmp_path, capsys, change, words):
    rows = [(f"s{n}", f"mrn-{70 + n}", 0, "train" if n < 5 else "test") for n in range(8)]
    split = write_table(tmp_path / "splits.csv", change(rows), SPLIT)
    assert start(cohort, tmp_path, ROWS, COLUMNS, "--split.file", split) == 2
    assert words in capsys.readouterr().err


def test_a_split_file_that_parts_a_patient(cohort, tmp_path, capsys):
    rows = [(name, label, "mrn-1") if name < "s2" else (name, label, who) for name, label, who in ROWS]
    parts = [(f"s{n}", "train" if n in (0, 3, 4) else "test") for n in range(8)]
    split = write_table(tmp_path / "splits.csv", parts, ("case", "split"))
    assert start(cohort, tmp_path, rows, COLUMNS, "--split.file", split) == 2
    assert "on more than one side" in capsys.readouterr().err


def test_single_faults_are_rejected_and_the_run_goes_on(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.figures, "draw_figures", lambda *args: [])
    (cohort / "torn.nii.gz").write_bytes(b"no scan")
    rows = [*ROWS, ("torn.nii.gz", 1, "q1"), ("gone.nii.gz", 1, "q2"), ("s8.nii.gz", "", "q3")]
    shutil.copy(cohort / "s0.nii.gz", cohort / "s8.nii.gz")
    options = ("--data.max_rejected", 0.5, "--split.val", 0.4, "--split.test", 0.1)
    assert start(cohort, tmp_path, rows, COLUMNS, *options) == 0
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv").set_index("path")["reason"]
    assert set(rejected.index) == {"torn.nii.gz", "gone.nii.gz", "s8.nii.gz"}
    assert "label" in rejected["s8.nii.gz"] and "no such file" in rejected["gone.nii.gz"]
    facts = json.loads((tmp_path / "out" / "results.json").read_text())["facts"]
    assert facts["counts"]["studies"] == 8 and facts["counts"]["rejected_scans"] == 3


def test_recipes_travel_with_the_package():
    text = (Path(finetune.config.__file__).parents[1] / "setup.cfg").read_text()
    assert "finetune = configs/*.yaml" in text
