"""Working through a grid: what can start is started, what crashed is noted, and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cells.commands import command
from benchmarks.cells.process import Handle, Process, Runner, last_lines, slot_environment, wait_until_free
from benchmarks.cells.search import decide
from benchmarks.cells.store import OUTPUT, Store, now
from benchmarks.grid.cell import Cell
from benchmarks.grid.plan import detectable_lines
from voco.engine.log import duration
from voco.errors import InputError
from voco.files import read_json

WAITING, RUNNING, DONE, FAILED, BLOCKED, SKIPPED = "waiting", "running", "done", "failed", "blocked", "skipped"
_STOP_SECONDS = 900.0


@dataclass
class Outcome:
    """How a call ended.

    Attributes:
        done: ids of the cells that are finished, from now or before.
        failed: id to reason, of cells that crashed in this call; ``blocked``: of cells that stand on such a one.
        stopped: whether it was asked to stop before the end.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


@dataclass
class _Running:
    cell: Cell
    handle: Handle
    lock: Any
    slot: int
    start: float


class Worker:
    """Works on the cells of a grid, or on one of several shards of it.

    Everything it knows is read from disk when it starts, so it may be killed at any time. Cells are locked while they
    are at work: shards never run the same one. What cells of a shard stand on is done by whichever shard comes first.

    Args:
        store: where cells lie.
        runner: starts processes.
        jobs: cells at a time.
        processes: training processes of each.
        threads: CPU threads of each process; 0 = as the settings say.
        shard: (i, n), i from 1: the i-th of n parts of the final cells.
        kinds: of cells to be finished, with what they stand on.
        stop: asked often; True ends the work after checkpoints.
        say: takes lines of progress.
        seconds: between two looks at running processes.
    """

    def __init__(
        self,
        store: Store,
        *,
        runner: Runner = Process,
        jobs: int = 1,
        processes: int = 1,
        threads: int = 0,
        shard: tuple[int, int] = (1, 1),
        kinds: Sequence[str] = ("cheap", "final"),
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda text: None,
        seconds: float = 0.2,
    ):
        self.store, self.work, self.runner, self.stop, self.say = store, store.work, runner, stop, say
        self.jobs, self.processes, self.threads, self.seconds = jobs, processes, threads, seconds
        self.started = now()
        self.state: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.running: list[_Running] = []
        self._elsewhere: set[str] = set()
        self._warm: set[str] = set()
        self._validated: dict[Path, bool] = {}
        groups = list(dict.fromkeys(cell.group for cell in self.work.cells.values() if cell.group))
        own = {group for place, group in enumerate(groups) if place % shard[1] == shard[0] - 1}
        self.own = [cell for cell in self.work.of(*kinds) if not cell.group or cell.group in own]

    def run(self) -> Outcome:
        """Work until nothing is left that could be done."""
        for cell in self.own:
            self._require(cell)
        left = sum(state == WAITING for state in self.state.values())
        self.say(f"{len(self.state) - left} cells are finished, {left} to do")
        try:
            while self._count(WAITING, RUNNING) and not self.stop():
                moved = self._collect()
                moved = self._start_ready() or moved
                if not moved:
                    time.sleep(self.seconds)
        finally:
            stopped = bool(self._count(WAITING, RUNNING))
            self._end_running()
        done = [name for name, state in self.state.items() if state == DONE]
        by_state = {s: {n: self.reasons.get(n, "") for n, v in self.state.items() if v == s} for s in (FAILED, BLOCKED)}
        return Outcome(done, by_state[FAILED], by_state[BLOCKED], stopped)

    def _count(self, *states: str) -> int:
        return sum(state in states for state in self.state.values())

    # What is to be done

    def _require(self, cell: Cell) -> None:
        if cell.id in self.state:
            return
        if self.store.finished(cell):
            self._done(cell, None)
            return
        self.state[cell.id] = WAITING
        for need in self._needs(cell):
            self._require(need)

    def _needs(self, cell: Cell) -> list[Cell]:
        """What must come first; a search that is decided need not be there any more."""
        decided = cell.kind == "final" and self.store.known(cell)
        needs = [self.work.cells[name] for name in cell.needs]
        return [need for need in needs if not (decided and need.kind == "search")]

    def _start_ready(self) -> bool:
        """Start or settle what can be; True where anything changed."""
        moved = False
        for cell in self.work.cells.values():
            if self.state.get(cell.id) == WAITING and not self.stop():
                moved = self._advance(cell) or moved
        return moved

    def _advance(self, cell: Cell) -> bool:
        needs = self._needs(cell)
        if broken := [n for n in needs if self.state[n.id] in (FAILED, BLOCKED) and n.kind != "search"]:
            self._settle(cell, BLOCKED, f"needs {broken[0].id}, which {self._why(broken[0])}")
            return True
        if any(self.state[need.id] in (WAITING, RUNNING) for need in needs):
            return False
        try:
            if cell.kind == "search" and not self._can_search(cell):
                self._settle(cell, SKIPPED, "nobody validates inside the label budget")
                return True
            if not self.store.known(cell) and not self._decide(cell):
                return True
            if self.store.finished(cell):
                self._done(cell, None)
                return True
            return self._begin(cell)
        except (InputError, OSError) as error:
            self._crashed(cell, None, [str(error)])
            return True

    def _why(self, cell: Cell) -> str:
        return "crashed" if self.state[cell.id] == FAILED else "could not start"

    def _can_search(self, cell: Cell) -> bool:
        from benchmarks.grid.splits import has_validation, split_file

        path = split_file(self.store, cell)
        if path not in self._validated:
            self._validated[path] = has_validation(path)
        return self._validated[path]

    def _decide(self, cell: Cell) -> bool:
        trials = self.work.trials(cell.group)
        failed = {t.id: self.reasons[t.id] for t in trials if self.state[t.id] in (FAILED, BLOCKED)}
        skipped = all(self.state[trial.id] == SKIPPED for trial in trials)
        choice = decide(self.store, cell.group, failed, validation=not skipped)
        if choice is None:
            self._settle(cell, BLOCKED, "every trial of its search crashed")
        return choice is not None

    def _begin(self, cell: Cell) -> bool:
        """Take a cell up; False where it has to wait."""
        alone = cell.kind == "split"
        if not alone and (len(self.running) >= self.jobs or self._prepared_elsewhere(cell)):
            return False
        lock = self.store.try_lock(cell)
        if lock is None:
            if cell.id not in self._elsewhere:
                self._elsewhere.add(cell.id)
                self.say(f"{cell.id}: another process is at it, waiting")
            return False
        keep = False
        try:
            if self.store.finished(cell):
                self._done(cell, None)
            elif cell.id in self._elsewhere and (reason := self._crash_of_others(cell)):
                self._settle(cell, FAILED, reason)
            elif alone:
                self._do_here(cell)
            else:
                keep = self._launch(cell, lock)
        finally:
            if not keep:
                lock.__exit__(None, None, None)
        return True

    def _prepared_elsewhere(self, cell: Cell) -> bool:
        """Whether a running cell computes what this one needs too: two at once would do the same work."""
        busy = {key for one in self.running for key in one.cell.prepares} - self._warm
        return bool(busy & set(cell.prepares))

    def _crash_of_others(self, cell: Cell) -> str:
        """Why another shard, since this one started, could not do a cell."""
        for line in reversed(self.store.lines()):
            if line.get("cell") == cell.id and line.get("state") == "crashed" and line["time"] >= self.started:
                return str(line.get("reason", "crashed in another process"))
        return ""

    def _do_here(self, cell: Cell) -> None:
        start = time.monotonic()
        from benchmarks.grid.splits import write_splits_of

        write_splits_of(self.store, cell)
        self._done(cell, time.monotonic() - start)
        for line in ("smallest difference that the test set shows:", *detectable_lines(self.store, cell)):
            self.say(line)

    def _launch(self, cell: Cell, lock: Any) -> bool:
        folder = self.store.folder(cell)
        self.store.write_cell(cell)
        if not wait_until_free(folder):
            raise InputError(f"{folder} is in use by another process; end it, or wait, and run the grid again")
        slot = min(set(range(self.jobs)) - {one.slot for one in self.running})
        argv = command(self.store, cell, processes=self.processes, threads=self.threads, workers=self.threads or 1)
        env = slot_environment(slot, self.jobs, self.processes, self.threads)
        handle = self.runner(argv, folder / OUTPUT, env)
        self.running.append(_Running(cell, handle, lock, slot, time.monotonic()))
        self.state[cell.id] = RUNNING
        self.say(f"{self._progress()} {cell.id}: started")
        return True

    def _progress(self) -> str:
        done = self._count(DONE, FAILED, BLOCKED, SKIPPED)
        return f"[{done}/{len(self.state)}]"

    # What became of it

    def _collect(self) -> bool:
        ended = [one for one in self.running if one.handle.poll() is not None]
        for one in ended:
            self.running.remove(one)
            try:
                self._settle_process(one)
            finally:
                one.lock.__exit__(None, None, None)
        return bool(ended)

    def _settle_process(self, one: _Running) -> None:
        status, cell, seconds = one.handle.poll(), one.cell, time.monotonic() - one.start
        if cell.kind == "data" and status == 0:
            self.store.write_cell(cell, whole=True)
        if status == 0 and self.store.finished(cell):
            self._done(cell, seconds)
            return
        if self.stop():
            self.state[cell.id] = WAITING
            return
        lines = last_lines(self.store.folder(cell) / OUTPUT)
        if status == 0:
            lines.append(
                "the process ended without finishing; was it sent a signal? The grid goes on with it when run again"
            )
        self._crashed(cell, status, lines, seconds)

    def _crashed(self, cell: Cell, status: int | None, lines: list[str], seconds: float | None = None) -> None:
        reason = lines[-1] if lines else "left no output"
        reason = f"exit status {status}: {reason}" if status is not None else reason
        self._settle(cell, FAILED, reason)
        self.store.log(cell, "crashed", exit_status=status, reason=reason, last_lines=lines, seconds=_round(seconds))
        self.say(f"{self._progress()} {cell.id}: crashed, {reason}")

    def _settle(self, cell: Cell, state: str, reason: str) -> None:
        self.state[cell.id], self.reasons[cell.id] = state, reason

    def _done(self, cell: Cell, seconds: float | None) -> None:
        self.state[cell.id] = DONE
        self._warm |= set(cell.prepares)
        figures = figures_of(self.store, cell)
        self.store.log(cell, "finished", seconds=_round(seconds), **figures)
        if seconds is not None:
            known = figures.get("value") is not None
            value = f", {figures['metric']} {figures['value']:.3f} ({figures['part']})" if known else ""
            self.say(f"{self._progress()} {cell.id}: finished in {duration(seconds)}{value}")

    def _end_running(self) -> None:
        """Ask what is running to stop, and wait for its checkpoints."""
        for one in self.running:
            one.handle.stop()
        end = time.monotonic() + _STOP_SECONDS
        while self.running and time.monotonic() < end:
            if not self._collect():
                time.sleep(self.seconds)
        for one in self.running:
            one.lock.__exit__(None, None, None)


