"""Which pretraining source helps: ``python benchmarks/sources.py --config demo --out reports/demo``.

Runs a grid of sources x encoders x tasks x shares of the labels x seeds, one run of the finetune stage per cell, and
writes a report. Whatever is finished is kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from voco import plugins
from voco.errors import InputError
from voco.plugins import load_all

GRID = "grid.yaml"
# Work that --until ends with, and the kinds of cells that are then finished.
_UNTIL = {"data": ("data", "split"), "pretraining": ("pretrain",), "search": ("search",)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/sources.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", required=True, help="YAML file, or the name of one in benchmarks/configs")
    parser.add_argument("--out", required=True, type=Path, help="folder of the grid and its report")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="take a data set from there")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
        help="Python file or module with methods, tasks, metrics or encoders of your own, for all cells",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="print cells, hours, disk and detectable differences; stop")
    parser.add_argument("--until", choices=sorted(_UNTIL), help="stop after this much of the work")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="work on the I-th of N parts, from 1")
    parser.add_argument("--jobs", type=int, help="cells at a time (each with its own GPUs where there are any)")
    parser.add_argument("--processes", type=int, help="training processes of each cell, through accelerate")
    parser.add_argument("--slurm", type=int, metavar="N", help="print a SLURM script for an array of N jobs; stop")
    parser.add_argument("--resamples", type=int, help="without effect, as intervals need no draws any more")
    parser.add_argument("--no-paper", action="store_true", help="leave out paper/: figures and tables as files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0: all cells are finished; 1: some crashed or could not start; 2: bad input; 130: stopped before the end.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    try:
        return run(args, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        return 130


def run(args: argparse.Namespace, arguments: Sequence[str], runner=None) -> int:
    """One call from the YAML file to the report."""
    from benchmarks.cells.process import Process
    from benchmarks.cells.store import Store
    from benchmarks.cells.worker import Worker
    from benchmarks.grid.config import find_config, read_grid
    from benchmarks.grid.expand import expand
    from benchmarks.grid.plan import missing_data, plan_text
    from benchmarks.grid.primary import named, store_plan
    from voco.files import read_json, write_json, write_text

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    load_all(args.plugin)
    plugins.check(args.out, read_json(args.out / plugins.FILE).get("plugins"))
    shard = _shard(args.shard)
    config = find_config(args.config)
    grid = read_grid(config).with_data(_places(args.data))
    jobs = _at_least_one("--jobs", args.jobs, grid.jobs)
    processes = _at_least_one("--processes", args.processes, grid.processes)
    work = expand(grid)
    named(work)
    if args.slurm is not None:
        _print_script(args, arguments, _at_least_one("--slurm", args.slurm, 1), processes, jobs)
        return 0
    store = Store(args.out, work)
    if args.plan:
        print(plan_text(_with_splits(store), jobs))
        for sentence in missing_data(store):
            print(f"missing: {sentence}")
        return 0
    if missing := missing_data(store):
        raise InputError("data sets are not there:\n  " + "\n  ".join(missing))
    plan = store_plan(store)
    if needed := plugins.records(plugins.loaded()):
        write_json(store.out / plugins.FILE, {"plugins": needed}, indent=1)
    write_text(store.out / GRID, config.read_text(encoding="utf-8"))
    say(plan_text(store, jobs))
    if plan["primary"]:
        say(f"{len(plan['primary'])} primary comparisons, stored at {plan['time']}")
    kinds = _UNTIL[args.until] if args.until else ("cheap", "final")
    with _Stop() as stop:
        worker = Worker(
            store, runner=runner or Process, jobs=jobs, processes=processes, threads=_threads(jobs, processes),
            shard=shard, kinds=kinds, stop=stop, say=say,
        )  # fmt: skip
        outcome = worker.run()
    if outcome.stopped:
        say("stopped; the same command goes on from there")
        return 130
    for name, reason in (*outcome.failed.items(), *outcome.blocked.items()):
        say(f"not finished: {name}: {reason}")
    status = 1 if outcome.failed or outcome.blocked else 0
    if args.until:
        say(f"finished as far as --until {args.until}; without it the grid goes on")
        return status
    return _report(args, store, outcome, shard, status, say)


def _report(args, store, outcome, shard: tuple[int, int], status: int, say: Callable[[str], None]) -> int:
    from benchmarks.cells.search import edge_warnings
    from benchmarks.cells.store import LOG
    from benchmarks.grid.primary import PLAN
    from benchmarks.report import write_report

    work = store.work
    cells = work.of("cheap", "final")
    done = [store.folder(cell) for cell in cells if store.finished(cell)]
    waiting = [cell for cell in cells if not store.finished(cell) and cell.id not in outcome.failed | outcome.blocked]
    if shard[1] > 1 and waiting:
        say(f"{len(waiting)} cells of other shards are left; when they have ended, the command without --shard reports")
        return status
    if not done:
        raise InputError(f"no cell has finished, so there is nothing to report on; see above and {store.out / LOG}")
    lost = {**outcome.failed, **outcome.blocked}
    left_out = [(Path(name), reason) for name, reason in lost.items()]
    warnings = [f"{len(lost)} cells have not finished; see the end of the page."] if lost else []
    write_report(
        done, store.out, plan=store.out / PLAN, reference=work.grid.reference, title=work.grid.title,
        left_out=left_out, paper=not args.no_paper,
        warnings=[*warnings, *edge_warnings(store)], say=say,
    )  # fmt: skip
    return status


class _Stop:
    """True once a signal asked for an end; a second Ctrl-C interrupts at once. A context manager."""

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self):
        self.asked = False
        self._previous: dict = {}

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            print("stopping: running cells write a checkpoint first", file=sys.stderr, flush=True)
        self.asked = True

    def __enter__(self) -> _Stop:
        self._previous = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, *_exc) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _with_splits(store):
    """Make the splits of data sets that are there: what a test set can show hangs on who is in it."""
    from benchmarks.grid.splits import write_splits_of

    for cell in store.work.of("split"):
        made = all(store.finished(store.work.cells[need]) for need in cell.needs)
        if made and store.root(cell.data).exists() and not store.finished(cell):
            with store.lock(cell) as held:
                if held:
                    write_splits_of(store, cell)
    return store


def _print_script(args, arguments: Sequence[str], shards: int, processes: int, jobs: int) -> None:
    from benchmarks.cells.slurm import array_script

    kept, skip = [], False
    for word in arguments:
        if skip or word in ("--slurm", "--shard"):
            skip = not skip
        elif not word.startswith(("--slurm=", "--shard=")):
            kept.append(word)
    print(array_script(kept, args.out, shards, processes=processes, jobs=jobs), end="")


def _shard(text: str) -> tuple[int, int]:
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--shard is I/N with I from 1 to N, such as 2/8; found {text!r}")
    return int(first), int(last)


def _places(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--data takes NAME=FOLDER, found {word!r}")
        found[name] = folder
    return found


def _at_least_one(name: str, given: int | None, default: int) -> int:
    value = default if given is None else given
    if value < 1:
        raise InputError(f"{name} must be at least 1, found {value}")
    return value


def _threads(jobs: int, processes: int) -> int:
    """CPU threads of each process, so that cells at work together share the cores; a set OMP_NUM_THREADS wins."""
    from voco.machine import cores

    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        return max(1, int(given))
    return max(1, cores() // (jobs * processes))


if __name__ == "__main__":
    sys.exit(main())
