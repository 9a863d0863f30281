"""The user's own labels from a CSV: binary, multi-label, multi-class or regression, said or taken from the values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from voco.data.cells import number
from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.data.layouts.table import read_label_table
from voco.errors import InputError
from voco.tasks.base import Output, Task
from voco.tasks.column_names import column_names
from voco.tasks.standard import metrics_of

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("binary", "multilabel", "multiclass", "regression")
# From here on whole numbers are a measurement rather than classes.
_MOST_CLASSES = 10
_STRATA = 4


@dataclass(frozen=True)
class TableOptions:
    """The user's own table of labels."""

    name: Literal["table"] = "table"
    csv: str = ""
    """the CSV with column path and the labels; empty: --data.root is the CSV"""
    labels: list[str] = field(default_factory=list)
    """columns to learn; empty: the column label"""
    kind: Literal["auto", "binary", "multilabel", "multiclass", "regression"] = "auto"
    """auto: 0 and 1 are binary (several such columns: multilabel), text and few whole numbers are classes, other
    numbers are regression; what was taken is said"""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """multiclass: classes of a column in their order, e.g. {stage: [I, II, III]}; empty: those in the table, sorted"""
    unknown: list[str] | None = None
    """words for a label that is not known, e.g. NA none; these and no others, [] for none at all. Unset: the words of
    R, Excel, pandas and people; asked for where one may be a class. An empty cell is always unknown"""
    metric: str = ""
    """main metric in place of the kind's own (AUROC, or MAE of regression)"""
    flips: list[int] = field(default_factory=list)
    """axes (0 = D, 1 = H, 2 = W) whose flip changes no label; W mirrors left and right; empty: no flips"""


