"""Runs as rows of a table: same settings and source, one row; seeds are averaged, test sets are kept apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.read.provenance import ARROW, SCRATCH
from benchmarks.read.run import Run, setting_differences, why_not_comparable

_NAMED = 3  # settings in a label at most
_ALL_PAIRS = 4  # sources in a block up to which every pair is compared; above, each with the reference


@dataclass
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        runs: in the order of their seeds.
        block: key of what rows share that differ in their source (and in what was searched for each) alone.
        label: what tells this row from others of its panel and share of labels; set by ``group_runs``.
    """

    runs: list[Run]
    block: str
    label: str = ""

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def source(self) -> str:
        return self.first.source

    @property
    def fraction(self) -> float:
        return self.first.fraction

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @cached_property
    def family(self) -> str:
        """Key of rows that differ in source, search and share of labels alone."""
        return _key(self.first.shared_settings)

    @property
    def panel(self) -> tuple[str, str]:
        """Network and mode: rows that share a chart."""
        return self.first.encoder, self.first.mode

    @property
    def pretrainings(self) -> int:
        """Different pretrainings behind the runs; 0 from scratch."""
        return len({run.pretraining for run in self.runs} - {""})

    @property
    def synthetic_pretraining(self) -> list[str]:
        """Trainings behind the row whose data were synthetic, in words."""
        return list(dict.fromkeys(name for run in self.runs for name in run.synthetic_pretraining))

    @property
    def untrained(self) -> int:
        """Runs that are not surely better than a constant predictor on validation."""
        return sum(run.trained is False for run in self.runs)

    @property
    def not_judged(self) -> int:
        return sum(run.trained is None for run in self.runs)

    @property
    def failed(self) -> bool:
        """Whether it did not train: at least half of the runs that were judged did not. A line has nothing to train."""
        judged = len(self.runs) - self.not_judged
        return not self.first.cheap and judged > 0 and 2 * self.untrained >= judged

    @property
    def older_verdicts(self) -> int:
        """Runs whose verdict on training was made before rules of verdicts were named."""
        return sum(run.trained is not None and not run.verdict_rule for run in self.runs if not run.cheap)

    @cached_property
    def train_patients(self) -> int | None:
        """Labeled training patients, mean over folds and seeds; None where the runs do not say."""
        folds = [fold for run in self.runs for fold in (run.facts.get("patients") or {}).values()]
        counts = [fold["train"] for fold in folds if "train" in fold]
        return round(sum(counts) / len(counts)) if counts else None

    @cached_property
    def validation_patients(self) -> int | None:
        """Fewest patients, over all folds, that any of its runs was judged on; None where none was."""
        parts = [run.results["parts"].get("validation") or {} for run in self.runs if run.trained is not None]
        return min((part["counts"]["patients"] for part in parts if "counts" in part), default=None)

    def mean_cost(self, name: str) -> float | None:
        """Mean over seeds of a number of ``Run.cost``; None where any run does not know it."""
        values = [run.cost[name] for run in self.runs]
        return None if any(value is None for value in values) else sum(values) / len(values)


@dataclass
class TestSet:
    """Rows whose figures may be compared: same units, labels, metric and version.

    Attributes:
        rows: scratch first, then by source and share of labels.
        note: options of the task that tell it from other test sets of the same task; set by ``group_runs``.
    """

    __test__ = False  # its name looks like a test to pytest

    key: str
    rows: list[Row] = field(default_factory=list)
    note: str = ""

    @property
    def run(self) -> Run:
        """Any run: task, units and labels are those of all."""
        return self.rows[0].first

    @property
    def task(self):
        return self.run.task

    @property
    def split(self) -> str:
        return self.run.split

    @property
    def synthetic(self) -> bool:
        return any(run.synthetic for row in self.rows for run in row.runs)

    @cached_property
    def counts(self) -> dict[str, Any]:
        """Units, patients, and units per class of each output."""
        once = self.run.units.drop_duplicates("unit")
        classes = {}
        for output in self.task.outputs:
            labels = once[output.label_column].dropna()
            if output.kind != "regression":
                names = output.classes if output.kind == "multiclass" else ("negative", "positive")
                classes[output.name] = {name: int((labels == i).sum()) for i, name in enumerate(names)}
            else:
                classes[output.name] = {"known": len(labels)}
        return {"units": len(once), "patients": int(once["patient"].nunique()), "classes": classes}

    @property
    def folds(self) -> int:
        return int(self.run.units["fold"].nunique())

    @cached_property
    def common_marks(self) -> list[str]:
        """What all runs say of themselves; it stands once for the test set and not at every row."""
        marks = [run.marks for row in self.rows for run in row.runs]
        return [mark for mark in marks[0] if all(mark in others for others in marks)]

    @property
    def looks(self) -> int | None:
        """Most that any of its runs counted."""
        return max((run.looks for row in self.rows for run in row.runs if run.looks is not None), default=None)


