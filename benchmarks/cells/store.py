"""Cells on disk: where each lies, whether it is finished, what was chosen, and the log that only grows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.grid.cell import FOLDERS, Cell, Work
from benchmarks.grid.settings import digest, merge
from voco.errors import InputError
from voco.files import read_json, write_json, write_text

LOG = "cells.jsonl"
CELL = "cell.json"
SETTINGS = "settings.yaml"
OUTPUT = "log.txt"
# What must have come before, but leaves no trace in the result once a value is chosen or measured.
_NOT_IN_DIGEST = ("search", "calibrate")


class Store:
    """The folder of a grid.

    A cell is finished when its folder says so: nothing else is remembered, so a grid may be killed at any time. The
    name of a folder ends in a digest of the cell's settings and of all that it stands on: other settings, another
    folder, and what was computed stays.

    Args:
        out: folder of the grid.
        work: all cells.
    """

    def __init__(self, out: str | Path, work: Work):
        self.out, self.work = Path(out).absolute(), work
        self.cache = self.out / "cache"
        self._digests: dict[str, str] = {}
        self._choices: dict[str, dict[str, Any]] = {}

    # Names

    def digest(self, cell: Cell) -> str:
        """Of everything that the result of a cell hangs on, code apart.

        Raises:
            RuntimeError: a final cell whose search has not been decided.
        """
        if not self.known(cell):
            raise RuntimeError(f"{cell.id}: its search is not decided yet")
        if cell.id not in self._digests:
            below = [
                self.digest(need)
                for need in map(self.work.cells.__getitem__, cell.needs)
                if need.kind not in _NOT_IN_DIGEST
            ]
            lr = self._chosen_lr(cell)
            settings = merge(cell.settings, {"train": {"lr": lr}}) if lr is not None else cell.settings
            kind = "final" if cell.kind == "search" else cell.kind
            self._digests[cell.id] = digest([kind, settings, cell.identity, sorted(below)])
        return self._digests[cell.id]

    def known(self, cell: Cell) -> bool:
        """Whether its settings are complete: a final cell waits for its search."""
        return not self._searched(cell) or self.choice(cell.group) is not None

    def folder(self, cell: Cell) -> Path:
        """Where a cell lies.

        Raises:
            RuntimeError: a final cell whose search has not been decided.
        """
        return self.out / FOLDERS[cell.kind] / f"{cell.name}-{self.digest(cell)[:6]}"

    def root(self, name: str) -> Path:
        """Folder of a data set."""
        data = self.work.grid.data[name]
        if data.root:
            return Path(data.root).absolute()
        return self.folder(next(cell for cell in self.work.of("data") if cell.data == name))

    # State

    def finished(self, cell: Cell) -> bool:
        """Whether a cell is done, by what its folder holds."""
        if not self.known(cell):
            return False
        folder = self.folder(cell)
        if read_json(folder / CELL).get("digest") != self.digest(cell):
            return False
        if cell.kind in ("data", "split"):
            return self._whole(cell, folder)
        if read_json(folder / "run.json").get("state") != "finished":
            return False
        done = {"calibrate": "timings.jsonl", "pretrain": "encoder/config.json"}.get(cell.kind, "results.json")
        return (folder / done).is_file()

    def _whole(self, cell: Cell, folder: Path) -> bool:
        if cell.kind == "data":
            return bool(read_json(folder / CELL).get("whole"))
        return all((folder / name).is_file() for name in self.split_files(cell))

    def split_files(self, cell: Cell) -> list[str]:
        """Names of the files that a split cell leaves."""
        from benchmarks.grid.cell import fraction_file

        names = {"whole.csv", *(fraction_file(fraction, seed) for fraction, seed in cell.facts["files"])}
        return sorted(names | ({"whole.exclude.csv"} if cell.facts["exclude"] else set()))

    def write_cell(self, cell: Cell, **more: Any) -> None:
        """Leave ``cell.json`` (facts, for the report) and ``settings.yaml`` in the folder of a cell."""
        import yaml

        folder = self.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"cell": cell.id, "digest": self.digest(cell), **cell.facts}
        for need in cell.needs:
            if need.startswith("split/") and "split_rule" in facts:  # auto is decided when a split is drawn
                facts["split_rule"] = read_json(self.folder(self.work.cells[need]) / CELL)["rule"]
        if self._searched(cell):
            choice = self.choice(cell.group)
            facts["search"] = {key: choice.get(key) for key in ("setting", "chosen", "tried", "seed", "steps", "note")}
        write_json(folder / CELL, {**facts, **more}, indent=1, default=str)
        if cell.settings:
            text = yaml.safe_dump(dict(self.settings(cell)), sort_keys=False, allow_unicode=True)
            write_text(folder / SETTINGS, text)

    def settings(self, cell: Cell) -> Mapping[str, Any]:
        """Settings of a run, what was searched included."""
        lr = self._chosen_lr(cell)
        return merge(cell.settings, {"train": {"lr": lr}}) if lr is not None else cell.settings

    # Search

    def _searched(self, cell: Cell) -> bool:
        return cell.kind == "final" and bool(self.work.trials(cell.group))

    def _chosen_lr(self, cell: Cell) -> float | None:
        choice = self.choice(cell.group) if self._searched(cell) else None
        return None if choice is None else float(choice["chosen"])

    def choice(self, group: str) -> dict[str, Any] | None:
        """What the search of a group chose; it is stored once and never changes."""
        if group not in self._choices and (found := read_json(self.choice_file(group))):
            self._choices[group] = found
        return self._choices.get(group)

    def choice_file(self, group: str) -> Path:
        key = digest([self.digest(trial) for trial in self.work.trials(group)])
        return self.out / "choices" / f"{group}-{key[:6]}.json"

    # The log

    @cached_property
    def _machine(self) -> dict[str, Any]:
        from voco.engine.record import git_commit, versions

        return {"commit": git_commit(), "versions": versions(), "machine": platform.node()}

    def log(self, cell: Cell, state: str, **more: Any) -> None:
        """Append a line about a cell to ``cells.jsonl``: once for a finished one, every time for a crash."""
        if state == "finished":
            if (cell.id, self.digest(cell)) in self._logged:
                return
            self._logged.add((cell.id, self.digest(cell)))
        line = {"time": now(), "cell": cell.id, "kind": cell.kind, "state": state, **self._machine}
        if self.known(cell):
            line |= {"digest": self.digest(cell), "folder": os.path.relpath(self.folder(cell), self.out)}
        keep = ("source", "encoder", "network", "task", "fraction", "seed", "mode", "input", "schedule", "comparison")
        line |= {key: cell.facts[key] for key in keep if key in cell.facts}
        append_line(self.out / LOG, {**line, **more})

    @cached_property
    def _logged(self) -> set[tuple[str, str]]:
        return {(e.get("cell"), e.get("digest")) for e in self.lines() if e.get("state") == "finished"}

    def lines(self) -> list[dict[str, Any]]:
        """All lines of the log; one that was cut off by a crash is left out."""
        return list(read_lines(self.out / LOG))

    # Locks

    @contextlib.contextmanager
    def lock(self, cell: Cell) -> Iterator[bool]:
        """Hold a cell for this process; yields False where another one holds it."""
        held = self.try_lock(cell)
        try:
            yield held is not None
        finally:
            if held is not None:
                held.__exit__(None, None, None)

    def try_lock(self, cell: Cell):
        """The lock of a cell, to be released by ``__exit__``; None where another process holds it."""
        from voco.engine.lock import FolderLock

        lock = FolderLock(self.out / "locks" / cell.id.replace("/", "-"))
        try:
            return lock.__enter__()
        except InputError:
            return None


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a file, line by line; what is none is skipped."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line in one write under a lock, so that shards never mix theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + json.dumps(dict(value), default=str) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
