"""Labels that a user gives for new scans, as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voco.data.cells import is_unknown, may_be_unknown, number, plain
from voco.data.layouts.labeled import LabeledCase, read_table
from voco.errors import InputError
from voco.tasks.base import Output, Task
from voco.tasks.column_names import column_names

_SHOWN = 5
_WORDS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class GivenLabels:
    """Targets of one case, NaN where its cell is empty, and its other columns."""

    targets: dict[str, float]
    attributes: dict[str, str] = field(default_factory=dict)


def read_labels(
    path: str | Path, task: Task, cases: Mapping[str, LabeledCase], unusable: Collection[str] = ()
) -> dict[str, GivenLabels]:
    """Match a CSV with the scans of a cohort.

    Args:
        path: CSV with a column ``case`` (id, as in ``predictions.csv``) or ``path`` (relative to the data root), and a
            column per output of the task: 0 or 1, the name or number of a class, or a value.
        cases: by id.
        unusable: paths of scans that were found and cannot be read; their rows are left out.

    Returns:
        By case id, for the cases that have a row.

    Raises:
        InputError: columns that are missing, values that no class has, rows that repeat or match no scan.
    """
    table = read_table(path, [], what="table of labels")
    # columns of the table that was learned from have the words of its user
    own = {name: output for output, name in task.columns.items() if output not in table}
    table = table.rename(columns=own)
    key = next((name for name in ("case", "path") if name in table), None)
    outputs = [output for output in task.outputs if output.name in table]
    if key is None or not outputs:
        names = ", ".join(output.name for output in task.outputs)
        raise InputError(
            f"{path} needs a column case or path, and at least one of the outputs {names}; found "
            f"{', '.join(table.columns)}"
        )
    known = {name: name for name in cases}
    if key == "path":
        known = {labeled.case.path: name for name, labeled in cases.items()}
        table["path"] = [cell if cell in known else cell.replace("\\", "/") for cell in table["path"]]
        table = table[~table["path"].isin(set(unusable) - set(known))]
        count = Counter(labeled.case.path for labeled in cases.values())
        if shared := [value for value in table["path"] if count[value] > 1]:
            raise InputError(f"{path}: {shared[0]} holds more than one scan; name them by their id, in a column case")
    found: dict[str, GivenLabels] = {}
    strangers = [value for value in table[key] if value not in known]
    if strangers:
        raise InputError(
            f"{path}: {len(strangers)} rows name no scan that was found ({', '.join(strangers[:_SHOWN])}); column "
            f"{key} must hold names such as {next(iter(known))}"
        )
    others = [name for name in table if name != key and name not in {o.name for o in outputs}]
    for line, row in zip(table.index + 2, table.to_dict("records")):
        name = known[row[key]]
        if name in found:
            raise InputError(f"{path}, line {line}: {row[key]} has a row already")
        targets = {
            output.name: _value(output, task.words(output), row[output.name], f"{path}, line {line}")
            for output in outputs
        }
        found[name] = GivenLabels(targets, {column: row[column] for column in others})
    return found


def _value(output: Output, words: Sequence[str], cell: str, where: str) -> float:
    text = plain(cell)
    # classes have names that are safe in columns, tables the words of their users
    for classes in (words, output.classes):
        if output.kind == "multiclass" and text in classes:
            return float(classes.index(text))
    if output.kind == "multiclass" and column_names([text])[0] in output.classes:
        return float(output.classes.index(column_names([text])[0]))
    if is_unknown(text) or may_be_unknown(text):
        return float("nan")
    value = _WORDS.get(text.lower())
    if value is None:
        value = number(text if output.kind == "multiclass" else text.replace(",", "."))
    allowed = {"binary": (0.0, 1.0), "multiclass": tuple(map(float, range(output.width)))}.get(output.kind)
    if value is None or not math.isfinite(value) or (allowed is not None and value not in allowed):
        expected = f"one of {', '.join(words)}, or its number from 0" if output.classes else "0 or 1"
        raise InputError(
            f"{where}: {cell!r} is no value of {output.name}; expected "
            f"{'a number' if output.kind == 'regression' else expected}, or nothing where it is not known"
        )
    return value
