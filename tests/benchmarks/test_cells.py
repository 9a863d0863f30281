from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.cells.commands import budget_steps
from benchmarks.cells.process import Process, last_lines, slot_environment, wait_until_free
from benchmarks.cells.search import edge_warnings
from benchmarks.cells.store import append_line, read_lines
from benchmarks.cells.worker import Worker
from benchmarks.grid.primary import store_plan
from tests.benchmarks.grids import FakeRunner, Written, make_store
from tests.benchmarks.test_grid_config import put
from voco.engine.lock import FolderLock
from voco.errors import InputError
from voco.files import read_json


@pytest.fixture(autouse=True)
def same_commit(monkeypatch):
    """Asking git for every store takes longer than the rest."""
    monkeypatch.setattr("voco.engine.record.git_commit", lambda: "0" * 40)


def work_through(store, runner=None, **options):
    runner = runner or FakeRunner()
    return Worker(store, runner=runner, seconds=0.001, **options).run(), runner


def table(store) -> dict[str, float]:
    """What a report would be made of: the figure of each final cell by name."""
    return {
        cell.id: read_json(store.folder(cell) / "results.json")["main"]["value"]
        for cell in store.work.of("final")
        if store.finished(cell)
    }


def test_a_grid_is_worked_through_in_order_and_only_once(tmp_path):
    store = make_store(tmp_path)
    outcome, runner = work_through(store)
    assert not outcome.failed and not outcome.blocked and not outcome.stopped
    assert len(outcome.done) == len(store.work.cells) and len(table(store)) == 20
    assert len(runner.started) == len(set(runner.started)) == len(store.work.cells) - 1  # splits are made here
    again, second = work_through(make_store(tmp_path))
    assert second.started == [] and len(again.done) == 20
    lines = [line["cell"] for line in store.lines() if line["state"] == "finished"]
    assert sorted(lines) == sorted(store.work.cells)
    one = next(line for line in store.lines() if line["kind"] == "final")
    assert {"commit", "versions", "machine", "time", "digest", "source", "value", "comparison"} <= set(one)
    finals = [read_json(store.folder(cell) / "cell.json") for cell in store.work.of("final")]
    assert {facts["split_rule"] for facts in finals} == {"holdout"}  # auto, as decided when the split was drawn


def test_only_final_cells_open_the_test_set_and_all_in_one_ledger(tmp_path):
    store = make_store(tmp_path)
    _, runner = work_through(store)
    opened, splits = [], set()
    for name, argv in runner.argv.items():
        if "--eval" in argv:
            splits.add(Path(argv[argv.index("--split.file") + 1]))
            opened += [name] * (argv[argv.index("--eval") + 1] == "test")
    assert len(opened) == 20 and not any("-lr" in name for name in opened)
    assert len({path.parent for path in splits}) == 1
    assert {path.name for path in splits} == {"whole.csv", "labels-50pct-seed0.csv", "labels-50pct-seed1.csv"}


def test_all_sources_share_patients_and_each_seed_has_its_own(tmp_path):
    store = make_store(tmp_path)
    work_through(store)
    folder = store.folder(store.work.of("split")[0])
    parts, budgets = {}, {}
    for path in folder.glob("*.csv"):
        rows = list(csv.DictReader(path.open()))
        parts[path.name] = {row["case"] for row in rows if row["split"] == "test"}
        inside = [row for row in rows if row["in_fraction"] == "1" and row["split"] != "test"]
        budgets[path.name] = {row["case"] for row in inside}
    assert len(set(map(frozenset, parts.values()))) == 1
    assert budgets["labels-50pct-seed0.csv"] != budgets["labels-50pct-seed1.csv"]
    assert budgets["labels-50pct-seed0.csv"] < budgets["whole.csv"]


def test_the_learning_rate_is_chosen_on_validation_and_stays(tmp_path):
    store = make_store(tmp_path)
    work_through(store)
    cell = store.work.cells["final/block-3d-voco3d-full-100pct-seed1"]
    assert store.settings(cell)["train"]["lr"] == 1e-3
    search = read_json(store.folder(cell) / "cell.json")["search"]
    assert search["tried"] == {"0.0001": 0.6, "0.001": 0.8, "0.01": 0.7} and search["chosen"] == 1e-3
    # a trial that is lost or comes out otherwise later changes nothing any more
    trial = store.work.trials(cell.group)[0]
    (store.folder(trial) / "results.json").unlink()
    again, runner = work_through(make_store(tmp_path), FakeRunner(scores={1e-4: 0.99}))
    assert runner.started == [] and cell.id in again.done
    assert edge_warnings(store) == []


