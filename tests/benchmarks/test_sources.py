from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

import benchmarks.cells.process
from benchmarks import sources
from benchmarks.cells.process import Process
from benchmarks.cells.slurm import array_script
from benchmarks.grid.expand import expand
from tests.benchmarks.grids import FakeRunner, Trusting, write_grid_file
from tests.benchmarks.run_maker import KINETICS, VOCO, write_run
from tests.benchmarks.test_grid_config import put
from tests.finetune.made import SMALL, write_cohort
from tests.forks import forked


@pytest.fixture(autouse=True)
def trusting(monkeypatch, request):
    """Settings are taken as they are, but for the test that runs the stages."""
    if "stages" not in request.node.name:
        monkeypatch.setattr("benchmarks.grid.expand.expand", lambda grid: expand(grid, Trusting()))
    monkeypatch.setattr("voco.engine.record.git_commit", lambda: "0" * 40)


class RunMaker(FakeRunner):
    """Leaves whole run folders of the finetune stage, so that a report can be written."""

    def write(self, folder: Path, argv):
        if "finetune.run" not in argv and "--line" not in argv:
            return super().write(folder, argv)
        cell = json.loads((folder / "cell.json").read_text())
        history = {"scratch": (), "voco3d": (VOCO,), "video -> voco3d": (KINETICS, VOCO)}[cell["source"]]
        made = folder.parent / f"{folder.name}.made"
        options = {"seed": cell["seed"], "fraction": cell["fraction"], "patients": 40}
        write_run(made, gain=1 + len(history), provenance=history, **options, train={"lr": cell.get("lr", 0.001)})
        for path in made.iterdir():
            shutil.move(path, folder / path.name)
        made.rmdir()


def call(monkeypatch, capsys, *words, runner=None):
    monkeypatch.setattr(benchmarks.cells.process, "Process", runner or RunMaker())
    status = sources.main([*map(str, words)])
    return status, capsys.readouterr()


def test_from_a_yaml_file_to_a_report(tmp_path, monkeypatch, capsys):
    config = write_grid_file(tmp_path, put("modes", {"linear": {}}))
    out = tmp_path / "out"
    status, said = call(monkeypatch, capsys, "--config", config, "--out", out, "--no-paper")
    assert status == 0, said.err
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "video → voco3d" in page and "tiny" in text
    plan = json.loads((out / "plan.json").read_text())
    # named before: the digest of what was stored stands in the report
    assert plan["primary"] and plan["digest"] in text
    assert (out / "grid.yaml").read_text() == config.read_text()
    before = sorted((out / "cells").iterdir())
    status, said = call(monkeypatch, capsys, "--config", config, "--out", out, "--no-paper")
    assert status == 0 and "12 cells are finished, 0 to do" in said.err and sorted((out / "cells").iterdir()) == before


def test_a_crash_shows_in_status_and_report(tmp_path, monkeypatch, capsys):
    config = write_grid_file(tmp_path, put("modes", {"linear": {"fractions": [1.0]}}))
    runner = RunMaker(crash=["block-3d-voco3d-linear-100pct-seed1"])
    words = ("--config", config, "--out", tmp_path / "out", "--no-paper")
    status, said = call(monkeypatch, capsys, *words, runner=runner)
    assert status == 1 and "not finished: final/block-3d-voco3d-linear-100pct-seed1" in said.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "1 cells have not finished" in text and "boom: no such thing" in text


def test_the_plan_runs_nothing(tmp_path, monkeypatch, capsys):
    config, out = write_grid_file(tmp_path), tmp_path / "out"
    runner = RunMaker()
    status, said = call(monkeypatch, capsys, "--config", config, "--out", out, "--plan", runner=runner)
    assert status == 0 and not runner.started and not (out / "cells").exists() and not (out / "plan.json").exists()
    for words in (
        "3 pretraining runs, 0 finished", "9 trials of the learning rate", "20 final cells, 0 finished",
        "hours unknown", "scratch, voco3d, video -> voco3d; labels 50 %, 100 %; 2 seeds; source effect",
        "scratch (3 x longer schedule); labels 100 %; 2 seeds; system comparison", "GB are free",
    ):  # fmt: skip
        assert words in said.out
    # 6 test units, 3 of them positive: see test_power for the formula
    from benchmarks.statistics.power import detectable

    rows = next(out.glob("splits/*/labels-50pct-seed0.csv")).read_text().splitlines()
    training = sum(row.endswith(",train,1") for row in rows)
    words = f"block, 50 % of the labels ({training} training patients): {detectable(6, 3, runs=2):.3f} in auroc"
    assert training == 9 and words in said.out


