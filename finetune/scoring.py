"""Predictions of a part of the cohort: rows of ``predictions.csv`` and ``predictions_images.parquet``, and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from voco.data.cache import PreparedVolume
from voco.tasks.base import Task
from voco.tasks.slices import SliceTable, image_rows, slice_scores, slices_in_windows
from voco.transfer.predict import StudyScores
from voco.transfer.views import View


@dataclass
class Predictions:
    """Scores of cases.

    Attributes:
        cases: rows of ``predictions.csv`` as dicts.
        images: columns of ``predictions_images.parquet``, one dict per case; empty where slices are not scored.
        losses: per case and output, the weighted sum of the loss over what is learned of the case, and the weight.
    """

    cases: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, tuple[float, float]]] = field(default_factory=list)

    def frame(self):
        """Rows of cases as a table, sorted by fold, part and case."""
        import pandas as pd

        return pd.DataFrame(self.cases).sort_values(["fold", "split", "case"], ignore_index=True)

    def image_frame(self):
        """Rows of slices as a table, or None."""
        import pandas as pd

        return pd.concat([pd.DataFrame(rows) for rows in self.images], ignore_index=True) if self.images else None

    def loss(self) -> float:
        """Mean over the outputs of the weighted mean over all cases, or over their windows where these are learned.

        As in training, but without label smoothing; an output none of whose labels is known is left out, and NaN where
        that is all of them. No case is normalised by itself, where the weight of its class would cancel out.
        """
        means = []
        for name in self.losses[0] if self.losses else ():
            # exact sums do not depend on the order, and so not on the number of processes
            total, weight = (math.fsum(row[name][i] for row in self.losses) for i in range(2))
            if weight > 0:
                means.append(total / weight)
        return sum(means) / len(means) if means else float("nan")

    def extend(self, other: Predictions) -> None:
        self.cases += other.cases
        self.images += other.images
        self.losses += other.losses


def score_part(
    studies: Sequence,
    score: Callable[[Any], StudyScores],
    task: Task,
    view: View,
    *,
    fold: int,
    split: str,
    learn: str,
    accelerator,
    class_weights=None,
    progress=None,
) -> Predictions:
    """Score studies, shared among the processes; every process gets all rows.

    A study is scored by itself, so the number of processes changes no score.

    Args:
        studies: ``finetune.cohort.Study`` objects.
        score: scores one of them.
        progress: called with each finished study.
    """
    from accelerate.utils import gather_object

    own = Predictions()
    for study in studies[accelerator.process_index :: accelerator.num_processes]:
        scores = score(study)
        own.cases.append(case_row(study, scores, task, fold, split))
        if task.slice_labels and view.kind == "slice_windows":
            rows = _image_rows(study, scores, task, view)
            if rows is not None:
                own.images.append({**rows, "fold": fold, "split": split})
        own.losses.append(_loss(study, scores, task, view, learn, class_weights))
        if progress is not None:
            progress(study)
    if accelerator.num_processes == 1:
        return own
    together = Predictions()
    # one object a process, so that empty shares do not shift the others
    for part in gather_object([own]):
        together.extend(part)
    together.cases.sort(key=lambda row: row["case"])
    together.images.sort(key=lambda rows: rows["case"][0])
    return together


def case_row(study, scores: StudyScores, task: Task, fold: int, split: str) -> dict[str, Any]:
    """One row of ``predictions.csv``."""
    case = study.labeled
    return {
        "case": case.id,
        "patient": case.patient,
        "path": case.case.path,
        "unit": case.unit,
        "fold": fold,
        "split": split,
        **{output.label_column: study.targets[output.name] for output in task.outputs},
        **{name: scores.columns[name] for name in task.score_columns},
        **dict(case.attributes),
    }


def _image_rows(study, scores: StudyScores, task: Task, view: View) -> dict | None:
    table = SliceTable.of(PreparedVolume.open(study.paths[0]).meta)
    if table is None:
        return None
    inside = slices_in_windows(table.index, scores.starts[:, 0], view.size[0])
    each = slice_scores(task.window_score(scores.windows), inside)
    return image_rows(study.labeled, table, table.labels(study.labeled.slices), each)


def _loss(study, scores: StudyScores, task: Task, view: View, learn: str, class_weights) -> dict[str, tuple]:
    """Per output, the weighted sum of the loss and the weight; see ``Predictions.losses``."""
    if learn == "window":
        rows = [study.window_targets(task, view, int(start[0])) for start in scores.starts]
    else:
        rows = [study.targets]
    targets = {o.name: torch.tensor([row[o.name] for row in rows], dtype=torch.float64) for o in task.outputs}
    logits = {name: torch.from_numpy(np.asarray(z)) for name, z in scores.logits.items()}
    means = task.loss(logits, targets, class_weights=class_weights)
    weights = task.sample_weights(targets, class_weights)
    return {name: (float(mean) * len(rows), float(weights[name].sum())) for name, mean in means.items()}
