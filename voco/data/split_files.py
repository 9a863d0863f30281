"""Splits as files: written to every run, given back to repeat it, and lists of patients that pretraining leaves out."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from voco.data.fold import Fold, Splits
from voco.data.layouts.labeled import SPLITS, LabeledCase, read_table
from voco.data.walk import stem
from voco.errors import InputError
from voco.files import encoded, write_text

COLUMNS = ("case", "patient", "path", "fold", "split", "in_fraction")
_MEANING = [name for name in COLUMNS if name != "path"]  # splits.csv of version 0.1 had no paths
_SHOWN = 5


def split_text(splits: Splits) -> str:
    """``splits.csv``: a row per case and fold; ``in_fraction`` is 0 for labels outside the budget."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for fold in splits.folds:
        for case in sorted(fold.parts):
            inside = int(case not in fold.left_out)
            writer.writerow((case, splits.patients[case], splits.paths[case], fold.number, fold.parts[case], inside))
    return out.getvalue()


def write_splits(path: str | Path, splits: Splits) -> Path:
    """Write ``splits.csv``, whole or not at all."""
    return write_text(path, split_text(splits))


def is_split(path: Path, text: str) -> bool:
    """Whether a file of ``split_text``, of this version or an earlier one, parts the same cases in the same way."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        found = list(csv.DictReader(file))
    wanted = csv.DictReader(io.StringIO(encoded(text).decode()))
    return [[row.get(name) for name in _MEANING] for row in found] == [[row[n] for n in _MEANING] for row in wanted]


def read_splits(path: str | Path, cases: Sequence[LabeledCase]) -> list[Fold]:
    """The folds of a split file that was written here or by hand.

    Args:
        path: CSV with ``split`` and either ``case`` or ``patient`` (all scans of the patient), optionally ``fold`` (a
            number; one fold without it) and ``in_fraction`` (0 or 1).
        cases: of the cohort; every one must be in every fold, and nobody else.

    Raises:
        InputError: the file is not of this cohort, puts a patient on two sides, or holds words that are none.
    """
    table = read_table(path, ["split"], what="split file")
    key = next((name for name in ("case", "patient") if name in table), None)
    if key is None:
        raise InputError(f"split file {path} has no column case or patient; found {', '.join(table.columns)}")
    if wrong := sorted(set(table["split"]) - set(SPLITS)):
        raise InputError(f"split file {path} holds the words {_shown(wrong)}; expected {', '.join(SPLITS)}")
    numbers = _whole_numbers(table, "fold", path)
    inside = _whole_numbers(table, "in_fraction", path, default=1)
    if set(inside) - {0, 1}:
        raise InputError(f"split file {path}: in_fraction is 0 or 1, found {_shown(sorted(set(map(str, inside))))}")
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(case.id if key == "case" else case.patient, []).append(case.id)
    patients = {case.id: case.patient for case in cases}
    found = []
    for number in sorted(set(numbers)):
        rows = [i for i, n in enumerate(numbers) if n == number]
        names = [table[key].iloc[i] for i in rows]
        _check_names(path, number, key, names, members)
        parts = {c: table["split"].iloc[i] for i, name in zip(rows, names) for c in members[name]}
        left_out = {c for i, name in zip(rows, names) for c in members[name] if not inside[i]}
        _check_patients(path, number, parts, left_out, patients)
        left_out -= {case for case, word in parts.items() if word == "test"}
        found.append(Fold(len(found), parts, frozenset(left_out)))
    return found


def _whole_numbers(table, name: str, path, default: int = 0) -> list[int]:
    if name not in table:
        return [default] * len(table)
    if wrong := sorted({value for value in table[name] if not value.isdecimal()}):
        raise InputError(f"split file {path}: {name} must be a whole number, found {_shown(wrong)}")
    return [int(value) for value in table[name]]


def _check_names(path, number: int, key: str, names: Sequence[str], members) -> None:
    unknown = sorted(set(names) - set(members))
    missing = sorted(set(members) - set(names))
    repeated = sorted(name for name, n in Counter(names).items() if n > 1)
    problems = [
        f"{len(found)} {key}s {words} ({_shown(found)})"
        for found, words in (
            (unknown, "are not in this cohort"),
            (missing, "of this cohort are not in the file"),
            (repeated, "stand there more than once"),
        )
        if found
    ]
    if problems:
        raise InputError(
            f"split file {path} does not match the cohort in fold {number}: {'; '.join(problems)}. Give the file that "
            "was written for this cohort and these task options, or make a new one"
        )


def _check_patients(path, number: int, parts, left_out, patients) -> None:
    sides: dict[str, set] = {}
    for case, word in parts.items():
        sides.setdefault(patients[case], set()).add((word, case in left_out))
    if both := sorted(patient for patient, found in sides.items() if len(found) > 1):
        raise InputError(
            f"split file {path} puts {len(both)} patients on more than one side in fold {number} ({_shown(both)}); all "
            "scans of a patient belong to one part"
        )


def exclusion_text(cases: Sequence[LabeledCase], reserved: Sequence[str]) -> str:
    """A list for ``pretrain/run.py --data.exclude`` that names every scan of the reserved patients.

    A scan may be found below another root, or in DICOM headers instead of a table, so each patient is named in several
    ways: as the labels name it, by the path, and by the outermost folder or file name that nobody else has. Names that
    are shared with others are not used.

    Args:
        cases: the whole cohort.
        reserved: patients to leave out.

    Raises:
        InputError: a scan that cannot be named apart from others.
    """
    chosen = set(reserved)
    others = {name for case in cases if case.patient not in chosen for name in _names(case)}
    lines: dict[str, None] = {}
    for case in cases:
        if case.patient not in chosen:
            continue
        path = [case.case.path] if case.case.path not in others else []
        part = next((name for name in case.case.path.split("/") if name not in others and name != "."), None)
        own = [name for name in (case.patient, *path, part) if name and name not in others and _is_text(name)]
        if not own:
            raise InputError(
                f"scan {case.id} of a reserved patient cannot be told from others by patient, folder or file name; "
                "rename the file or give a table with a patient column"
            )
        lines.update(dict.fromkeys(own))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([("patient",), *((name,) for name in lines)])
    return f"# {len(chosen)} patients reserved for testing; a patient may have several names\n" + out.getvalue()


def _names(case: LabeledCase) -> set[str]:
    """Every name by which ``exclude_patients`` would know the scan."""
    parts = case.case.path.split("/")
    above = {"/".join(parts[: i + 1]) for i in range(len(parts))}
    return {case.patient, case.id, *parts, *above, stem(parts[-1])}


def _is_text(name: str) -> bool:
    # A name that is no UTF-8 holds surrogates, which are not printable; a line with # is a comment.
    return name.isprintable() and name == name.strip() and not name.startswith("#")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
