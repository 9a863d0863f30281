"""The command of each cell: a stage of the library as a process of its own, through accelerate where it has several."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells.store import SETTINGS, Store, read_lines
from benchmarks.grid.cell import Cell
from benchmarks.read.provenance import flops_per_volume
from voco.errors import InputError
from voco.files import read_json, write_text
from voco.plugins import loaded

_VOCO = "import sys; from voco.cli import main; sys.exit(main())"


def command(store: Store, cell: Cell, *, processes: int = 1, threads: int = 0, workers: int = 1) -> list[str]:
    """Arguments of the process that does the work of a cell.

    Args:
        processes: training processes of a run.
        threads: CPU threads of each; 0 = as the settings say.
        workers: processes that make synthetic patients.

    Raises:
        InputError: a budget that cannot be turned into steps.
    """
    folder = store.folder(cell)
    if cell.kind == "data":
        return [sys.executable, "-c", _VOCO, *_phantom(cell.identity["phantom"], folder, workers)]
    words = [word for plugin in loaded() for word in ("--plugin", plugin.source)]
    words += ["--config", str(folder / SETTINGS), "--out", str(folder), "--data.cache", str(store.cache)]
    words += ["--data.root", str(store.root(cell.data))]
    if threads and not cell.settings.get("train", {}).get("threads"):
        words += ["--train.threads", str(threads)]
    if weights := start_weights(store, cell):
        words += ["--encoder.weights", weights]
    if cell.kind == "pretrain":
        words += _pretraining(store, cell, processes)
    if cell.kind in ("search", "final", "cheap"):
        from benchmarks.grid.splits import split_file

        # only what ends in the report opens the test set
        part = "validation" if cell.kind == "search" else "test"
        words += ["--split.file", str(split_file(store, cell)), "--eval", part]
    if cell.kind == "cheap":
        return [sys.executable, "-m", "benchmarks.cheap", "--line", cell.facts["line"], *words]
    module = ["-m", f"{cell.stage}.run", *words]
    # a few steps on one process tell what a step costs
    if processes == 1 or cell.kind == "calibrate":
        return [sys.executable, *module]
    launcher = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    # a free port, so that several cells can run at once
    launcher += ["--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *launcher, *module]


def start_weights(store: Store, cell: Cell) -> str:
    """Where a run takes its weights from: the encoder of a pretraining run, published ones, or nothing."""
    if cell.uses:
        return str(store.folder(store.work.cells[cell.uses]) / "encoder")
    return str(cell.facts.get("weights") or cell.identity.get("weights") or "")


def _phantom(asked: Mapping[str, Any], folder: Path, workers: int) -> list[str]:
    words = ["phantom", str(folder), "--workers", str(workers)]
    for name, value in asked.items():
        values: Sequence[Any] = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def _pretraining(store: Store, cell: Cell, processes: int) -> list[str]:
    words = []
    if cell.facts.get("calibrated"):
        words += ["--train.steps", str(budget_steps(store, cell, processes))]
    if lists := [_excluded(store, store.work.cells[need]) for need in cell.needs if need.startswith("split/")]:
        path = store.folder(cell) / "exclude.csv"
        if len(lists) > 1:
            write_text(
                path, "patient\n" + "".join(text.partition("patient\n")[2] for text in map(Path.read_text, lists))
            )
        words += ["--data.exclude", str(path if len(lists) > 1 else lists[0])]
    return words


def _excluded(store: Store, split: Cell) -> Path:
    return store.folder(split) / "whole.exclude.csv"


def budget_steps(store: Store, cell: Cell, processes: int = 1) -> int:
    """Steps that a budget of GPU hours or operations buys, by what a few steps were measured to take.

    Raises:
        InputError: operations that could not be counted.
    """
    unit, amount = cell.facts["budget"]["unit"], float(cell.facts["budget"]["amount"])
    folder = store.folder(store.work.cells[cell.facts["calibrated"]])
    if unit == "gpu_hours":
        rows = [row["seconds_per_step"] for row in read_lines(folder / "timings.jsonl") if "seconds_per_step" in row]
        steady = sorted(rows[len(rows) // 4 :])
        if not steady:
            raise InputError(f"{folder}/timings.jsonl holds no seconds_per_step; remove the folder to measure again")
        # hours of one GPU: several of them spend them together
        each = steady[len(steady) // 2] * processes / 3600
    else:
        flops = flops_per_volume(read_json(folder / "run.json").get("cost") or {})
        if not flops:
            raise InputError(
                f"budget.unit flops: the operations of pretraining.{cell.facts['name']} cannot be counted, or were by "
                f"an older rule; remove {folder} to count again, or use steps, volumes or gpu_hours"
            )
        each = flops * cell.facts["batch_size"]
    return max(1, round(amount / each))