class Table(Task):
    """Labels of a user.

    After ``read``, ``options`` holds what was found (labels, kind, classes), so that a task made from them scores new
    scans in the same way.

    Attributes:
        columns: label column of each output; outputs have names that are safe in files.
    """

    name = "table"
    Options: ClassVar[type] = TableOptions
    noun = "scan"

    def __init__(self, options: TableOptions):
        super().__init__(replace(options, labels=list(options.labels)))
        if wrong := [axis for axis in options.flips if axis not in (0, 1, 2)]:
            raise InputError(f"task.flips takes axes 0 (D), 1 (H) and 2 (W), found {wrong[0]}")
        self.flips = tuple(sorted(set(options.flips)))
        self.columns: dict[str, str] = {}
        self._bounds: dict[str, np.ndarray] = {}
        self._std: dict[str, float] = {}
        known = options.kind != "multiclass" or all(name in options.classes for name in options.labels)
        if options.labels and options.kind != "auto" and known:
            self._define()

    def read(self, root: str | Path) -> LabeledManifest:
        """The scans of the table; what kind of labels they have is said in the notes.

        Raises:
            InputError: as ``read_label_table``; labels of several kinds, or not of the kind or the classes asked for.
        """
        table, folder = self._table(root)
        asked = self.options
        manifest, names = read_label_table(
            table, root=folder, labels=asked.labels, unknown=asked.unknown, kind=asked.kind, classes=asked.classes
        )
        values = {name: [c.labels[name] for c in manifest.cases if name in c.labels] for name in names}
        self.options = replace(self.options, labels=names)
        kind = self.options.kind
        if kind == "auto":
            kind = _common_kind({name: _guess(name, found) for name, found in values.items()})
        classes = self.options.classes
        if kind == "multiclass":
            classes = {
                name: [_plain(str(c)) for c in classes.get(name) or _classes(found)] for name, found in values.items()
            }
        self.options = replace(self.options, kind=kind, classes=classes)
        self._define()
        for output, name in self.columns.items():
            self._check(name, output, manifest)
        self._bounds = {}
        if kind == "regression":
            self._bounds = {name: _quantiles([float(v) for v in found]) for name, found in values.items()}
        manifest.notes.append(f"labels: {self._said(values)}")
        return manifest

    def read_unlabeled(self, root: str | Path) -> LabeledManifest:
        """The scans of a table whose labels, if it has any, are not looked at."""
        table, folder = self._table(root)
        return read_label_table(table, root=folder, labeled=False)[0]

    def _table(self, root: str | Path) -> tuple[Path, Path | None]:
        root = Path(root)
        if not self.options.csv:
            if root.is_dir():
                raise InputError(f"{root} is a folder; give the CSV with --task.csv, or as --data.root")
            return root, None
        inside = root / self.options.csv
        return inside if inside.is_file() else Path(self.options.csv), root if root.is_dir() else None

    def _define(self) -> None:
        """Outputs and metrics of labels, kind and classes."""
        options = self.options
        kind = {"multilabel": "binary"}.get(options.kind, options.kind)
        if options.kind == "binary" and len(options.labels) > 1:
            self.options = options = replace(options, kind="multilabel")
        outputs = []
        for name, safe in zip(options.labels, column_names(options.labels)):
            classes = tuple(column_names(options.classes[name])) if kind == "multiclass" else ()
            outputs.append(Output(safe, kind, classes))
        self.adopt(outputs)

    def adopt(self, outputs: Sequence[Output]) -> None:
        """Take outputs as the names of labels and classes, e.g. those of a model of another version."""
        options = self.options
        columns = [column for o in outputs for column in (o.label_column, *o.score_columns)]
        if twice := sorted(name for name, n in Counter(columns).items() if n > 1):
            raise InputError(
                f"labels and classes would share columns of predictions ({', '.join(twice[:3])}); rename one of them"
            )
        if options.kind == "multiclass" and (single := [o.name for o in outputs if len(o.classes) < 2]):
            raise InputError(f"column {single[0]} has one class only; there is nothing to learn")
        self.outputs = tuple(outputs)
        self.columns = dict(zip((output.name for output in outputs), options.labels))
        self.metrics, kind = [], outputs[0].kind
        for metric in metrics_of(kind):
            if len(outputs) > 1:
                self.metrics += [metric((output,), f"{metric.name}_{output.name}") for output in outputs]
            self.metrics.append(metric(self.outputs))
        names = [metric.name for cls in metrics_of(kind) for metric in self.metrics if metric.name == cls.name]
        names += [metric.name for metric in self.metrics if metric.name not in names]
        if options.metric and options.metric not in names:
            raise InputError(f"task.metric {options.metric!r} is not one of {', '.join(names)}")
        self.main_metric = options.metric or names[0]

    def words(self, output: Output) -> tuple[str, ...]:
        return tuple(self.options.classes.get(self.columns[output.name], ()))

    def _check(self, name: str, output: str, manifest: LabeledManifest) -> None:
        """Refuse cells that the kind or the classes do not know."""
        wrong = []
        for case in manifest.cases:
            if name in case.labels:
                try:
                    self._value(output, str(case.labels[name]))
                except ValueError:
                    wrong.append(f"{case.id}: {case.labels[name]!r}")
        if wrong:
            expected = {
                "multiclass": f"one of {', '.join(self.options.classes.get(name, ()))}",
                "regression": "a number",
            }
            raise InputError(
                f"{len(wrong)} labels of column {name} are not usable ({', '.join(wrong[:5])}); expected "
                f"{expected.get(self.options.kind, '0 or 1')}, or nothing where the label is not known"
            )

    def _value(self, output: str, cell: str) -> float:
        if self.options.kind == "multiclass":
            return float(self.options.classes[self.columns[output]].index(_plain(cell)))
        value = number(cell)
        if value is None or not np.isfinite(value) or (self.options.kind != "regression" and value not in (0.0, 1.0)):
            raise ValueError(cell)
        return value

    def targets(self, case: LabeledCase) -> dict[str, float]:
        return {
            output: self._value(output, str(case.labels[name])) if name in case.labels else float("nan")
            for output, name in self.columns.items()
        }

    def stratum(self, case: LabeledCase) -> str:
        if self.options.kind != "regression":
            return super().stratum(case)
        # Quarters of the first column: splits keep the whole range in every part.
        output, name = next(iter(self.columns.items()))
        value = self.targets(case)[output]
        return "" if np.isnan(value) else f"q{int(np.searchsorted(self._bounds.get(name, np.zeros(0)), value)) + 1}"

    def target_scale(self, cases: Sequence[LabeledCase]) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the regression targets of the training cases; empty for other kinds.

        A head that gives mean + std * z learns at the same rate whatever the unit of the label. From then on ``loss``
        counts errors in standard deviations, so that several columns weigh the same.
        """
        if self.options.kind != "regression":
            return {}
        rows = [self.targets(case) for case in cases]
        found = {}
        for output in self.columns:
            values = np.array([row[output] for row in rows], np.float64)
            values = values[~np.isnan(values)]
            std = float(values.std()) if len(values) else 0.0
            found[output] = (float(values.mean()) if len(values) else 0.0, std or 1.0)
        self._std = {output: std for output, (_, std) in found.items()}
        return found

    def loss(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], **settings) -> dict[str, Tensor]:
        terms = super().loss(logits, targets, **settings)
        return {name: term / self._std.get(name, 1.0) ** 2 for name, term in terms.items()}

    def _said(self, values: Mapping[str, Sequence[str]]) -> str:
        """What was taken, column by column."""
        parts = []
        for output in self.outputs:
            found = values[self.columns[output.name]]
            if output.kind == "multiclass":
                count = Counter(map(_plain, found))
                classes = self.options.classes[self.columns[output.name]]
                what = f"{len(classes)} classes (" + ", ".join(f"{c}: {count[c]}" for c in classes) + ")"
            elif output.kind == "binary":
                what = f"binary ({sum(float(v) for v in found):g} positive of {len(found)})"
            else:
                numbers = [float(v) for v in found]
                what = f"regression ({len(numbers)} values"
                what += f" from {min(numbers):g} to {max(numbers):g})" if numbers else ")"
            parts.append(f"{self.columns[output.name]} {what}")
        return "; ".join(parts)


def _guess(name: str, cells: Sequence[str]) -> str:
    """Kind of one column from its cells."""
    different = {_plain(cell) for cell in cells}
    if not different:
        raise InputError(f"column {name} has no label at all")
    if len(different) == 1:
        raise InputError(
            f"column {name} holds {cells[0]!r} and nothing else in the {len(cells)} rows that have a label; there is "
            "nothing to learn. An empty cell is an unknown label: where it means absent, write 0"
        )
    numbers = _numbers(different)
    if numbers is None:
        if len(different) > max(_MOST_CLASSES, len(cells) // 2):
            _refuse_almost_numbers(name, different)
            raise InputError(
                f"column {name} holds {len(different)} different texts in {len(cells)} rows, such as {cells[0]!r}: "
                "that is no class; choose the label with task.labels, or set task.kind to multiclass"
            )
        return "multiclass"
    if numbers <= {0.0, 1.0}:
        return "binary"
    whole = all(value == int(value) for value in numbers)
    few = len(different) <= _MOST_CLASSES and len(cells) >= 2 * len(different)
    return "multiclass" if whole and few else "regression"


def _refuse_almost_numbers(name: str, cells: set[str]) -> None:
    """A measurement with units, blanks between thousands, or a limit of detection in some cells."""
    texts = sorted(cell for cell in cells if number(cell) is None)
    if all(re.match(r"[<>≤≥~=]*\s*[-+]?\d", cell) for cell in texts):
        raise InputError(
            f"column {name} holds numbers, but {len(texts)} different cells have more than that, such as {texts[0]!r}; "
            "write the number alone (no unit, no sign, no blank or apostrophe between digits)"
        )


def _common_kind(kinds: Mapping[str, str]) -> str:
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise InputError(f"the label columns are of several kinds ({found}); learn them apart, or set task.kind")
    kind = next(iter(kinds.values()))
    return "multilabel" if kind == "binary" and len(kinds) > 1 else kind


def _classes(cells: Sequence[str]) -> list[str]:
    """Classes in order: numbers by value, text by name."""
    different = {_plain(cell) for cell in cells}
    return sorted(different, key=float if _numbers(different) is not None else str)


def _plain(cell: str) -> str:
    """A cell as a class: 1.0 and 1 are the same."""
    numbers = _numbers({cell})
    if numbers is None:
        return cell
    value = numbers.pop()
    return str(int(value)) if value == int(value) else repr(value)


def _numbers(cells: set[str]) -> set[float] | None:
    values = {number(cell) for cell in cells}
    return None if None in values or not np.isfinite(list(values)).all() else values


def _quantiles(values: Sequence[float]) -> np.ndarray:
    return np.quantile(values, np.arange(1, _STRATA) / _STRATA) if values else np.zeros(0)