@dataclass(frozen=True)
class Pair:
    """Two rows to be compared.

    Attributes:
        kind: ``source`` where nothing but source (and what is searched for each) differs, else ``system``.
        differs: settings in which they differ otherwise.
        why_not: reason why there is no difference; empty where there is one.
    """

    a: Row
    b: Row
    kind: str
    differs: tuple[str, ...] = ()
    why_not: str = ""


def group_runs(runs: Iterable[Run]) -> tuple[list[TestSet], list[tuple[Path, str]]]:
    """Test sets with their rows, and (folder, reason) of runs that repeat another one."""
    sets: dict[str, dict[str, list[Run]]] = {}
    again = []
    for run in runs:
        own = sets.setdefault(run.test_key, {}).setdefault(_row_key(run), [])
        # a second run of the same seed is another repeat only where its pretraining is another one
        twin = next((one for one in own if (one.seed, one.pretraining) == (run.seed, run.pretraining)), None)
        if twin is not None:
            again.append((run.folder, f"repeats {twin.folder}: same settings, source, seed and test set"))
            continue
        own.append(run)
    found = []
    for key, rows in sets.items():
        made = [Row(part, _block_key(part[0])) for own in rows.values() for part in _one_run_a_seed(own)]
        made.sort(key=_order)
        _label(made)
        found.append(TestSet(key, made))
    _tell_apart(found)
    return sorted(found, key=lambda one: (one.task.name, one.split != "test", -len(one.rows), one.key)), again


def _tell_apart(sets: Sequence[TestSet]) -> None:
    """Note the options of the task in which test sets of one task and part differ."""
    for one in sets:
        own = one.run.results["options"]
        others = [o.run.results["options"] for o in sets if (o.task.name, o.split) == (one.task.name, one.split)]
        names = [name for name in own if any(other.get(name) != own[name] for other in others)]
        one.note = ", ".join(f"{name} {own[name]}" for name in names[:_NAMED])


def pairs_of(test_set: TestSet, reference: str = SCRATCH) -> list[Pair]:
    """What is compared within a test set.

    Rows of one block (same network, head, view, input, labels and budget) are compared source with source. Every other
    row is compared with the reference row of the same share of labels: a comparison of systems.

    Args:
        test_set: as ``group_runs`` gives it.
        reference: source that others are compared with; the first row where none has it.
    """
    found, blocks = [], {}
    for row in test_set.rows:
        blocks.setdefault(row.block, []).append(row)
    for rows in blocks.values():
        base = next((row for row in rows if row.source == reference), rows[0])
        others = [row for row in rows if row is not base]
        found += [make_pair(row, base) for row in others]
        if len(rows) <= _ALL_PAIRS:
            found += [make_pair(b, a) for i, a in enumerate(others) for b in others[i + 1 :]]
    by_share: dict[float, list[Row]] = {}
    for row in test_set.rows:
        by_share.setdefault(row.fraction, []).append(row)
    for rows in by_share.values():
        # of several rows of the reference, the one that most others are matched with
        base = max(rows, key=lambda row: (row.source == reference and not row.first.cheap, len(blocks[row.block])))
        found += [make_pair(row, base) for row in rows if row.block != base.block]
    return found


def make_pair(a: Row, b: Row) -> Pair:
    """How two rows may be compared."""
    if reason := why_not_comparable(a.first, b.first):
        return Pair(a, b, "system", why_not=reason)
    differs = setting_differences(a.first, b.first)
    if a.fraction != b.fraction:
        differs.append(f"share of labels: {a.fraction:g} / {b.fraction:g}")
    if a.source == b.source:
        searched = [k for k in a.first.settings if a.first.settings[k] != b.first.settings.get(k) and k in _searched()]
        differs += [f"{k}: {a.first.settings[k]} / {b.first.settings.get(k)}" for k in searched]
        return Pair(a, b, "system", tuple(differs or ["nothing but the pretraining run"]))
    if not differs and "system" in (a.first.cell.get("comparison"), b.first.cell.get("comparison")):
        differs.append("not declared as matched by the grid")
    return Pair(a, b, "system" if differs else "source", tuple(differs))