def test_a_choice_on_the_edge_is_said(tmp_path):
    store = make_store(tmp_path)
    work_through(store, FakeRunner(scores={1e-4: 0.6, 1e-3: 0.7, 1e-2: 0.8}))
    found = edge_warnings(store)
    assert len(found) == 3 and "block-3d-scratch-full-100pct: the learning rate 0.01 lies on the edge" in found[0]
    long = store.work.cells["final/block-3d-scratch-full-long-100pct-seed0"]
    assert store.settings(long)["train"]["lr"] == 0.01


def test_a_crash_is_recorded_and_the_grid_goes_on(tmp_path):
    store = make_store(tmp_path)
    outcome, _ = work_through(store, FakeRunner(crash=["voco3d-linear-50pct-seed1", "3d-video-run0"]))
    assert outcome.failed["final/block-3d-voco3d-linear-50pct-seed1"] == "exit status 1: boom: no such thing"
    assert "pretrain/3d-video-run0" in outcome.failed
    # the chain stands on the video run: its second stage, three trials, and 2 + 4 final cells
    assert len(outcome.blocked) == 1 + 3 + 6 and len(table(store)) == 20 - 6 - 1
    assert all("video" in name for name in outcome.blocked)
    crash = next(line for line in store.lines() if line["state"] == "crashed")
    assert crash["exit_status"] == 1 and crash["last_lines"][-1] == "boom: no such thing"
    # what crashed is tried again, what stood on it follows, nothing else
    again, runner = work_through(make_store(tmp_path))
    assert not again.failed and len(table(store)) == 20 and len(runner.started) == 1 + 1 + 3 + 6 + 1


def test_a_crashed_trial_leaves_the_others(tmp_path):
    store = make_store(tmp_path)
    outcome, _ = work_through(store, FakeRunner(crash=["scratch-full-100pct-lr0.001-"]))
    assert list(outcome.failed) == ["search/block-3d-scratch-full-100pct-lr0.001-seed0"] and not outcome.blocked
    choice = store.choice("block-3d-scratch-full-100pct")
    assert choice["chosen"] == 1e-2 and choice["note"] == "lr 0.001 crashed"


def test_no_trial_left_blocks_the_final_cells(tmp_path):
    store = make_store(tmp_path)
    outcome, _ = work_through(store, FakeRunner(crash=["scratch-full-100pct-lr"]))
    assert outcome.blocked["final/block-3d-scratch-full-100pct-seed0"] == "every trial of its search crashed"
    assert len(table(store)) == 16


def test_without_validation_patients_the_middle_value_is_taken(tmp_path):
    def change(grid):
        grid["tasks"]["block"]["settings"]["split"] = {"val": 0}

    store = make_store(tmp_path, change)
    outcome, runner = work_through(store)
    assert not outcome.failed and not any("-lr" in name for name in runner.started)
    choice = store.choice("block-3d-scratch-full-100pct")
    assert choice["chosen"] == 1e-3 and "nobody validates" in choice["note"] and not choice["tried"]


class Killed(BaseException):
    """Stands for a signal that no handler sees."""