def figures_of(store: Store, cell: Cell) -> Mapping[str, Any]:
    """What the log says about a finished cell: its figure, and what it cost."""
    folder = store.folder(cell)
    if cell.kind not in ("search", "final", "cheap"):
        record = read_json(folder / "run.json")
        return {"wall_seconds": record.get("wall_seconds"), "cost": record.get("cost")} if record else {}
    results, record = read_json(folder / "results.json"), read_json(folder / "run.json")
    main = results.get("main", {})
    found = {
        "metric": main.get("name"), "value": main.get("value"), "low": main.get("low"), "high": main.get("high"),
        "part": results.get("split"), "looks": results.get("looks_at_test"),
        "trained": (results.get("verdict") or {}).get("trained"),
        "wall_seconds": record.get("wall_seconds"),
    }  # fmt: skip
    training = (results.get("facts") or {}).get("training") or {}
    costs = [fold.get("cost") or {} for fold in training.values()]
    steps = [fold.get("last_step") for fold in training.values()]
    if costs and all(cost.get("seconds_training") for cost in costs) and all(steps):
        found["seconds_per_step"] = sum(cost["seconds_training"] for cost in costs) / sum(steps)
        found["seconds_training"] = sum(cost["seconds_training"] for cost in costs)
    if store.known(cell) and (choice := store.choice(cell.group) if cell.kind == "final" else None):
        found["search"] = {key: choice[key] for key in ("setting", "chosen", "tried", "seed", "edge")}
    return found


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
