"""Where numbers go: ``metrics.jsonl`` (what was computed), ``timings.jsonl`` (how fast), trackers, and the console."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

from voco.files import write_text


class MetricLog:
    """Appends rows; only the main process writes.

    ``metrics.jsonl`` holds nothing that depends on the clock, so that an interrupted and resumed run leaves the very
    same file as an uninterrupted one. Times go to ``timings.jsonl``.

    Args:
        out: run folder.
        accelerator: its trackers (TensorBoard and others) receive the same numbers.
    """

    def __init__(self, out: Path, accelerator):
        self.out, self.accelerator = Path(out), accelerator
        self._shown = 0.0
        self._started = time.monotonic()
        self._first_step: int | None = None

    def rewind(self, step: int | None) -> None:
        """Forget rows after ``step``: what a checkpoint does not know must be computed again. None forgets all."""
        if not self.accelerator.is_main_process:
            return
        for name in ("metrics.jsonl", "timings.jsonl"):
            path = self.out / name
            if path.is_file():
                lines = [] if step is None else path.read_text().splitlines(keepends=True)
                kept = [line for line in lines if _row_step(line) <= step]
                write_text(path, "".join(kept))

    def inherit(self, run: Path, step: int) -> None:
        """Take over the rows of another run up to ``step``."""
        if not self.accelerator.is_main_process:
            return
        for name in ("metrics.jsonl", "timings.jsonl"):
            rows = (run / name).read_text().splitlines(keepends=True) if (run / name).is_file() else []
            write_text(self.out / name, "".join(line for line in rows if _row_step(line) <= step))

    def metrics(self, step: int, row: dict[str, float]) -> None:
        """Write one row of finite numbers (others become null, which JSON allows)."""
        row = {k: v if v is None or math.isfinite(v) else None for k, v in row.items()}
        self._append("metrics.jsonl", {"step": step, **row})
        self.accelerator.log({k: v for k, v in row.items() if v is not None}, step=step)

    def timings(self, step: int, row: dict[str, float]) -> None:
        row = {k: round(v, 6) for k, v in row.items()}
        self._append("timings.jsonl", {"step": step, **row})
        self.accelerator.log({f"timing/{k}": v for k, v in row.items()}, step=step)

    def rows(self) -> list[dict]:
        """All rows of ``metrics.jsonl`` so far."""
        return read_rows(self.out / "metrics.jsonl")

    def timing_rows(self) -> list[dict]:
        """All rows of ``timings.jsonl`` so far."""
        return read_rows(self.out / "timings.jsonl")

    def progress(self, step: int, steps: int, text: str, every: float = 5.0) -> None:
        """A line on standard error at most every few seconds: step, numbers, time left."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        if not self.accelerator.is_main_process or (now - self._shown < every and step < steps):
            return
        self._shown = now
        done = step - self._first_step
        left = (now - self._started) / done * (steps - step) if done else float("nan")
        self.say(f"step {step}/{steps}  {text}  {duration(left)} left")

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def _append(self, name: str, row: dict) -> None:
        if self.accelerator.is_main_process:
            with open(self.out / name, "a") as file:
                file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict]:
    """Rows of a file of a run; none where there is no file, and without a last line that was torn by a kill."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if math.isfinite(_row_step(line))]


def _row_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line torn by a kill in the middle of a write
        return math.inf


def duration(seconds: float) -> str:
    """``"1 h 04 min"``, ``"3 min 20 s"``, ``"12 s"``; ``"?"`` when unknown."""
    if not math.isfinite(seconds):
        return "?"
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
