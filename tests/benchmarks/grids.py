"""Small grids for tests: settings that need no stage, and runs that are written instead of trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from benchmarks.cells.store import Store
from benchmarks.grid.cell import Work
from benchmarks.grid.config import read_grid
from benchmarks.grid.expand import expand
from benchmarks.grid.settings import merge

TINY = """
title: tiny
preset: matched
data:
  labeled: {root: DATA}
  scans: {phantom: {layout: folder, cases: 4}}
  clips: {phantom: {layout: video, cases: 4}}
tasks:
  block: {recipe: table, data: labeled, settings: {task: {labels: [label], kind: binary}, input: {window: [-200, 400]}}}
pretraining:
  video: {recipe: video_demo, data: clips}
  voco3d: {recipe: demo, data: scans}
budget: {unit: steps, amount: 10}
encoders:
  3d:
    name: cnn3d_s
    sources:
      scratch: {}
      voco3d: {train: [voco3d]}
      video -> voco3d: {train: [video, voco3d]}
fractions: [0.5, 1.0]
seeds: 2
search: {lr: [1.0e-4, 1.0e-3, 1.0e-2], seed: 0}
modes:
  full: {fractions: [1.0], long_scratch: 3}
  linear: {}
primary:
  - {a: voco3d, b: scratch, task: block, encoder: 3d, mode: linear, fraction: 1.0}
margin: 0.02
"""
_DEFAULTS = {
    "train": {"steps": 100, "batch_size": 4},
    "input": {"window": []},
    "folds": 0,
    "mode": "full",
    "repeats": 1,
    "fraction_val": "share",
    "split": {"rule": "auto", "file": None, "test": 0.25, "val": 0.25, "seed": 0},
}


class Trusting:
    """Takes any settings: the stages' own parsers are slow to load."""

    def resolve(self, stage: str, settings: Mapping, where: str) -> dict:
        return merge(_DEFAULTS, settings)


def write_labels(folder: Path, patients: int = 24) -> Path:
    """A table of scans that exist by name only."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,label,patient"]
    for i in range(patients):
        (folder / f"s{i:02d}.nii.gz").touch()
        rows.append(f"s{i:02d}.nii.gz,{i % 2},p{i}")
    path = folder / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def write_grid_file(folder: Path, change: Callable[[dict], object] = lambda grid: None, text: str = TINY) -> Path:
    grid = yaml.safe_load(text.replace("DATA", str(folder / "data" / "labels.csv")))
    change(grid)
    write_labels(folder / "data")
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


def make_work(folder: Path, change: Callable[[dict], object] = lambda grid: None) -> Work:
    return expand(read_grid(write_grid_file(folder, change)), Trusting())


def make_store(folder: Path, change: Callable[[dict], object] = lambda grid: None) -> Store:
    return Store(folder / "out", make_work(folder, change))


class Written:
    """A process that was over before it began."""

    def __init__(self, status: int | None, polls: int = 0):
        self.status, self.polls, self.stopped = status, polls, False

    def poll(self) -> int | None:
        self.polls -= 1
        if self.stopped and self.status is None:
            return 0
        return None if self.polls >= 0 else self.status

    def stop(self) -> None:
        self.stopped = True


class FakeRunner:
    """Writes what a stage would leave: enough for a grid to go on, and a score that depends on the learning rate.

    Args:
        crash: part of the name of a folder whose run ends with status 1.
        scores: learning rate to validation score.
        polls: how often a run is asked before it has ended.
    """

    def __init__(self, crash: Sequence[str] = (), scores: Mapping[float, float] | None = None, polls: int = 0):
        self.crash, self.scores, self.polls = crash, scores or {1e-4: 0.6, 1e-3: 0.8, 1e-2: 0.7}, polls
        self.started: list[str] = []
        self.argv: dict[str, list[str]] = {}

    def __call__(self, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> Written:
        folder = log.parent
        self.started.append(folder.name)
        self.argv[folder.name] = list(argv)
        log.write_text("loading\nboom: no such thing\n" if self.fails(folder) else "fine\n")
        if self.fails(folder):
            return Written(1, self.polls)
        self.write(folder, argv)
        return Written(0, self.polls)

    def fails(self, folder: Path) -> bool:
        return any(part in folder.name for part in self.crash)

    def write(self, folder: Path, argv: Sequence[str]) -> None:
        (folder / "encoder").mkdir(exist_ok=True)
        (folder / "encoder" / "config.json").write_text("{}")
        (folder / "timings.jsonl").write_text('{"step": 1, "seconds_per_step": 0.5}\n' * 8)
        cost = {"flops_per_volume": 1000, "flops_rule": 2}
        (folder / "run.json").write_text(json.dumps({"state": "finished", "wall_seconds": 60, "cost": cost}))
        settings = folder / "settings.yaml"
        found = re.search(r"^  lr: (\S+)$", settings.read_text(), re.MULTILINE) if settings.is_file() else None
        lr = float(found[1]) if found else None
        part = "test" if "test" in argv else "validation"
        main = {"name": "auroc", "value": self.scores.get(lr, 0.5), "low": 0.4, "high": 0.9, "higher_is_better": True}
        training = {"0": {"last_step": 100, "cost": {"seconds_training": 50.0}}}
        results = {"main": main, "split": part, "facts": {"training": training}}
        (folder / "results.json").write_text(json.dumps(results))
