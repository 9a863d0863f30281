"""Every number of the report, computed from predictions once and kept: intervals of rows, differences of pairs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.read.rows import Pair, Row, TestSet, paired_runs
from voco.errors import InputError
from voco.files import write_json

if TYPE_CHECKING:
    from benchmarks.read.run import Run
    from benchmarks.statistics.compare import Difference, Influence, RunInterval

_SAVE_EVERY_SECONDS = 20.0
_KEPT_BYTES = 2**28  # of influences, in memory


class Statistics:
    """Intervals and differences, each computed once for the same predictions, metric, code and statistical method.

    Args:
        path: JSON file that keeps them from one report to the next, with the method; made if missing. Numbers of
            another method are left behind.
        say: takes lines of progress.
    """

    def __init__(self, path: Path, *, say: Callable[[str], None] = lambda text: None):
        from benchmarks.statistics.compare import METHOD

        self.path, self.say = path, say
        self.computed = 0
        self._known: dict[str, dict[str, Any]] = {}
        self._influences: dict[str, Influence] = {}  # the oldest first
        self._saved = time.monotonic()
        if path.is_file():
            try:
                found = json.loads(path.read_text())
            except ValueError:  # of a process that was killed before files were renamed into place
                found = {}
            if isinstance(found, dict) and found.get("method") == METHOD:
                self._known = found["values"]
            elif found:
                old = found.get("method") if isinstance(found, dict) else None
                name = f"{old['name']} {old['version']}" if isinstance(old, dict) else "an older method"
                say(f"numbers in {path} are those of {name}; all are computed again")

    def interval(self, row: Row) -> RunInterval:
        """Main metric of a row, mean over its runs."""
        from benchmarks.statistics.compare import RunInterval, interval

        def compute() -> RunInterval:
            return interval(row.first.task, self._influence(row.runs))

        return RunInterval(**self._keep(["interval", [run.digest for run in row.runs]], compute))

    def difference(self, pair: Pair) -> Difference:
        """Paired difference of two rows."""
        from benchmarks.statistics.compare import Difference, difference

        a, b, paired = paired_runs(pair)

        def compute() -> Difference:
            return difference(pair.a.first.task, self._influence(a), self._influence(b), paired=paired)

        key = ["difference", [run.digest for run in a], [run.digest for run in b], paired]
        return Difference(**self._keep(key, compute))

    def _influence(self, runs: Sequence[Run]) -> list[Influence]:
        """Influences of runs; those used last are kept, because a run stands in many comparisons."""
        from benchmarks.statistics.compare import influence

        found = []
        for run in runs:
            own = self._influences.pop(run.digest, None) or influence(run.task, run.units)
            self._influences[run.digest] = own
            found.append(own)
        while sum(own.sums.nbytes for own in self._influences.values()) > _KEPT_BYTES and len(self._influences) > len(
            found
        ):
            del self._influences[next(iter(self._influences))]
        return found

    def save(self) -> None:
        """Write what is known, whole or not at all."""
        from benchmarks.statistics.compare import METHOD

        write_json(self.path, {"method": METHOD, "values": self._known})
        self._saved = time.monotonic()

    def _keep(self, key: Sequence[Any], compute: Callable[[], Any]) -> dict[str, Any]:
        name = hashlib.sha256(json.dumps([key, _code()]).encode()).hexdigest()[:24]
        if name not in self._known:
            self._known[name] = asdict(compute())
            self.computed += 1
            if time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
                self.save()
                self.say(f"  {self.computed} intervals and differences computed")
        return dict(self._known[name])


@cache
def _code() -> str:
    """Digest of the code that the numbers hang on, so that an old file of numbers never speaks for new code."""
    import voco.tasks

    here, tasks = Path(__file__).parent, Path(voco.tasks.__file__).parent
    own = ("compare", "influence", "mrmc")
    files = [*(here / f"{name}.py" for name in own), here.parent / "read" / "pairing.py"]
    digest = hashlib.sha256()
    for path in (*files, *sorted(tasks.glob("*.py")), *sorted((tasks.parent / "stats").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """What a grid named before it looked at any test set.

    Attributes:
        primary: comparisons; each a dict with ``a`` and ``b`` (sources) and any of ``task``, ``encoder``, ``mode``,
            ``fraction``.
        margin: largest difference that does not matter, per task, or one for all under ``""``.
        time: ISO time at which it was stored; ``digest`` of the settings of the grid.
    """

    primary: Sequence[Mapping[str, Any]] = ()
    margin: Mapping[str, float] = field(default_factory=dict)
    time: str = ""
    digest: str = ""

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """A plan from JSON with the keys ``primary``, ``margin``, ``time``, ``digest``.

        Raises:
            InputError: not such a file.
        """
        path = Path(path)
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a plan ({error}); expected JSON as a grid stores it") from None
        if not isinstance(found, dict) or (strange := set(found) - {"primary", "margin", "time", "digest"}):
            what = ", ".join(sorted(strange)) if isinstance(found, dict) else type(found).__name__
            raise InputError(f"{path}: a plan has the keys primary, margin, time and digest; found {what}")
        known = {"a", "b", "task", "encoder", "mode", "fraction"}
        for item in found.get("primary", ()):
            if not {"a", "b"} <= set(item) <= known:
                raise InputError(f"{path}: a primary comparison has a, b and any of {sorted(known)}; found {item}")
        margin = found.get("margin") or {}
        margin = margin if isinstance(margin, dict) else {"": float(margin)}
        return cls(tuple(found.get("primary", ())), margin, str(found.get("time", "")), str(found.get("digest", "")))

    def names(self, pair: Pair) -> int:
        """1 where the pair is one of the primaries, -1 where it is one the other way round, else 0."""
        for item in self.primary:
            first = pair.a.first
            here = {"task": first.task.name, "encoder": first.encoder, "mode": first.mode, "fraction": first.fraction}
            if pair.kind != "source" or any(k in item and item[k] != v for k, v in here.items()):
                continue
            sources = (pair.a.source, pair.b.source)
            if sources == (item["a"], item["b"]):
                return 1
            if sources == (item["b"], item["a"]):
                return -1
        return 0


@dataclass(frozen=True)
class Comparison:
    """A pair with its numbers.

    Attributes:
        difference: None where the pair must not be compared.
        primary: whether it was named before the test set was opened.
        p_holm: p after Holm's correction over the primaries; None for all others.
        margin: below which a difference does not matter, as named beforehand.
    """

    pair: Pair
    difference: Difference | None
    primary: bool = False
    p_holm: float | None = None
    margin: float | None = None

    @property
    def untrained(self) -> list[Row]:
        """Rows with a network of which some run did not train: they are marked."""
        return [row for row in (self.pair.a, self.pair.b) if row.untrained and not row.first.cheap]

    @property
    def silent(self) -> bool:
        """Whether neither side trained: nothing is said of such two."""
        return self.pair.a.failed and self.pair.b.failed

    @property
    def better(self) -> Row:
        """The side that the figures favour; the first where they are equal."""
        gain = self.difference.point * (1 if self.pair.a.first.task.higher_is_better else -1)
        return self.pair.b if gain < 0 else self.pair.a

    @property
    def p(self) -> float | None:
        """p to be printed: none of an exploratory comparison of two sides that did not train."""
        return None if self.difference is None or (self.silent and not self.primary) else self.difference.p

    @property
    def apart(self) -> bool:
        """Whether the interval lies on one side of 0, for primaries also after Holm."""
        d = self.difference
        if d is None or d.low is None or d.low <= 0 <= d.high:
            return False
        return not self.primary or (self.p_holm is not None and self.p_holm < 0.05)

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the sides lie apart, and the better one is not known to have failed."""
        return self.apart and not self.better.failed


