"""Lung nodules on CT: LIDC-IDRI, slices that several annotations mark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np

from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.data.layouts.lidc import read_lidc
from voco.errors import InputError, ScanError
from voco.tasks.base import Output, Task
from voco.tasks.slices import any_positive_window, window_label
from voco.tasks.standard import AUROC, AveragePrecision, ImageAUROC

_OUTPUTS = (Output("nodule"),)


@dataclass(frozen=True)
class LIDCOptions:
    """Settings of ``lidc``.

    Raises:
        InputError: an unknown value, or a number out of range.
    """

    name: Literal["lidc"] = "lidc"
    agreement: int = 3
    """Annotations that must hold a slice in their z range for it to be positive (Ke et al. 2023: 3)."""
    min_positive_slices: int = 4
    """Positive slices that make a window positive (Ke et al. 2023: 4)."""
    study_label: Literal["slice", "window"] = "slice"
    """A study is positive if any slice is, or if any of its label windows is (code of Ke et al. 2023)."""
    window: int = 32
    """Slices of a label window, for study_label=window alone; what the model sees is --input.size."""
    window_stride: int = 32
    """Slices from one label window to the next."""
    labels_csv: str = ""
    """CSV with the labels of slices in place of the annotation files; relative to the data root, or absolute."""

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            allowed, value = get_args(kind), getattr(self, name)
            if allowed and value not in allowed:
                raise InputError(f"task.{name} must be one of {', '.join(map(str, allowed))}; found {value!r}")
        for name in ("agreement", "min_positive_slices", "window", "window_stride"):
            if getattr(self, name) < 1:
                raise InputError(f"task.{name} must be at least 1, found {getattr(self, name)}")
        if self.study_label == "window" and self.min_positive_slices > self.window:
            raise InputError(
                f"task.min_positive_slices {self.min_positive_slices} is more than a window of {self.window} slices has"
            )


class LIDC(Task):
    """Lung nodules per study and per slice; see docs/tasks.md."""

    name = "lidc"
    Options = LIDCOptions
    outputs = _OUTPUTS
    metrics = (AUROC(_OUTPUTS), AveragePrecision(_OUTPUTS), ImageAUROC())
    flips = (0, 1, 2)
    slice_labels = True
    # LUNA16 is a part of LIDC-IDRI.
    data_sets = ("LIDC-IDRI", "LUNA16")
    evaluation = "own split: LIDC-IDRI has no official one"

    def read(self, root: str | Path) -> LabeledManifest:
        """The CT series under ``root``, see ``voco.data.layouts.lidc.read_lidc``."""
        table = Path(root) / self.options.labels_csv if self.options.labels_csv else None
        manifest = read_lidc(root, agreement=self.options.agreement, table=table)
        positive = sum(case.labels["nodule"] for case in manifest.cases)
        manifest.notes.append(f"{positive:.0f} of {len(manifest.cases)} studies have a positive slice")
        if self.options.study_label == "window":
            manifest.notes.append(
                f"a study is positive if {self.options.min_positive_slices} of {self.options.window} consecutive "
                "slices are, which is known once scans are read; until then it is any study with a positive slice"
            )
        return manifest

    def targets(self, case: LabeledCase) -> dict[str, float]:
        return {"nodule": float(case.labels.get("nodule", np.nan))}

    def targets_from_slices(self, case: LabeledCase, index: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """See ``Task``; differs from ``targets`` where label windows are asked for."""
        if self.options.study_label == "slice":
            return self.targets(case)
        if not len(labels):
            raise ScanError("task.study_label=window needs the order of slices, which only axial DICOM series have")
        options = self.options
        return {
            "nodule": any_positive_window(labels, options.window, options.window_stride, options.min_positive_slices)
        }

    def window_targets(self, labels: np.ndarray) -> dict[str, float]:
        return {"nodule": window_label(labels, self.options.min_positive_slices)}
