"""How a cohort is parted: folds, each with a part for every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from voco.data.layouts.labeled import SPLITS, LabeledCase


@dataclass(frozen=True)
class Fold:
    """One way of parting a cohort.

    Attributes:
        number: from 0.
        parts: case id to ``train``, ``validation`` or ``test``.
        left_out: ids of training and validation cases that are outside the label budget.
        early_stopping: False where there is no validation set fit for it: train for a fixed number of steps.
        reason: why not.
    """

    number: int
    parts: Mapping[str, str]
    left_out: frozenset[str] = frozenset()
    early_stopping: bool = True
    reason: str = ""

    def ids(self, name: str) -> list[str]:
        """Ids of the cases of a part that lie inside the label budget, sorted."""
        return sorted(case for case, found in self.parts.items() if found == name and case not in self.left_out)


@dataclass(frozen=True)
class Splits:
    """All folds of a run.

    Attributes:
        folds: at least one.
        patients: case id to patient.
        paths: case id to the path of its scan.
        rule, seed, fraction: as asked for.
        notes: sentences for the user.
        marks: short remarks that every result of the run must carry.
    """

    folds: list[Fold]
    patients: Mapping[str, str]
    paths: Mapping[str, str]
    rule: str = "holdout"
    seed: int = 0
    fraction: float = 1.0
    notes: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)

    def select(self, cases: Sequence[LabeledCase], fold: int, name: str) -> list[LabeledCase]:
        """Cases of one part of one fold that lie inside the label budget, in the order given."""
        chosen = set(self.folds[fold].ids(name))
        return [case for case in cases if case.id in chosen]

    def counts(self, fold: int) -> dict[str, int]:
        """Patients inside the label budget per part."""
        return {name: len({self.patients[case] for case in self.folds[fold].ids(name)}) for name in SPLITS}
