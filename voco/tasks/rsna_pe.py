"""Pulmonary embolism on CT angiography: RSNA STR Pulmonary Embolism 2020."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

import numpy as np

from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.data.layouts.rsna_pe import read_rsna_pe
from voco.errors import InputError, ScanError
from voco.tasks.base import Output, Task
from voco.tasks.outputs import check_columns
from voco.tasks.rsna_pe_loss import EXAM_LABELS, LOSSES, THRESHOLD, repair, submission
from voco.tasks.slices import any_positive_window, window_label
from voco.tasks.standard import AUROC, AveragePrecision, ImageAUROC

if TYPE_CHECKING:
    import pandas as pd

# What each preset means: what indeterminate exams count as, and positive slices that make a window positive.
_PRESETS: dict[str, tuple[str, int]] = {
    "default": ("exclude", 1),
    # Ke et al. 2023, window models: the study label follows from window labels, so indeterminate exams are negative.
    "ke_3d": ("negative", 4),
    # Ke et al. 2023, slice models: positive is what is not marked negative, which takes in indeterminate exams.
    "ke_lrcn": ("positive", 1),
}
_STATES = ("negative_exam_for_pe", "indeterminate")
_SIDES = {"leftsided_pe": "rightsided_pe", "rightsided_pe": "leftsided_pe"}


@dataclass(frozen=True)
class RSNAPEOptions:
    """Settings of ``rsna_pe``.

    Raises:
        InputError: an unknown value, or options that contradict each other.
    """

    name: Literal["rsna_pe"] = "rsna_pe"
    preset: Literal["default", "ke_3d", "ke_lrcn"] = "default"
    """What a positive study is. default: any positive image. ke_3d: any window of 32 slices with 4 positive ones;
    ke_lrcn: not marked negative (both Ke et al. 2023)."""
    heads: Literal["pe", "exam"] = "pe"
    """pe: one output, embolism or not. exam: the nine exam labels of the official metric."""
    indeterminate: Literal["preset", "exclude", "negative", "positive"] = "preset"
    """What indeterminate exams count as. Presets: default exclude, ke_3d negative, ke_lrcn positive. With heads=exam
    they are learned from and enter the official loss in any case; this is for AUROC and AP."""
    min_positive_slices: int = 0
    """Positive slices that make a window positive; 0 is the preset's: 4 for ke_3d, else 1. Above 1, a study is positive
    if one of its label windows is."""
    window: int = 32
    """Slices of a label window, for the study label alone; what the model sees is --input.size."""
    window_stride: int = 32
    """Slices from one label window to the next."""

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            allowed, value = get_args(kind), getattr(self, name)
            if allowed and value not in allowed:
                raise InputError(f"task.{name} must be one of {', '.join(map(str, allowed))}; found {value!r}")
        if min(self.window, self.window_stride) < 1 or not 0 <= self.min_positive_slices <= self.window:
            raise InputError(
                f"task.window {self.window} and task.window_stride {self.window_stride} must be positive, and "
                f"task.min_positive_slices {self.min_positive_slices} from 0 to the window"
            )
        if self.heads == "exam" and (self.preset != "default" or self.min_positive_slices > 1):
            raise InputError(
                "task.heads=exam learns the published exam labels; presets and task.min_positive_slices redefine the "
                "study label, which belongs to task.heads=pe"
            )


class RSNAPE(Task):
    """Pulmonary embolism, per study and per image; see docs/tasks.md."""

    name = "rsna_pe"
    Options = RSNAPEOptions
    # Upside down or back to front no patient is scanned; published runs flip nothing.
    flips = (2,)
    slice_labels = True
    data_sets = ("RSNA-PE",)
    evaluation = "own split of the published training part; the official test labels were never published"

    def __init__(self, options: RSNAPEOptions):
        super().__init__(options)
        preset = _PRESETS[options.preset]
        self.indeterminate = preset[0] if options.indeterminate == "preset" else options.indeterminate
        self.least = options.min_positive_slices or preset[1]
        names = EXAM_LABELS if options.heads == "exam" else ("pe",)
        self.outputs = tuple(Output(name) for name in names)
        self.metrics = (
            AUROC(self.outputs, arrays=self._embolism),
            AveragePrecision(self.outputs, arrays=self._embolism),
            ImageAUROC(),
            *(loss(self.outputs) for loss in LOSSES),
        )

    # What the data set holds

    def read(self, root: str | Path, part: Literal["train", "test"] = "train") -> LabeledManifest:
        """The exams under ``root``, see ``voco.data.layouts.rsna_pe.read_rsna_pe``.

        ``part="test"`` lists the public test exams, which have no labels, for prediction.
        """
        manifest = read_rsna_pe(root, part)
        if part == "test":
            return manifest
        indeterminate = sum(bool(case.labels["indeterminate"]) for case in manifest.cases)
        dropped = self.options.heads == "pe" and self.indeterminate == "exclude"
        if dropped:
            manifest.cases = [case for case in manifest.cases if not case.labels["indeterminate"]]
            if not manifest.cases:
                raise InputError(
                    f"all {indeterminate} exams of {root} are indeterminate; task.indeterminate=negative or positive "
                    "keeps them"
                )
        if self.options.heads == "pe":
            manifest.cases = [self._with_label(case) for case in manifest.cases]
            positive = sum(case.labels["pe"] for case in manifest.cases)
            manifest.notes.append(f"{positive:.0f} of {len(manifest.cases)} studies are positive")
        what = {"exclude": "left out", "negative": "taken as negative", "positive": "taken as positive"}
        if self.options.heads == "exam":
            what["exclude"] = "kept for learning and the official loss, left out of AUROC and AP"
        manifest.notes.append(f"{indeterminate} indeterminate exams were {what[self.indeterminate]}")
        if self.least > 1:
            manifest.notes.append(
                f"a study is positive if {self.least} of {self.options.window} consecutive slices are, which is known "
                "once scans are read; until then it is any study with that many positive images"
            )
        return manifest

    def read_unlabeled(self, root: str | Path) -> LabeledManifest:
        """The public test exams, ``test.csv`` and ``test``."""
        return self.read(root, "test")

    def _with_label(self, case: LabeledCase) -> LabeledCase:
        """With ``pe`` as far as the table alone tells."""
        positive = float(case.slices.positive >= self.least)
        if case.labels["indeterminate"]:
            positive = float(self.indeterminate == "positive")
        return replace(case, labels={**case.labels, "pe": positive})

    def targets(self, case: LabeledCase) -> dict[str, float]:
        return {output.name: float(case.labels.get(output.name, np.nan)) for output in self.outputs}

    def targets_from_slices(self, case: LabeledCase, index: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """See ``Task``; differs from ``targets`` where label windows are asked for."""
        targets = self.targets(case)
        if self.least > 1 and not case.labels["indeterminate"]:
            if not len(labels):
                raise ScanError(
                    f"with task.min_positive_slices {self.least} the study label needs the order of slices, which only "
                    "axial DICOM series have"
                )
            targets["pe"] = any_positive_window(labels, self.options.window, self.options.window_stride, self.least)
        return targets

    def flip_targets(self, targets: Mapping[str, float], axes: Sequence[int]) -> dict[str, float]:
        """A left-right flip swaps left- and right-sided emboli; also of other values by output name, such as logits."""
        if 2 not in axes:
            return dict(targets)
        return {name: targets[_SIDES.get(name, name)] for name in targets}

    def window_targets(self, labels: np.ndarray) -> dict[str, float]:
        if self.options.heads == "exam":
            raise InputError(
                "the nine exam labels belong to studies and not to windows: learn from studies, or set task.heads=pe"
            )
        return {"pe": window_label(labels, self.least)}

    def stratum(self, case: LabeledCase) -> str:
        if self.options.heads == "pe":
            return super().stratum(case)
        if case.labels["indeterminate"]:
            return "indeterminate"
        return "0" if case.labels["negative_exam_for_pe"] else "1"

    # Scores

    def window_score(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probability of embolism from score columns, of studies or of windows (which then score their slices).

        With nine heads it is what neither ``negative_exam_for_pe`` nor ``indeterminate`` claims, at least 0.
        """
        if self.options.heads == "pe":
            return np.asarray(columns["score_pe"], np.float64)
        return np.maximum(0.0, 1.0 - sum(np.asarray(columns[f"score_{name}"], np.float64) for name in _STATES))

    def _embolism(self, units: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
        """Labels (n,), NaN where an exam counts as neither, and scores (n, 1) of embolism, whatever the heads."""
        check_columns(units, self.outputs)
        scores = self.window_score(units)[:, None]
        if self.options.heads == "pe":
            return [(units["label_pe"].to_numpy(np.float64), scores)]
        negative, indeterminate = (units[f"label_{name}"].to_numpy(np.float64) for name in _STATES)
        as_label = {"exclude": np.nan, "negative": 0.0, "positive": 1.0}[self.indeterminate]
        return [(np.where(indeterminate == 1, as_label, 1.0 - negative), scores)]

    def submission(self, units: pd.DataFrame, images: pd.DataFrame) -> list[tuple[str, float]]:
        """Rows ``id,label`` of the official submission file, exam scores repaired by the rules.

        Args:
            units: of ``to_units``.
            images: rows of ``predictions_images.parquet``.

        Raises:
            InputError: another model than one with the nine heads, or images without a score.
        """
        if self.options.heads != "exam" or images["score"].isna().any():
            raise InputError(
                "a submission needs the nine exam outputs (task.heads=exam) and a score of every image; found "
                f"task.heads={self.options.heads} and {int(images['score'].isna().sum())} images without a score"
            )
        on = set(images.loc[images["score"] > THRESHOLD, "unit"])
        probs = units[[f"score_{name}" for name in EXAM_LABELS]].to_numpy(float)
        fixed = repair(probs, units["unit"].isin(on).to_numpy())
        return submission(list(units["unit"]), fixed, list(images["sop_uid"]), images["score"].to_numpy(float))
