"""Published results as data: one CSV per table, every number with where it was read and how sure that is.

They stand beside own rows only where both were measured the same way; ``why_not_comparable`` says what differs.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from voco.errors import InputError

FOLDER = Path(__file__).parent
UNKNOWN = "unknown"
SYNTHETIC = "own patients are synthetic"


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        table: name of the file, ``ke2023_table1``.
        task: as in this project, ``rsna_pe``.
        task_options: which labels and outputs, ``preset=ke_3d study_label=window``; ``unknown`` where it is not said.
        model: name in the publication.
        pretraining: chain in the words of this project, ``kinetics400 -> stanford_ct``.
        fraction: share of the training set whose labels were used.
        part: ``validation`` or ``test``.
        split_rule: as ``--split.rule`` where this project has it, else in words.
        test_units: studies (scans, patients) that the number is of.
        metric: name of this project; shares, not per cent.
        value: the number.
        low, high: printed interval; None without one.
        interval: what the interval is.
        citation: where it stands.
        certainty: ``read in the paper``, ``read in the abstract``, ``second-hand`` or ``unconfirmed``.
        remark: what a reader must know.
    """

    table: str
    task: str
    task_options: str
    model: str
    pretraining: str
    fraction: float
    part: str
    split_rule: str
    test_units: int
    metric: str
    value: float
    low: float | None
    high: float | None
    interval: str
    citation: str
    certainty: str
    remark: str

    @property
    def options(self) -> dict[str, str] | None:
        """Task options by name; None where the publication does not say."""
        if self.task_options == UNKNOWN:
            return None
        return dict(item.split("=", 1) for item in self.task_options.split())


def tables() -> list[str]:
    """Names of the published tables."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def read_published(name: str) -> list[Published]:
    """All numbers of one table.

    Args:
        name: one of ``tables()``.

    Raises:
        InputError: no such table, or a file that was damaged.
    """
    path = FOLDER / f"{name}.csv"
    if name not in tables():
        raise InputError(f"no published table {name!r}; there are {', '.join(tables())}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            Published(**{field.name: _parsed(field.name, row[field.name]) for field in fields(Published)})
            for row in rows
        ]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from the repository") from None


def _parsed(name: str, text: str) -> Any:
    if name in ("low", "high"):
        return float(text) if text else None
    if name in ("value", "fraction"):
        return float(text)
    return int(text) if name == "test_units" else text


def why_not_comparable(
    published: Published,
    *,
    task: str,
    options: Mapping[str, Any],
    metric: str,
    part: str,
    split_rule: str,
    test_units: int,
    fraction: float,
    synthetic: bool = False,
) -> str:
    """Why a published number must not stand beside an own one; empty where it may.

    Args:
        published: the number.
        task: name of the own task.
        options: of the own task, as ``results.json`` holds them.
        metric: whose value is compared.
        part: ``validation`` or ``test``.
        split_rule: of the own run.
        test_units: of the own run.
        fraction: of the labels of the own run.
        synthetic: whether the own patients are.
    """
    if synthetic:
        return SYNTHETIC
    pairs = [
        ("task", published.task, task),
        ("metric", published.metric, metric),
        ("part", published.part, part),
        ("split", published.split_rule, split_rule),
        ("test units", published.test_units, test_units),
        ("share of labels", published.fraction, fraction),
    ]
    found = [f"{what}: published {theirs}, own {own}" for what, theirs, own in pairs if theirs != own]
    wanted = published.options
    if wanted is None:
        found.append("how the published labels were made is not known")
    else:
        for name, value in wanted.items() if published.task == task else ():
            own = _as_text(options.get(name))
            if own != value:
                found.append(f"labels: published {name} {value}, own {own}")
    if published.certainty in ("second-hand", "unconfirmed"):
        found.append(f"the published number is {published.certainty}")
    return "; ".join(found)


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