def test_hours_come_from_what_was_measured(tmp_path, monkeypatch, capsys):
    config, out = write_grid_file(tmp_path), tmp_path / "out"
    runner = FakeRunner(crash=["seed1"])
    status, _ = call(monkeypatch, capsys, "--config", config, "--out", out, "--until", "search", runner=runner)
    assert status == 0 and not (out / "report.html").exists()
    assert not any("linear" in name for name in runner.started)
    status, said = call(monkeypatch, capsys, "--config", config, "--out", out, "--plan")
    # 3,000 steps of half a second and 10 s besides for 6 final cells, three times the steps for the 2 longer ones
    minutes = (6 * (3000 * 0.5 + 10) + 2 * (9000 * 0.5 + 10)) / 60
    assert f"20 to do, about {minutes / 60:.1f} h and 12 of unknown length" in said.out
    assert "9 trials of the learning rate, 9 finished" in said.out


def test_missing_data_say_what_to_download(tmp_path, monkeypatch, capsys):
    def change(grid):
        grid["data"]["labeled"] = {"root": str(tmp_path / "nowhere"), "download": "Ask the registry."}
        grid["encoders"]["3d"]["sources"]["k"] = {"weights": "weights/k.pth", "download": "Fetch k.pth."}

    config = write_grid_file(tmp_path, change)
    words = ("--config", config, "--out", tmp_path / "out")
    status, said = call(monkeypatch, capsys, *words)
    assert status == 2 and "nowhere does not exist. Ask the registry. Elsewhere: --data labeled=FOLDER" in said.err
    assert "encoders.3d.sources.k: weights/k.pth does not exist. Fetch k.pth." in said.err
    status, said = call(monkeypatch, capsys, *words, "--data", f"labeled={tmp_path / 'data' / 'labels.csv'}", "--plan")
    assert status == 0 and "nowhere" not in said.out and "missing: encoders.3d.sources.k" in said.out
    status, said = call(monkeypatch, capsys, *words, "--data", "labelled=x")
    assert status == 2 and "--data: 'labelled' is no entry of data; did you mean labeled?" in said.err


@pytest.mark.parametrize(
    "words, message",
    [
        (("--shard", "3/2"), "--shard is I/N with I from 1 to N"),
        (("--shard", "0/2"), "--shard is I/N"),
        (("--jobs", "0"), "--jobs must be at least 1"),
        (("--data", "x"), "--data takes NAME=FOLDER"),
        (("--slurm", "0"), "--slurm must be at least 1"),
    ],
)
def test_wrong_words_on_the_command_line(tmp_path, monkeypatch, capsys, words, message):
    config = write_grid_file(tmp_path)
    status, said = call(monkeypatch, capsys, "--config", config, "--out", tmp_path / "out", *words)
    assert status == 2 and message in said.err and not (tmp_path / "out").exists()


def test_changed_primaries_are_refused_after_a_look(tmp_path, monkeypatch, capsys):
    config, out = write_grid_file(tmp_path), tmp_path / "out"
    call(monkeypatch, capsys, "--config", config, "--out", out, "--until", "data", runner=FakeRunner())
    ledger = next((out / "splits").iterdir()) / "test_ledger.jsonl"
    ledger.write_text('{"time": "2026-05-01T00:00:00+00:00"}\n')
    config = write_grid_file(tmp_path, put("margin", 0.3))
    status, said = call(monkeypatch, capsys, "--config", config, "--out", out)
    assert status == 2 and "primary comparisons or margins differ from those stored at" in said.err


def test_shards_leave_the_report_to_the_last(tmp_path, monkeypatch, capsys):
    config = write_grid_file(tmp_path, put("modes", {"linear": {"fractions": [1.0]}}))
    words = ("--config", config, "--out", tmp_path / "out", "--no-paper")
    status, said = call(monkeypatch, capsys, *words, "--shard", "1/2")
    assert status == 0 and "cells of other shards are left" in said.err and not (tmp_path / "out/report.html").exists()
    status, said = call(monkeypatch, capsys, *words, "--shard", "2/2")
    assert status == 0 and (tmp_path / "out/report.html").exists()


