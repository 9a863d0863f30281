"""Progress of long work: a bar with time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

LINE_SECONDS = 20.0


class Progress:
    """Counts steps on stderr.

    Args:
        label: what is being done, e.g. ``"prepare"``.
        total: steps in all.
        enabled: False prints nothing.
        unit: what a step is, plural.
    """

    def __init__(self, label: str, total: int, enabled: bool = True, unit: str = "scans"):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._start = self._last = time.monotonic()
        self._lines = enabled and total > 0 and not sys.stderr.isatty()
        self._bar = None
        if enabled and total > 0 and not self._lines:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit=f" {unit}", file=sys.stderr, smoothing=0.05)

    def step(self, count: int = 1) -> None:
        """Count finished steps."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        now = time.monotonic()
        if self._lines and (now - self._last >= LINE_SECONDS):
            self._last = now
            left = (now - self._start) / self.done * (self.total - self.done)
            self.say(f"{self.label}: {self.done} of {self.total} {self.unit}, about {_duration(left)} left")

    def say(self, text: str) -> None:
        """Print a sentence without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._lines:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