def measure(
    sets: Sequence[tuple[TestSet, Sequence[Pair]]], statistics: Statistics, plan: Plan | None = None
) -> tuple[dict[int, RunInterval], list[Comparison], list[str]]:
    """Intervals of all rows and all comparisons.

    Args:
        sets: test sets, each with the pairs to compare in it.
        statistics: computes and keeps.
        plan: primaries and margins.

    Returns:
        Intervals by ``id(row)``, comparisons in the order of the pairs, and warnings about the plan.
    """
    from dataclasses import replace

    from benchmarks.statistics.compare import holm

    plan = plan or Plan()
    intervals = {id(row): statistics.interval(row) for one, _ in sets for row in one.rows}
    found, warnings, late = [], [], set()
    for one, pairs in sets:
        in_time = _named_in_time(one, plan)
        # a margin that was chosen after a look is none
        margin = plan.margin.get(one.task.name, plan.margin.get("")) if in_time else None
        for pair in pairs:
            named = plan.names(pair)
            turned = Pair(pair.b, pair.a, pair.kind, pair.differs, pair.why_not) if named < 0 else pair
            if named and not in_time:
                late.add(f"{one.task.name}: primaries were not stored before the first look; they count as exploratory")
            number = None if turned.why_not else statistics.difference(turned)
            found.append(Comparison(turned, number, bool(named) and in_time, margin=margin))
    for item in plan.primary:
        if not any(plan.names(c.pair) and _same(item, c.pair) for c in found):
            warnings.append(
                f"primary comparison {item['a']} with {item['b']} has no matched pair of rows: {dict(item)}"
            )
    places = [i for i, c in enumerate(found) if c.primary and c.difference is not None and c.difference.p is not None]
    for i, p in zip(places, holm([found[i].difference.p for i in places]) if places else ()):
        found[i] = replace(found[i], p_holm=float(p))
    return intervals, found, [*sorted(late), *warnings]


def _same(item: Mapping[str, Any], pair: Pair) -> bool:
    return Plan((item,)).names(pair) != 0


def _named_in_time(one: TestSet, plan: Plan) -> bool:
    """Whether the plan is older than the first look at this test set; the ledgers of the runs know when that was."""
    first = [run.first_look for row in one.rows for run in row.runs if run.first_look]
    return bool(plan.time) and (not first or _instant(plan.time) <= min(map(_instant, first)))


def _instant(text: str) -> float:
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is no ISO time such as 2026-05-01T12:00:00+00:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