def test_the_slurm_script_is_a_script_that_works_on_every_shard(tmp_path, monkeypatch, capsys):
    config = write_grid_file(tmp_path)
    words = ("--config", config, "--out", tmp_path / "a b", "--slurm", "8", "--jobs", "2")
    status, said = call(monkeypatch, capsys, *words)
    assert status == 0 and "#SBATCH --array=1-8" in said.out and '--shard "$SLURM_ARRAY_TASK_ID/8"' in said.out
    assert "--slurm" not in said.out.replace("#SBATCH", "") and "--jobs 2" in said.out and "'" in said.out
    checked = subprocess.run(["bash", "-n"], input=said.out, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("signalled", [False, True])
def test_a_job_of_the_array_ends_as_its_grid_does(tmp_path, signalled):
    grid = tmp_path / "grid"
    body = "trap 'exit 9' USR1; touch started; while true; do sleep 0.02; done" if signalled else "exit 7"
    grid.write_text(f"#!/bin/bash\ncd {tmp_path}\n{body}\n")
    grid.chmod(0o755)
    text = array_script([], tmp_path, 2).replace(sys.executable, str(grid))
    job = subprocess.Popen(["bash", "-c", text])
    while signalled and not (tmp_path / "started").exists():
        time.sleep(0.01)
    if signalled:
        job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == (9 if signalled else 7)


class Forked(Process):
    """The stage's own code in a fork of the test process, whose imports it reuses."""

    def __init__(self, argv, log, env):
        module, words = argv[2], argv[3:]
        done = forked(import_module(module).main, words)
        log.write_text(done.stderr)
        self.status = done.returncode

    def poll(self):
        return self.status


def test_a_small_grid_runs_through_the_stages(tmp_path, monkeypatch, capsys):
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    write_cohort(cohort, 16, 16)
    (tmp_path / "small.yaml").write_text(SMALL.replace("examples: 1", "examples: 0"))
    voco = {"data": {"spacing": [3, 3, 3], "heldout": 0, "workers": 0}, "method": {"geometry": {"crop": 16}},
            "train": {"batch_size": 2, "warmup": 0, "threads": 1}, "log": {"with": []}}  # fmt: skip
    (tmp_path / "voco.yaml").write_text(yaml.safe_dump(voco))
    grid = {
        "title": "small", "preset": "matched",
        "data": {"labeled": {"root": str(cohort / "labels.csv")}, "scans": {"root": str(cohort)}},
        "tasks": {"block": {"recipe": str(tmp_path / "small.yaml"), "data": "labeled",
                            "settings": {"task": {"labels": ["label"]}}}},
        "pretraining": {"voco3d": {"recipe": str(tmp_path / "voco.yaml"), "data": "scans", "exclude": ["block"]}},
        "budget": {"unit": "steps", "amount": 2},
        "encoders": {"3d": {"name": "cnn3d_s", "sources": {"scratch": {}, "voco3d": {"train": ["voco3d"]}}}},
        "modes": {"linear": {}},
    }  # fmt: skip
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    out = tmp_path / "out"
    words = ("--config", tmp_path / "grid.yaml", "--out", out, "--no-paper")
    status, said = call(monkeypatch, capsys, *words, runner=Forked)
    assert status == 0, said.err
    folders = sorted((out / "cells").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == [
        "block-3d-scratch-linear-100pct-seed0", "block-3d-voco3d-linear-100pct-seed0",
    ]  # fmt: skip
    import pandas as pd

    for folder in folders:
        rows = pd.read_csv(folder / "predictions.csv")
        rows = rows[rows["split"] == "test"]
        stored = json.loads((folder / "results.json").read_text())
        assert np.isclose(stored["main"]["value"], roc_auc_score(rows["label_label"], rows["score_label"]))
        assert stored["looks_at_test"] <= 2
        assert "no match found" in (folder / "leaks.csv").read_text() or "scratch" in folder.name
    ledgers = {path.parent.parent.name: path.read_text().splitlines() for path in out.rglob("test_ledger.jsonl")}
    # beside the split, and in the cache, through which runs with other splits of the same patients would be counted
    assert set(ledgers) == {"splits", "out"} and all(len(lines) == 2 for lines in ledgers.values())
    report = (out / "report.md").read_text()
    assert "voco3d" in report and "Source effect" in report
    lines = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["finished"] * 4
