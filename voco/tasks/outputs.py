"""What a model predicts, and the labels and scores of it in a table of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from voco.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Output:
    """One thing that is predicted: a head of the model.

    Attributes:
        name: used in columns, ``label_<name>`` and ``score_<name>``.
        kind: ``binary`` (one logit, sigmoid), ``multiclass`` (one logit per class, softmax), or ``regression``.
        classes: names of the classes of ``multiclass``, in the order of the logits; columns ``score_<name>_<class>``.
    """

    name: str
    kind: Literal["binary", "multiclass", "regression"] = "binary"
    classes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of logits."""
        return len(self.classes) if self.kind == "multiclass" else 1

    @property
    def score_columns(self) -> tuple[str, ...]:
        if self.kind == "multiclass":
            return tuple(f"score_{self.name}_{name}" for name in self.classes)
        return (f"score_{self.name}",)

    @property
    def label_column(self) -> str:
        return f"label_{self.name}"


def labels_and_scores(units: pd.DataFrame, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), NaN where they are not known, and scores (n, width).

    Raises:
        InputError: a column is missing.
    """
    check_columns(units, (output,))
    return units[output.label_column].to_numpy(float), units[list(output.score_columns)].to_numpy(float)


def known_labels(units: pd.DataFrame, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """As ``labels_and_scores``, of the rows whose label is known."""
    labels, scores = labels_and_scores(units, output)
    known = ~np.isnan(labels)
    return labels[known], scores[known]


def check_columns(units: pd.DataFrame, outputs: Sequence[Output]) -> None:
    """Refuse a table without labels and scores of all outputs.

    Raises:
        InputError: a column is missing.
    """
    wanted = [o.label_column for o in outputs] + [name for o in outputs for name in o.score_columns]
    if missing := [name for name in wanted if name not in units]:
        raise InputError(
            f"predictions lack the columns {', '.join(missing)}; found {', '.join(map(str, units.columns))}"
        )
