"""A pool of processes that survives the death of any of them: one task is lost, the others go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from voco.errors import InputError

_READY = "ready"


@dataclass(frozen=True)
class Crashed:
    """Outcome of a task whose process died; ``reason`` says how."""

    reason: str


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    task: int | None = None
    ready: bool = False


def run_isolated(function: Callable, tasks: Sequence, workers: int) -> Iterator[tuple[int, object]]:
    """Call ``function(task)`` in fresh processes (spawned, not forked) and yield outcomes as they come.

    A task whose process dies (segmentation fault, out of memory) is tried once more at the end, alone, since several
    large scans at once may be too much where one is not.

    Args:
        function: importable by name; returns something that can be pickled and raises nothing.
        tasks: picklable arguments.
        workers: processes at once.

    Yields:
        (position in ``tasks``, result or :class:`Crashed`).

    Raises:
        InputError: the processes do not start at all.
    """
    again: deque[int] = deque()
    for index, outcome in _run(function, tasks, deque(range(len(tasks))), workers):
        if isinstance(outcome, Crashed):
            again.append(index)
        else:
            yield index, outcome
    yield from _run(function, tasks, again, 1)


def _run(function: Callable, tasks: Sequence, queue: deque[int], workers: int) -> Iterator[tuple[int, object]]:
    pool: list[_Worker] = []
    try:
        while queue or any(worker.task is not None for worker in pool):
            while len(pool) < min(workers, len(queue) + sum(worker.task is not None for worker in pool)):
                pool.append(_start(function))
            watched = {worker.pipe: worker for worker in pool}
            for pipe in wait(list(watched)):
                worker = watched[pipe]
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    pool.remove(worker)
                    yield from _buried(worker)
                    continue
                if not worker.ready:
                    worker.ready = True
                else:
                    index, worker.task = worker.task, None
                    yield index, message
                if queue:
                    worker.task = queue.popleft()
                    try:
                        pipe.send(tasks[worker.task])
                    except OSError:  # it died between two tasks
                        pool.remove(worker)
                        yield from _buried(worker)
    finally:
        _stop(pool)


def _start(function: Callable) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, function), daemon=True)
    process.start()
    # Only the worker may hold its end, else its death would not be seen here.
    there.close()
    return _Worker(process, here)


def _buried(worker: _Worker) -> Iterator[tuple[int, Crashed]]:
    worker.process.join()
    code = worker.process.exitcode
    if not worker.ready:
        raise InputError(
            f"a worker process ended before it started (exit code {code}). If your own script called this, put its "
            "main part under `if __name__ == '__main__':`; or use one worker (--workers 1)"
        )
    if worker.task is not None:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        yield worker.task, Crashed(f"the process that read it died: {name}{hint}")


def _stop(pool: list[_Worker]) -> None:
    for worker in pool:
        worker.pipe.close()
        if worker.task is not None:
            worker.process.terminate()
    for worker in pool:
        worker.process.join(timeout=10)
        if worker.process.is_alive():
            worker.process.kill()


def _work(pipe: Connection, function: Callable) -> None:
    # Ctrl-C goes to the parent, which ends the workers; one thread each, because files are what runs in parallel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "BLOSC_NTHREADS"):
        os.environ[name] = "1"
    with contextlib.suppress(EOFError, OSError):  # the parent has gone, or needs this worker no more
        pipe.send(_READY)
        while True:
            pipe.send(function(pipe.recv()))
