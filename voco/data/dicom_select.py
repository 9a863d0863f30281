"""What a DICOM series is (original, derived, projection, scout, ...) and which one of a study is taken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from voco.data.dicom_scan import CT_CLASSES, SliceHeader
from voco.errors import InputError

SELECT_RULES = ("thinnest_axial", "largest", "all")
# Whole values or words of ImageType (value 3 and later) as the vendors write them.
_WORDS = {
    "localizer": "LOCALIZER SCOUT TOPOGRAM SURVIEW SCANOGRAM",
    "projection": "MIP MINIP MAXIP MAX MIN PROJECTION AIP AVERAGE AVG VRT VR SSD RENDERED 3D MNIP",
    "reformat": "MPR REFORMATTED REFORMAT CPR CURVED CSA CSAPARALLEL CSAMANIPULATED CORONAL SAGITTAL OBLIQUE RESAMPLED",
    "map": "IODINE PERFUSION CBF CBV MTT TTP TMAX RHO ZEFF EFF ELECTRON DENSITY OVERLAY CALCIUM FUSION SUBTRACTION VNC"
    " MATERIAL",
}
_KIND_OF_WORD = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_MAP_UNITS = {"Z_EFF", "ED", "EDW", "MGML", "PCT", "OD"}
_KIND_REASON = {
    "derived": "derived images",
    "projection": "a projection or rendering (MIP, average), not slices as reconstructed",
    "reformat": "a reformat, not slices as reconstructed",
    "map": "a parametric map or subtraction, not plain Hounsfield units",
}
AXIAL_COSINE = 0.8


@dataclass
class SeriesRecord:
    """One DICOM series (or one part of it that forms a volume) and what became of it.

    Attributes:
        path: deepest folder that holds all its files, relative to the root, posix.
        series, study: UIDs.
        patient: hashed PatientID, or None where the header has none.
        modality, image_type, kernel: as in the header.
        orientation: axial, coronal, sagittal, oblique or unknown.
        rows, cols, slices: size; slices at distinct positions.
        spacing_mm: along the slice normal, down a column, along a row; None where not known.
        thickness_mm: SliceThickness, None where not given.
        kind: original, derived, projection, reformat, map, localizer, monitoring, mask, other.
        part: 0, or the number (from 1) among several volumes that share the series UID.
        files: relative to the root, in order along the slice normal, each file once.
        problem: why it cannot be read, None if it can.
        notes: what reading will do to it.
        decision: kept, left_out or rejected, set by ``select_series``.
        reason: the sentence behind the decision.
    """

    path: str
    series: str
    study: str | None = None
    patient: str | None = None
    modality: str = ""
    image_type: tuple[str, ...] = ()
    kernel: str = ""
    orientation: str = "unknown"
    rows: int = 0
    cols: int = 0
    slices: int = 0
    spacing_mm: tuple[float, float, float] | None = None
    thickness_mm: float | None = None
    kind: str = "other"
    part: int = 0
    files: tuple[str, ...] = ()
    problem: str | None = None
    notes: tuple[str, ...] = ()
    decision: str = field(default="")
    reason: str = field(default="")

    def row(self) -> dict[str, object]:
        """Return the line of ``series.csv``."""
        spacing = "" if self.spacing_mm is None else " ".join(f"{s:.4g}" for s in self.spacing_mm)
        return {
            "path": self.path,
            "patient": self.patient or "",
            "study": self.study or "",
            "series": self.series,
            "part": self.part,
            "modality": self.modality,
            "image_type": "\\".join(self.image_type),
            "orientation": self.orientation,
            "kernel": self.kernel,
            "rows": self.rows,
            "cols": self.cols,
            "slices": self.slices,
            "files": len(self.files),
            "spacing_mm": spacing,
            "thickness_mm": "" if self.thickness_mm is None else f"{self.thickness_mm:.4g}",
            "kind": self.kind,
            "decision": self.decision,
            "reason": self.reason,
        }


def plane_name(orientation: Sequence[float] | None) -> str:
    """Name the plane of a slice; up to 37 degrees from axial (any gantry tilt) still counts as axial."""
    if orientation is None:
        return "unknown"
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    for axis, name in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
        if normal[axis] >= AXIAL_COSINE:
            return name
    return "oblique"


def classify(headers: Sequence[SliceHeader]) -> tuple[str, str | None]:
    """Say what kind of series the slices are, and why it is no CT volume if it is none.

    Args:
        headers: slices of one stack.

    Returns:
        The kind (see ``SeriesRecord``) and a sentence, or None where it can be read.
    """
    first = headers[0]
    if first.modality != "CT":
        return "other", f"modality {first.modality or 'not given'}; expected CT"
    # Where a file does not tell its class at all, the modality must do.
    if first.sop_class and first.sop_class not in CT_CLASSES:
        return "other", "not stored as CT images (a secondary capture, report or other object)"
    if first.samples != 1:
        return "other", f"{first.samples} colour values per pixel; expected Hounsfield units"
    words = [w for v in first.image_type[2:] for w in re.split(r"[^A-Z0-9]+", v.upper())]
    kinds = {_KIND_OF_WORD[w] for w in words if w in _KIND_OF_WORD}
    if first.rescale_type.upper() in _MAP_UNITS:
        kinds.add("map")
    if "localizer" in kinds:
        return "localizer", "a localizer (scout) image"
    for kind in ("map", "projection", "reformat"):
        if kind in kinds:
            return kind, None
    if plane_name(first.orientation) not in ("axial", "unknown"):
        return "reformat", None
    derived = {v.upper() for v in first.image_type[:2]} & {"DERIVED", "SECONDARY"}
    return ("derived" if derived else "original"), None


def kernel_rank(kernel: str) -> int:
    """Rank a reconstruction kernel by its name: 0 soft tissue, 1 not known, 2 sharp (lung, bone)."""
    name = kernel.split("/")[0].strip().upper()
    siemens = re.match(r"^(?:[BHIJTUQ][A-Z]?)(\d\d)", name)
    if siemens:
        return 0 if int(siemens[1]) < 50 else 2
    canon = re.match(r"^FC(\d\d)", name)
    if canon:
        return 0 if int(canon[1]) < 30 else 2
    if re.search(r"LUNG|BONE|EDGE|ULTRA|SHARP|DETAIL|^(D|E|L|YA|YB|YC|YD|YE)$", name):
        return 2
    return 0 if re.search(r"STANDARD|SOFT|BODY|SMOOTH|^(A|B|C)$", name) else 1


def coarseness_mm(record: SeriesRecord) -> float:
    """Return the coarser of slice thickness and slice step: thin slices far apart do not make a thin series."""
    return round(max(record.thickness_mm or 0.0, record.spacing_mm[0]), 1)


def _thinnest(record: SeriesRecord) -> tuple:
    coverage = round(record.spacing_mm[0] * record.slices, -1)
    return (coarseness_mm(record), -coverage, *_ties(record))


def _ties(record: SeriesRecord) -> tuple:
    return (kernel_rank(record.kernel), record.spacing_mm[0], -record.slices, record.series, record.part, record.path)


def select_series(records: Sequence[SeriesRecord], rule: str = "thinnest_axial") -> list[SeriesRecord]:
    """Decide for each series whether it is used, and write the decision and its reason into the record.

    Per study: axial series as reconstructed come first, derived axial ones only where there is no other. Among them
    ``thinnest_axial`` takes the one with the smallest of max(thickness, step) to 0.1 mm; then the longest
    coverage to 10 mm, the softer kernel, the smaller step, more slices, the lower UID. ``largest`` takes the one with
    the most slices, with the same ties. ``all`` takes every one of them, derived ones too. Projections, reformats and
    maps are never taken. Series without a study UID are studies of their own;
    the same study UID under two patients is two studies.

    Args:
        records: from ``find_series``.
        rule: thinnest_axial, largest or all.

    Returns:
        The same records, in the same order.

    Raises:
        InputError: an unknown rule.
    """
    if rule not in SELECT_RULES:
        raise InputError(f"select {rule!r} is not a rule; choose one of {', '.join(SELECT_RULES)}")
    studies: dict[tuple, list[SeriesRecord]] = {}
    for record in records:
        if record.problem is not None:
            record.decision, record.reason = "rejected", record.problem
        elif record.kind in ("original", "derived"):
            studies.setdefault((record.patient, record.study or f"series {record.series}"), []).append(record)
        else:
            record.decision, record.reason = "left_out", _reason(record, _KIND_REASON[record.kind])
    for study in studies.values():
        _select_in_study(study, rule)
    return list(records)


def _select_in_study(study: list[SeriesRecord], rule: str) -> None:
    originals = [r for r in study if r.kind == "original"]
    pool = study if rule == "all" else originals or study
    largest = rule == "largest"
    best = min(pool, key=(lambda r: (-r.slices, *_thinnest(r))) if largest else _thinnest)
    for record in study:
        if rule == "all" or record is best:
            record.decision = "kept"
            why = {"all": "a usable axial series", "largest": "the series with the most slices of its study"}.get(
                rule, f"the thinnest {record.kind} axial series of its study"
            )
        else:
            record.decision = "left_out"
            if record not in pool:
                why = "derived images, and the study has an original axial series"
            elif largest:
                why = f"{record.slices} slices; the kept series has {best.slices}"
            elif coarseness_mm(record) > coarseness_mm(best):
                why = f"{coarseness_mm(record):g} mm slices; the kept series has {coarseness_mm(best):g} mm"
            else:
                why = "as thin as the kept series, which comes first by coverage, kernel, step, slices or UID"
        record.reason = _reason(record, why)


def _reason(record: SeriesRecord, why: str) -> str:
    return "; ".join([why, *record.notes])
