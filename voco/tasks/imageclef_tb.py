"""Type of tuberculosis in a chest CT: five classes, unweighted Cohen's kappa (ImageCLEF Tuberculosis 2021, TBT)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from voco.data.layouts.imageclef_tb import SUFFIX, TYPE, TYPES, read_imageclef_tb, read_imageclef_tb_test
from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.errors import InputError
from voco.files import write_text
from voco.tasks.base import Output, Task
from voco.tasks.standard import Accuracy, BalancedAccuracy, Kappa, Recall

if TYPE_CHECKING:
    import pandas as pd

_CLASSES = tuple(TYPES.values())
_OUTPUTS = (Output("tb_type", "multiclass", _CLASSES),)
_NONE = "no scan with a known type"


@dataclass(frozen=True)
class ImageCLEFTBOptions:
    """Tuberculosis type, ImageCLEF 2021."""

    name: Literal["imageclef_tb"] = "imageclef_tb"
    table: str = ""
    """path of the table of types below the root, where it is not <uuid>_TrainSet_metaData.csv"""
    masks: Literal["none", "masks1", "masks2"] = "none"
    """published set of lung masks to work with; ``none`` shows the scan as it is, as ViPTT-Net does"""
    mask_use: Literal["crop", "fill", "channel"] = "crop"
    """crop: the box of the mask is all that is shown; fill: air outside of the mask; channel: the filled scan comes as
    a second channel"""


class ImageCLEFTB(Task):
    """Five types of tuberculosis.

    Ranking of the challenge: kappa, then accuracy. The class is the one with the highest score. Published entries that
    average class numbers treat the types as a scale; here only probabilities are averaged.
    """

    name = "imageclef_tb"
    Options: ClassVar[type] = ImageCLEFTBOptions
    noun = "scan"
    outputs = _OUTPUTS
    metrics = (
        Kappa(_OUTPUTS, unknown=_NONE, undefined="all scans are of one type and predicted as it"),
        Accuracy(_OUTPUTS, unknown=_NONE),
        BalancedAccuracy(_OUTPUTS, unknown=_NONE),
        *(
            Recall(_OUTPUTS, f"recall_{name}", number, unknown=_NONE, undefined="no scan of this type")
            for number, name in enumerate(_CLASSES)
        ),
    )
    main_metric = "kappa"
    # The types have no side, so W may be flipped. A flip along D or H would change no label either, but it shows scans
    # that no scanner makes: head first for feet first, table above the chest.
    flips = (2,)
    data_sets = ("ImageCLEF-TB-2021",)
    evaluation = (
        "made on the training scans by splits of this run (with --folds and --repeats: repeated cross-validation); the "
        "labels of the official test scans were never published"
    )

    @property
    def mask_use(self) -> str:
        return self.options.mask_use if self.options.masks != "none" else ""

    @property
    def mask_name(self) -> str:
        return self.options.masks

    def read(self, root: str | Path) -> LabeledManifest:
        """The labeled scans; with ``masks``, ``Case.mask`` is the file of that set."""
        return self._with_masks(read_imageclef_tb(root, table=self.options.table))

    def read_unlabeled(self, root: str | Path) -> LabeledManifest:
        """The official test scans, for ``write_submission``."""
        return self._with_masks(read_imageclef_tb_test(root))

    def _with_masks(self, manifest: LabeledManifest) -> LabeledManifest:
        kind = self.options.masks
        if kind == "none":
            return manifest
        missing = [case.id for case in manifest.cases if kind not in case.masks]
        if len(missing) == len(manifest.cases):
            raise InputError(
                f"task.masks is {kind}, and {manifest.root} holds no file of it; expected files with the names of the "
                f"scans in a folder {kind}, or set task.masks to none"
            )
        if missing:
            manifest.notes.append(f"{len(missing)} scans without {kind} are used whole (first: {missing[0]})")
        manifest.cases = [replace(item, case=replace(item.case, mask=item.masks.get(kind))) for item in manifest.cases]
        return manifest

    def targets(self, case: LabeledCase) -> dict[str, float]:
        return {"tb_type": float(case.labels[TYPE]) - 1 if TYPE in case.labels else float("nan")}

    def stratum(self, case: LabeledCase) -> str:
        return TYPES.get(int(case.labels.get(TYPE, 0)), "")

    def write_submission(self, path: str | Path, predictions: pd.DataFrame, images: pd.DataFrame | None = None) -> Path:
        """Write the submission file of the challenge: one line ``TST_0001.nii.gz,2`` a scan, no header.

        Args:
            path: file to write.
            predictions: rows with ``case`` (``TST_0001``) and the score columns; several rows of a scan are averaged.

        Returns:
            The path.

        Raises:
            InputError: no rows, missing columns, scores that are not finite, or a scan that is not a test scan.
        """
        columns = self.score_columns
        if missing := [name for name in ("case", *columns) if name not in predictions]:
            raise InputError(
                f"a submission needs the columns {', '.join(missing)}; give the predictions of the test scans"
            )
        mean = predictions.groupby("case", sort=True)[columns].mean()
        wrong = [str(name) for name in mean.index if not str(name).upper().startswith("TST_")]
        if wrong or mean.empty:
            found = f"{len(wrong)} others (first: {wrong[0]})" if wrong else "no row"
            raise InputError(f"a submission holds the test scans TST_0001 … only, found {found}")
        if not np.isfinite(mean.to_numpy()).all():
            raise InputError("a submission needs a finite score for every type of every scan")
        kinds = mean.to_numpy().argmax(1) + 1
        return write_text(path, "".join(f"{name}{SUFFIX},{kind}\n" for name, kind in zip(mean.index, kinds)))
