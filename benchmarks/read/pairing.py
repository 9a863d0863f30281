"""Whether two tables of units are of the same test set, so that they may be compared patient by patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from voco.errors import InputError
from voco.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd


def why_not_paired(a: pd.DataFrame, b: pd.DataFrame, task: Task) -> str:
    """Why two tables of units cannot be compared patient by patient; empty where they can."""
    return mismatch(by_unit(a), by_unit(b), task)


def mismatch(x: pd.DataFrame, y: pd.DataFrame, task: Task) -> str:
    """``why_not_paired`` of tables that ``by_unit`` has sorted."""
    keys = [set(zip(t["fold"], t["unit"])) for t in (x, y)]
    if keys[0] != keys[1]:
        only = [len(keys[0] - keys[1]), len(keys[1] - keys[0])]
        return (
            f"other test units: {len(keys[0] & keys[1])} in both, {only[0]} only in the first, "
            f"{only[1]} only in the second"
        )
    if len(x) != len(y):
        return "a unit stands twice in one of the tables"
    if (x["patient"].to_numpy() != y["patient"].to_numpy()).any():
        return "units belong to other patients"
    for name in task.label_columns:
        one, other = x[name].to_numpy(float), y[name].to_numpy(float)
        unequal = (one != other) & ~(np.isnan(one) & np.isnan(other))
        if unequal.any():
            return f"{name} differs for {int(unequal.sum())} of {len(x)} units"
    return ""


def by_unit(units: pd.DataFrame) -> pd.DataFrame:
    """Rows by fold and unit; a table of one fold may do without the column."""
    if "fold" not in units:
        units = units.assign(fold=0)
    if missing := [name for name in ("unit", "patient") if name not in units]:
        raise InputError(f"a table of units lacks the columns {', '.join(missing)}; give what task.to_units returns")
    return units.assign(patient=units["patient"].astype(str)).sort_values(["fold", "unit"], ignore_index=True)
