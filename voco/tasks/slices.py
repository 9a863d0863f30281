"""Labels and scores of slices, to windows of the prepared volume and back.

Labels belong to images (SOPInstanceUIDs), windows to planes of the prepared grid. ``SliceTable`` knows where in that
grid every image lies, whether its voxels are in it or not, so that uneven spacing, repeated slices, cropping and
resampling change neither which labels a window has nor which images a score is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from voco.data.dicom_stack import SAME_PLANE_MM
from voco.data.layouts.labeled import LabeledCase
from voco.errors import ScanError
from voco.short_repr import short_repr

# Positions of one plane are at most this far apart along z, also where planes lean by up to 37 degrees.
_SAME_Z_MM = 1.3 * SAME_PLANE_MM


@short_repr
@dataclass(frozen=True)
class SliceTable:
    """The source images of one scan, from the lowest to the highest.

    Attributes:
        sop_uids: SOPInstanceUID of each.
        z_mm: (S,) where each lies, mm.
        index: (S,) fractional D index in the prepared grid. The grid ends less than one plane away from the last image:
            images in that rest count as its end plane. Images further away were cropped off and lie outside.
        kept: (S,) whether its voxels are in the volume; a repeated slice is not, but has its place all the same.
    """

    sop_uids: tuple[str, ...]
    z_mm: np.ndarray
    index: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> SliceTable | None:
        """From ``PreparedVolume.meta``; None where the source has no slices along D (a NIfTI file, an oblique scan)."""
        slices = meta.get("slices")
        if not slices:
            return None
        depth = meta["shape"][0]
        z, index = (np.array([s[name] for s in slices], np.float64) for name in ("z_mm", "index"))
        kept = np.array([s["kept"] for s in slices], bool)
        near = (index > -1) & (index < depth)
        index = np.where(near, np.clip(index, 0, depth - 1), index)
        order = np.lexsort((~kept, z, index))
        return cls(tuple(slices[i]["sop_uid"] for i in order), z[order], index[order], kept[order])

    def labels(self, by_uid: Mapping[str, float] | None) -> np.ndarray:
        """(S,) label of each image, NaN where it has none.

        Args:
            by_uid: ``LabeledCase.slices``. A mapping whose labels depend on where images lie has a method
                ``at(sop_uids, z_mm)`` that gives all of them.

        Raises:
            ScanError: there are labels, and none is for an image of this scan.
        """
        if by_uid is None:
            return np.full(len(self.sop_uids), np.nan)
        at = getattr(by_uid, "at", None)
        values = at(self.sop_uids, self.z_mm) if at else [by_uid.get(uid, np.nan) for uid in self.sop_uids]
        values = np.asarray(values, np.float64)
        if np.isnan(values).all():
            raise ScanError(
                f"none of its {len(values)} images has one of the {len(by_uid)} SOPInstanceUIDs that are labeled: the "
                "labels are those of another series, or the files were written anew with other UIDs"
            )
        return values

    def positions(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One label per place, for learning and for counting slices: an image stored twice counts once.

        Args:
            labels: (S,) as ``labels`` gives them.

        Returns:
            (P,) D index and (P,) label of each place, ascending; the label is positive if that of any image there is,
            NaN where none has one.
        """
        group = np.concatenate([[0], np.cumsum(np.abs(np.diff(self.z_mm)) > _SAME_Z_MM)])
        first = np.flatnonzero(np.diff(group, prepend=-1))
        return self.index[first], np.fmax.reduceat(np.asarray(labels, np.float64), first)


def slices_in_windows(index: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Which slices lie in which windows: those whose nearest plane is one of the window's.

    Args:
        index: (S,) D index of slices, ``SliceTable.index``.
        starts: (W,) first plane of each window.
        length: planes of a window.

    Returns:
        (W, S) bool.
    """
    index, starts = np.asarray(index, np.float64)[None], np.asarray(starts)[:, None]
    return (index >= starts - 0.5) & (index < starts + length - 0.5)


def slice_scores(scores: np.ndarray, inside: np.ndarray, how: Literal["max", "mean"] = "max") -> np.ndarray:
    """Scores of slices from those of windows.

    Args:
        scores: (W,) of the windows.
        inside: (W, S), see ``slices_in_windows``.
        how: of the windows that hold a slice, the highest score or their mean.

    Returns:
        (S,) scores; NaN for a slice that no window holds.
    """
    scores, inside = np.asarray(scores, np.float64)[:, None], np.asarray(inside, bool)
    count = inside.sum(0)
    if how == "max":
        found = np.where(inside, scores, -np.inf).max(0, initial=-np.inf)
    else:
        found = np.where(inside, scores, 0.0).sum(0) / np.maximum(count, 1)
    return np.where(count > 0, found, np.nan)


def window_label(labels: np.ndarray, least: int) -> float:
    """1 where a window has at least ``least`` positive slices, else 0; NaN while unlabeled ones could decide it.

    Args:
        labels: labels of its slices, NaN = not known.
        least: positive slices that make a window positive.
    """
    labels = np.asarray(labels, np.float64)
    positive, unknown = int((labels == 1).sum()), int(np.isnan(labels).sum())
    if positive >= least:
        return 1.0
    return float("nan") if positive + unknown >= least or unknown == len(labels) else 0.0


def any_positive_window(labels: np.ndarray, length: int, stride: int, least: int) -> float:
    """Label of a study from windows of consecutive slices: 1 if any has at least ``least`` positive slices, else 0.

    Windows start at the lowest slice, every ``stride`` slices; the last one holds what is left. With ``stride`` equal
    to ``length`` these are the ceil(N / T) windows of Ke et al. (2023).

    Args:
        labels: (P,) of all slices from the lowest to the highest, ``SliceTable.positions``; NaN counts as negative.
        length, stride: in slices.
        least: positive slices that make a window positive.
    """
    positive = np.concatenate([[0], np.cumsum(np.asarray(labels, np.float64) == 1)])
    n = len(positive) - 1
    starts = np.arange(0, max(1, n - length + stride), stride)
    return float((positive[np.minimum(starts + length, n)] - positive[np.minimum(starts, n)] >= least).any())


def image_rows(
    case: LabeledCase, table: SliceTable, labels: np.ndarray, scores: np.ndarray
) -> dict[str, list | np.ndarray]:
    """Columns of ``predictions_images.parquet`` of one case, all but ``fold`` and ``split``.

    Images that are labeled but not in the scan (the reader left them out) follow at the end without place and score.

    Args:
        case: whose images.
        table: of its prepared volume.
        labels: (S,) of ``table.labels``.
        scores: (S,) of ``slice_scores``.
    """
    absent = sorted(set(case.slices or ()) - set(table.sop_uids))
    more = np.full(len(absent), np.nan)
    uids = [*table.sop_uids, *absent]
    return {
        "case": [case.id] * len(uids),
        "unit": [case.unit] * len(uids),
        "patient": [case.patient] * len(uids),
        "path": [case.case.path] * len(uids),
        "sop_uid": uids,
        "z_mm": np.concatenate([table.z_mm, more]),
        "label": np.concatenate([labels, [float(case.slices[uid]) for uid in absent]]),
        "score": np.concatenate([np.asarray(scores, np.float64), more]),
    }
