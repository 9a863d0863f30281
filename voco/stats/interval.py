"""A number and how far it could be off."""

from __future__ import annotations

from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        point: the number, NaN where it is not defined.
        low, high: None where there is no interval.
        patients: that it is of.
    """

    point: float
    low: float | None = None
    high: float | None = None
    patients: int = 0