class KilledRunner(FakeRunner):
    """Ends the whole grid while its n-th run is half written."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def write(self, folder, argv):
        if len(self.started) > self.after:
            (folder / "results.json").write_text('{"main": ')
            raise Killed
        super().write(folder, argv)


@pytest.mark.parametrize("after", [0, 3, 9, 25])
def test_a_killed_grid_gives_the_same_table_when_started_again(tmp_path, after):
    with pytest.raises(Killed):
        work_through(make_store(tmp_path), KilledRunner(after))
    store = make_store(tmp_path)
    append_line_torn(store.out / "cells.jsonl")
    outcome, runner = work_through(store)
    # 1e-3 was chosen for those that train; the recipe has 1e-4
    whole = {cell.id: 0.8 if cell.facts["mode"] == "full" else 0.6 for cell in store.work.of("final")}
    assert not outcome.failed and table(store) == whole
    assert len(runner.started) == len(store.work.cells) - 1 - after


def append_line_torn(path):
    with path.open("a") as file:
        file.write('{"cell": "final/x", "sta')


def test_a_line_is_appended_after_a_torn_one(tmp_path):
    path = tmp_path / "log.jsonl"
    append_line(path, {"a": 1})
    append_line_torn(path)
    append_line(path, {"b": 2})
    assert list(read_lines(path)) == [{"a": 1}, {"b": 2}]


def _shard(store, number, count, results):
    runner = FakeRunner(polls=3)
    outcome = Worker(store, runner=runner, seconds=0.002, shard=(number, count), jobs=2).run()
    results.put((number, runner.started, outcome.done, outcome.failed))
    results.close()
    results.join_thread()
    os._exit(0)


def test_two_shards_share_the_work_and_never_a_cell(tmp_path):
    store = make_store(
        tmp_path
    )  # made once: making it writes the files of the grid, which the other shard may be reading
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_shard, args=(store, i, 2, results)) for i in (1, 2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    store = make_store(tmp_path)
    started = [name for _, names, _, _ in found for name in names]
    assert len(started) == len(set(started)) == len(store.work.cells) - 1
    assert len(table(store)) == 20 and not any(failed for *_, failed in found)
    finals = [{name for name in done if name.startswith("final/")} for _, _, done, _ in sorted(found)]
    assert not finals[0] & finals[1] and len(finals[0] | finals[1]) == 20


def test_a_cell_that_another_process_holds_is_waited_for(tmp_path):
    store = make_store(tmp_path)
    cell = store.work.cells["pretrain/3d-voco3d-run0"]
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()

    def hold():
        lock = store.try_lock(cell)
        ready.set()
        done.wait(60)
        lock.__exit__(None, None, None)
        os._exit(0)

    holder = context.Process(target=hold)
    holder.start()
    assert ready.wait(60)
    said = []

    def say(text):
        if "another process is at it" in text:
            said.append(text)
            done.set()

    outcome = Worker(store, runner=FakeRunner(), seconds=0.001, say=say).run()
    holder.join(60)
    assert len(outcome.done) == len(store.work.cells)
    assert len(said) == 1


def test_what_others_crashed_on_is_not_tried_by_every_shard(tmp_path):
    store = make_store(tmp_path)
    worker = Worker(store, runner=FakeRunner())
    cell = store.work.cells["pretrain/3d-voco3d-run0"]
    assert worker._crash_of_others(cell) == ""
    store.log(cell, "crashed", reason="exit status 1: boom")
    assert worker._crash_of_others(cell) == "exit status 1: boom"
    worker.started = "2999-01-01T00:00:00+00:00"
    assert worker._crash_of_others(cell) == "", "a crash before this call is tried again"


def test_two_cells_at_a_time_never_prepare_the_same(tmp_path):
    store = make_store(tmp_path)
    at_work: list[set] = []

    class Watching(FakeRunner):
        def __call__(self, argv, log, env):
            at_work.append({one.cell.id for one in worker.running})
            return super().__call__(argv, log, env)

    worker = Worker(store, runner=Watching(polls=4), seconds=0.0005, jobs=3)
    outcome = worker.run()
    assert len(outcome.done) == len(store.work.cells) and max(map(len, at_work)) == 2  # and the one that starts
    first_search = next(i for i, name in enumerate(worker.runner.started) if "-lr" in name)
    assert not any(name.startswith("search/") for name in at_work[first_search])
    slots = [slot_environment(slot, 2, 2, 1) for slot in (0, 1)]
    assert all(env["OMP_NUM_THREADS"] == "1" for env in slots)


def test_each_slot_has_its_own_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [slot_environment(slot, 2, 2, 0)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4,5", "6,7"]
    assert "CUDA_VISIBLE_DEVICES" not in slot_environment(0, 1, 4, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in slot_environment(1, 2, 1, 0)


def test_a_stop_ends_after_checkpoints_and_loses_nothing(tmp_path):
    store = make_store(tmp_path)
    asked = []

    class Endless(FakeRunner):
        def __call__(self, argv, log, env):
            if len(self.started) == 4:
                asked.append(True)
                self.started.append(log.parent.name)
                return Written(None)  # runs until it is stopped, then ends with status 0, unfinished
            return super().__call__(argv, log, env)

    outcome = Worker(store, runner=Endless(), seconds=0.001, stop=lambda: bool(asked)).run()
    assert outcome.stopped and not outcome.failed and not [e for e in store.lines() if e["state"] == "crashed"]
    again, _ = work_through(make_store(tmp_path))
    assert len(table(store)) == 20 and not again.failed


def test_a_run_that_ends_without_finishing_is_no_success(tmp_path):
    store = make_store(tmp_path)

    class Stopped(FakeRunner):
        def write(self, folder, argv):
            super().write(folder, argv)
            if folder.name.startswith("block-3d-scratch-linear-50pct-seed0"):
                (folder / "run.json").write_text('{"state": "stopped"}')

    outcome, _ = work_through(store, Stopped())
    assert list(outcome.failed) == ["final/block-3d-scratch-linear-50pct-seed0"]


def test_budgets_of_hours_and_operations_become_steps(tmp_path):
    for unit, amount, steps in (("gpu_hours", 1.0, 7200), ("flops", 1e6, 125)):
        store = make_store(tmp_path / unit, put("budget", {"unit": unit, "amount": amount}))
        work_through(store)
        cell = store.work.cells["pretrain/3d-voco3d-run0"]
        # half a second a step; a thousand operations for each of 8 volumes (the fake batch is 4 unless a recipe says)
        assert budget_steps(store, cell) == steps == budget_steps(store, cell, 2) * (2 if unit == "gpu_hours" else 1)
    record = store.folder(store.work.cells[cell.facts["calibrated"]]) / "run.json"
    record.write_text(record.read_text().replace('"flops_rule": 2', '"flops_rule": 1'))
    with pytest.raises(InputError, match="by an older rule; remove"):
        budget_steps(store, cell)


def test_test_patients_are_left_out_of_pretraining(tmp_path):
    store = make_store(tmp_path, put("pretraining/voco3d/exclude", ["block"]))
    _, runner = work_through(store)
    argv = next(argv for name, argv in runner.argv.items() if name.startswith("3d-voco3d-run0"))
    listed = Path(argv[argv.index("--data.exclude") + 1])
    rows = csv.DictReader((listed.parent / "whole.csv").open())
    tested = {row["patient"] for row in rows if row["split"] == "test"}
    assert tested and tested <= set(listed.read_text().splitlines())


def test_primaries_are_stored_before_the_first_look_and_then_held(tmp_path):
    store = make_store(tmp_path)
    plan = store_plan(store)
    assert plan["primary"] == [
        {"a": "voco3d", "b": "scratch", "task": "table", "encoder": "cnn3d_s", "mode": "linear", "fraction": 1.0}
    ]
    assert plan["margin"] == {"": 0.02} and len(plan["digest"]) == 12
    assert store_plan(make_store(tmp_path)) == plan, "stored once: the time stays"
    # nobody has looked yet: another plan is taken, and both are kept
    other = make_store(tmp_path, put("margin", 0.05))
    assert store_plan(other)["margin"] == {"": 0.05}
    assert [line["margin"] for line in read_lines(store.out / "plan_history.jsonl")] == [{"": 0.02}, {"": 0.05}]
    ledger = store.out / "splits" / "block-123456" / "test_ledger.jsonl"
    ledger.parent.mkdir(parents=True)
    ledger.write_text(json.dumps({"time": "2026-05-01T00:00:00+00:00"}) + "\n")
    assert store_plan(make_store(tmp_path, put("margin", 0.05)))["margin"] == {"": 0.05}
    for change in (put("margin", 0.02), put("primary", [])):
        with pytest.raises(InputError, match=r"a test set has been opened since \(2026-05-01"):
            store_plan(make_store(tmp_path, change))
    # further cells do not touch what was named
    more = make_store(tmp_path, lambda grid: (put("margin", 0.05)(grid), put("seeds", 4)(grid)))
    assert store_plan(more)["digest"] == store_plan(other)["digest"]


def test_a_real_process_is_watched_and_stopped(tmp_path):
    log = tmp_path / "run" / "log.txt"
    code = "import sys, time; print('  5%\\r 50%\\rdone', flush=True); print('bad', file=sys.stderr); sys.exit(3)"
    process = Process(["python3", "-c", code], log, {})
    while process.poll() is None:
        time.sleep(0.01)
    assert process.poll() == 3 and sorted(last_lines(log)[1:]) == ["bad", "done"]
    endless = Process(["python3", "-c", "import time; time.sleep(60)"], log, {})
    assert endless.poll() is None
    endless.stop()
    while endless.poll() is None:
        time.sleep(0.01)
    assert endless.poll() == -signal.SIGTERM


def _start_and_hang(log, pid):
    process = Process(["python3", "-c", "import time; time.sleep(60)"], log, {})
    pid.value = process._process.pid
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel tells children on Linux only")
def test_cells_do_not_outlive_a_grid_that_is_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    pid = context.Value("i", 0)
    grid = context.Process(target=_start_and_hang, args=(tmp_path / "log.txt", pid))
    grid.start()
    grid.join(60)
    for _ in range(500):
        state = Path(f"/proc/{pid.value}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the run is still there")


def test_a_run_that_writes_its_last_checkpoint_is_waited_for(tmp_path):
    assert wait_until_free(tmp_path / "new")
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold():
        with FolderLock(tmp_path / "run"):
            ready.set()
            time.sleep(30)

    holder = context.Process(target=hold)
    holder.start()
    assert ready.wait(60) and not wait_until_free(tmp_path / "run", seconds=0.0)
    holder.kill()
    holder.join(60)
    assert wait_until_free(tmp_path / "run", seconds=5)
