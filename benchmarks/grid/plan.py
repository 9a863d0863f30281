"""The printed plan: cells, hours, disk, and the smallest difference that each test set could show."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.cells.store import Store
from benchmarks.grid.cell import Cell, fraction_file
from voco.errors import InputError

_WORDS = {"data": "synthetic cohorts", "split": "splits", "calibrate": "short runs that measure a step",
          "pretrain": "pretraining runs", "search": "trials of the learning rate", "cheap": "lines without an encoder",
          "final": "final cells"}  # fmt: skip


def plan_text(store: Store, jobs: int = 1) -> str:
    """What the grid would do, for the console; nothing is run.

    Hours and disk come from cells that have finished here; where none of their kind has, they are unknown.
    """
    work, lines = store.work, [f"plan: {store.work.grid.title}"]
    left: list[Cell] = []
    measured = Measured(store)
    for kind, words in _WORDS.items():
        cells = work.of(kind)
        if not cells:
            continue
        todo = [cell for cell in cells if not store.finished(cell)]
        left += todo
        hours = measured.words(todo) if kind != "split" else ""
        lines.append(f"  {len(cells):5d} {words}, {len(cells) - len(todo)} finished{hours}")
    lines += _grid_lines(store)
    lines.append(f"time:  {_total(measured, left, jobs)}")
    lines.append(f"disk:  {measured.disk_words(left)}")
    lines.append("smallest difference that the test set shows with 80 % power at the 5 % level, two-sided:")
    for cell in work.of("split"):
        lines += detectable_lines(store, cell)
    return "\n".join(lines)


def missing_data(store: Store) -> list[str]:
    """What must be downloaded first: a sentence for each folder that is not there."""
    found = []
    used = {cell.data for cell in store.work.cells.values() if cell.data}
    for name, data in store.work.grid.data.items():
        if name in used and data.root and not Path(data.root).exists():
            hint = data.download or "give the folder of the data set"
            found.append(f"data.{name}: {data.root} does not exist. {hint} Elsewhere: --data {name}=FOLDER")
    for block in store.work.grid.blocks.values():
        for source in block.sources.values():
            if source.download and not Path(source.weights).exists():
                found.append(
                    f"encoders.{block.name}.sources.{source.name}: {source.weights} does not exist. {source.download}"
                )
    return found


class Measured:
    """Times and sizes of finished cells, to estimate those of others."""

    def __init__(self, store: Store):
        self.store = store
        self._seconds: dict[tuple, list[float]] = {}
        self._steps: dict[tuple, list[tuple[float, float]]] = {}
        self._bytes: dict[str, list[int]] = {}
        for line in store.lines():
            cell = store.work.cells.get(str(line.get("cell")))
            if cell is None or line.get("state") != "finished":
                continue
            spent = line.get("seconds") or line.get("wall_seconds")
            if spent:
                self._seconds.setdefault(_like(cell), []).append(float(spent))
            if line.get("seconds_per_step"):
                # what a run takes besides its steps: starting, scoring, writing
                rest = max(0.0, float(line.get("wall_seconds") or 0) - float(line.get("seconds_training") or 0))
                self._steps.setdefault(_alike(cell), []).append((float(line["seconds_per_step"]), rest))
            folder = store.out / str(line.get("folder", ""))
            if line.get("folder") and folder.is_dir():
                self._bytes.setdefault(cell.kind, []).append(_size(folder))

    def seconds(self, cell: Cell) -> float | None:
        """Estimate for a cell; None where nothing like it has finished."""
        steps = cell.facts.get("steps")
        if steps and (seen := self._steps.get(_alike(cell))):
            return _mean(each * steps + rest for each, rest in seen)
        seen = self._seconds.get(_like(cell))
        return _mean(seen) if seen else None

    def words(self, cells: list[Cell]) -> str:
        found = [self.seconds(cell) for cell in cells]
        if not cells:
            return ""
        known = [value for value in found if value is not None]
        if not known:
            return f"; {len(cells)} to do, hours unknown (none like them has finished)"
        rest = len(cells) - len(known)
        return f"; {len(cells)} to do, {_hours(sum(known))}" + (f" and {rest} of unknown length" if rest else "")

    def disk_words(self, cells: Iterable[Cell]) -> str:
        here = self.store.out
        while not here.exists():
            here = here.parent
        free = shutil.disk_usage(here).free / 1e9
        known = 0.0
        unknown: Counter = Counter()
        for cell in cells:
            if seen := self._bytes.get(cell.kind):
                known += _mean(seen)
            elif cell.kind != "split":
                unknown[_WORDS[cell.kind]] += 1
        words = f"{known / 1e9:.2f} GB" if known or not unknown else "unknown"
        if unknown and known:
            words += " and what " + ", ".join(f"{count} {name}" for name, count in unknown.items()) + " take (unknown)"
        return f"{words}, prepared volumes and features beside it (cache/); {free:.1f} GB are free"


def _like(cell: Cell) -> tuple:
    names = ("task", "encoder", "mode", "input", "schedule", "name")
    return (cell.kind, *(cell.facts.get(name) for name in names))


def _alike(cell: Cell) -> tuple:
    """Steps of a search take as long as those of a final cell, and a longer schedule has more of them."""
    return tuple(cell.facts.get(name) for name in ("stage", "task", "encoder", "mode", "input", "name"))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _hours(seconds: float) -> str:
    return f"about {seconds / 3600:.1f} h" if seconds >= 3600 else f"about {seconds / 60:.0f} min"


def _total(measured: Measured, left: list[Cell], jobs: int) -> str:
    found = {cell.id: measured.seconds(cell) for cell in left if cell.kind != "split"}
    known = [value for value in found.values() if value is not None]
    if not found:
        return "nothing is left to do"
    if not known:
        return f"unknown for all {len(found)} cells that are left: run some, then ask again"
    rest = len(found) - len(known)
    together = f", {jobs} at a time" if jobs > 1 else ""
    return f"{_hours(sum(known) / jobs)}{together}" + (f", and {rest} cells of unknown length" if rest else "")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for top, _, names in os.walk(folder) for path in (Path(top) / n for n in names))


def _grid_lines(store: Store) -> list[str]:
    """Which final cells there are, block by block."""
    found: dict[tuple, dict[str, dict]] = {}
    for cell in store.work.of("final"):
        facts = cell.facts
        key = (facts["task"], facts["encoder"], facts["network"], facts["mode"], facts["input"], facts["comparison"])
        row = found.setdefault(key, {"sources": {}, "fractions": {}, "seeds": {}})
        word = f"{facts['source']} ({facts['row']})" if facts["schedule"] > 1 else facts["source"]
        row["sources"][word] = row["fractions"][facts["fraction"]] = row["seeds"][facts["seed"]] = None
    lines = []
    for (task, encoder, network, mode, fed, kind), row in found.items():
        shares = ", ".join(f"{100 * fraction:g} %" for fraction in sorted(row["fractions"]))
        kind = "source effect" if kind == "source" else "system comparison"
        lines.append(
            f"  {task}, {encoder} ({network}), {mode}, input {fed}: {', '.join(row['sources'])}; labels {shares}; "
            f"{len(row['seeds'])} seeds; {kind}"
        )
    return lines


def detectable_lines(store: Store, cell: Cell) -> list[str]:
    """Smallest detectable difference of a task, a line for each share of its labels; unknown without a split."""
    from benchmarks.grid.splits import training_patients, units_of_test
    from benchmarks.statistics.power import detectable_in

    task_name = cell.facts["task"]
    if not store.finished(cell):
        return [f"  {task_name}: unknown until its data set is there and split"]
    runs = max(c.facts["seed"] + 1 for c in store.work.of("final") if c.facts["task"] == task_name)
    try:
        task, units = units_of_test(store, cell)
        smallest, why = detectable_in(task, units, runs=runs)
    except InputError as error:
        return [f"  {task_name}: unknown ({error})"]
    amount = f"{smallest:.3f}" if math.isfinite(smallest) else "none"
    shares = sorted({fraction for fraction, _ in cell.facts["files"]})
    lines = []
    for share in shares:
        seen = [seed for fraction, seed in cell.facts["files"] if fraction == share]
        patients = training_patients(store.folder(cell) / fraction_file(share, seen[0]))
        lines.append(
            f"  {task_name}, {100 * share:g} % of the labels ({patients} training patients): {amount} in "
            f"{task.main_metric} on {len(units)} test units with {runs} run{'s' if runs != 1 else ''} of each source "
            f"({why}; runs that also differ beyond single patients need more)"
        )
    return lines