def paired_runs(pair: Pair) -> tuple[list[Run], list[Run], bool]:
    """Runs of both sides, and whether they are paired: both have the same seeds, each once.

    Where they have others, or one side has more, all runs count and each belongs to its side alone. A line that has no
    seed of its own is paired with nothing, unless it is one run against one.
    """
    a, b = pair.a.runs, pair.b.runs
    same = sorted(pair.a.seeds) == sorted(pair.b.seeds) and len(set(pair.a.seeds)) == len(a)
    if same and not (pair.a.first.cheap or pair.b.first.cheap):
        return *(sorted(runs, key=lambda run: run.seed) for runs in (a, b)), True
    return a, b, False


def _searched() -> tuple[str, ...]:
    from benchmarks.read.run import SEARCHED

    return SEARCHED


def _one_run_a_seed(runs: list[Run]) -> list[list[Run]]:
    """One row where every seed occurs once (each may have a pretraining of its own), else one row per pretraining."""
    ordered = sorted(runs, key=lambda run: (run.seed, run.pretraining))
    if len({run.seed for run in ordered}) == len(ordered):
        return [ordered]
    parts: dict[str, list[Run]] = {}
    for run in ordered:
        parts.setdefault(run.pretraining, []).append(run)
    return list(parts.values())


def _block_key(run: Run) -> str:
    return _key(run.shared_settings | {"fraction": run.fraction, "cheap": run.source if run.cheap else ""})


def _row_key(run: Run) -> str:
    searched = {name: run.settings.get(name) for name in _searched()}
    return _key(run.shared_settings | searched | {"fraction": run.fraction, "source": run.source, "cell": _named(run)})


def _named(run: Run) -> Any:
    return run.cell.get("row", "")


def _key(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _order(row: Row) -> tuple:
    first = row.first
    return (first.cheap, first.encoder, first.mode, first.view, row.source != SCRATCH, row.source, row.fraction)


def _label(rows: Sequence[Row]) -> None:
    """The source; where that does not tell rows of one network and mode apart, also the settings that do."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((*row.panel, row.source), []).append(row)
    for same in groups.values():
        names: dict[str, None] = {}
        for share in {row.fraction for row in same}:
            tables = [_telling(row.first) for row in same if row.fraction == share]
            keys = dict.fromkeys(key for table in tables for key in table)
            names |= {k: None for k in keys if len({str(table.get(k)) for table in tables}) > 1}
        # what settings resolve to says the same once more
        short = [k for k in names if not k.endswith("(resolved)")] or list(names)
        usual = _usual(same, rows) if short else set()
        for row in same:
            table = _telling(row.first)
            words = [f"{_last(k)} {table.get(k)}" for k in short[:_NAMED]] if row.family not in usual else []
            name = row.source.replace(ARROW, " → ")
            row.label = f"{name} ({', '.join(words)})" if words else name
    for same in groups.values():  # rows that only a grid tells apart
        for place, row in enumerate(same):
            twins = [other for other in same if (other.label, other.fraction) == (row.label, row.fraction)]
            if len(twins) > 1:
                row.label = f"{row.label} ({row.first.cell.get('row') or f'number {place + 1}'})"


def _usual(same: Sequence[Row], rows: Sequence[Row]) -> set[str]:
    """Settings whose rows need no words beside their source: those of most rows, where one set of them stands out."""
    sizes = {row.family: sum(other.family == row.family for other in rows) for row in same}
    most = max(sizes.values())
    found = {family for family, size in sizes.items() if size == most}
    shares = [row.fraction for row in same if row.family in found]
    return found if len(found) == 1 and len(set(shares)) == len(shares) else set()


def _telling(run: Run) -> dict[str, Any]:
    return (
        run.shared_settings | {name: run.settings.get(name) for name in _searched()} | {"pretraining": run.pretraining}
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2].removesuffix(" (resolved)")
