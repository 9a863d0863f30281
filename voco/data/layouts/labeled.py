"""Labeled studies, whatever data set they come from: scans, labels, and who belongs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from voco.data.manifest import Case, Rejection
from voco.data.synthetic import phantom_row
from voco.data.text_tables import did_you_mean, read_rows
from voco.errors import InputError

SPLITS = ("train", "validation", "test")
_SHOWN = 5
_MOST_SHOWN = 30
_AS_PUBLISHED = "give the file with the columns as they were published"


@dataclass(frozen=True)
class LabeledCase:
    """One scan with what is known about it.

    Attributes:
        case: the scan; ``case.patient`` is what splits keep together, ``case.split`` one of ``SPLITS`` where the data
            set says so.
        labels: label columns as published, numbers or text; empty for scans without labels (prediction).
        unit: what the metric counts: the scores of all cases of one unit are averaged. Mostly the case's own id.
        slices: label of each source slice by SOPInstanceUID, where slices are labeled.
        fold: fold of a published cross-validation.
        attributes: further columns for subgroups, e.g. site.
        masks: name to path of a mask file, relative to the root.
    """

    case: Case
    labels: Mapping[str, float | str] = field(default_factory=dict)
    unit: str = ""
    slices: Mapping[str, float] | None = None
    fold: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not self.unit:
            object.__setattr__(self, "unit", self.case.id)

    @property
    def id(self) -> str:
        return self.case.id

    @property
    def patient(self) -> str:
        return self.case.patient


@dataclass
class LabeledManifest:
    """A labeled data set.

    Attributes:
        root: paths are relative to it.
        cases: sorted by id.
        rejected: scans and rows that cannot be used, with the reason.
        notes: sentences for the user: exclusions with their counts, what splits keep together.
        patient_level: False where the set has no patient identity, so that splits keep only studies together.
        order: patients in the order of the published table, which some published splits depend on.
    """

    root: Path
    cases: list[LabeledCase] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    patient_level: bool = True
    order: list[str] = field(default_factory=list)


def read_table(
    path: str | Path,
    columns: Sequence[str],
    *,
    keys: Sequence[str] = (),
    what: str = "table",
    advice: str = _AS_PUBLISHED,
):
    """A published CSV as text columns (pandas, dtype str), checked for what must be there.

    Args:
        path: CSV as ``voco.data.text_tables`` reads it.
        columns: columns that must be there; others are kept.
        keys: columns that together must be different in every row.
        what: how to call the file in errors.
        advice: what to do where a column is missing and none has a name like it.

    Raises:
        InputError: no such file, no CSV, missing columns, an empty table, or rows with the same keys.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{what} {path} does not exist; expected a CSV with the columns {', '.join(columns)}")
    text = read_rows(path, what)
    if missing := [name for name in columns if name not in text.columns]:
        raise InputError(
            f"{what} {path} lacks the columns {', '.join(missing)}; found {_columns(text.columns)}"
            + (did_you_mean(missing[0], text.columns) or f"; {advice}")
        )
    if not text.rows:
        raise InputError(f"{what} {path} holds no row")
    table = pd.DataFrame([row for _, row in text.rows], columns=text.columns, dtype=str)
    if keys:
        refuse_repeats(table, keys, f"{what} {path}")
    return table


def _columns(names: Sequence[str]) -> str:
    return ", ".join(f"{name:.60}" for name in names[:_MOST_SHOWN]) if names else "an empty file"


def refuse_repeats(table, keys: Sequence[str], what: str) -> None:
    """Stop where rows of a text table have the same keys."""
    repeated = table[table.duplicated(list(keys), keep=False)]
    if len(repeated):
        names = ["/".join(row) for row in repeated[list(keys)].drop_duplicates().itertuples(index=False)]
        raise InputError(
            f"{what} has {len(names)} ids more than once ({_shown(names)}); each must have one row: remove the others"
        )


def numbers(table, name: str, path: str | Path, *, among: Sequence[float] | None = None):
    """A column of a text table as float64; the values must be numbers and, with ``among``, of that set.

    Raises:
        InputError: another value, with the first rows that have one.
    """
    import pandas as pd

    values = pd.to_numeric(table[name], errors="coerce")
    wrong = values.isna() if among is None else ~values.isin(list(among))
    if wrong.any():
        rows = [f"line {i + 2}: {table[name].iloc[i]!r}" for i in wrong.to_numpy().nonzero()[0][:_SHOWN]]
        expected = "a number" if among is None else "one of " + ", ".join(f"{v:g}" for v in among)
        raise InputError(
            f"{path}: {int(wrong.sum())} values of column {name} are not usable ({'; '.join(rows)}); "
            f"expected {expected}"
        )
    return values.astype("float64")


def finish(manifest: LabeledManifest) -> LabeledManifest:
    """Sort, refuse repeats and patients in two parts, and keep twins of synthetic cohorts together.

    Raises:
        InputError: ids that repeat, a patient in two parts of a published split, or no case at all.
    """
    count = Counter(case.id for case in manifest.cases)
    if repeated := sorted(name for name, n in count.items() if n > 1):
        raise InputError(f"{len(repeated)} scans have the same id ({_shown(repeated)}) in {manifest.root}")
    if not manifest.cases:
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in manifest.rejected[:_SHOWN])
        raise InputError(f"{manifest.root} holds no labeled scan that can be used. {reasons}".rstrip())
    cases = _keep_twins_together(manifest)
    manifest.order = list(dict.fromkeys(case.patient for case in cases))
    manifest.cases = sorted(cases, key=lambda case: case.id)
    parts: dict[str, set] = {}
    for case in manifest.cases:
        if case.case.split is not None:
            parts.setdefault(case.patient, set()).add(case.case.split)
    if both := sorted(patient for patient, found in parts.items() if len(found) > 1):
        raise InputError(f"{len(both)} patients are in more than one part of the split ({_shown(both)}); each has one")
    return manifest


def _keep_twins_together(manifest: LabeledManifest) -> list[LabeledCase]:
    """Synthetic scans of one anatomy (``pair`` in the list of their cohort) count as one patient for splits."""
    first = (case.case.files[0] if case.case.files else case.case.path for case in manifest.cases)
    rows = [phantom_row(manifest.root / name) or {} for name in first]
    if not any("pair" in row for row in rows):
        return manifest.cases
    manifest.notes.append("synthetic patients: scans of one anatomy stay on one side of every split")
    return [
        replace(case, case=replace(case.case, patient=str(row.get("pair", case.patient))))
        for case, row in zip(manifest.cases, rows)
    ]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
