"""Synthetic patients with disease: what all layouts with planted findings have in common.

Cases come in groups that share one anatomy, one scan setting and one noise realisation: a positive and its lesion-free
twin, or siblings with different findings. Everything but the finding comes from the group, and which member gets which
finding is drawn on its own, so nothing else in a scan can tell the label.

A layout is a module ``voco.phantom.layouts.<name>``, imported late, with

- ``GROUP``: cases per anatomy;
- ``draw(anatomy, scanner, rng) -> (anatomy, scanner)``: what this kind of study needs, such as the contrast phase;
- ``paint_mimics(canvas, anatomy, rng) -> None``: findings that every member shares, painted once per group;
- ``write_case(job: Job) -> (paths, row)``: plants the finding of one case, scans it (``job.scan``), writes its files;
- ``write_tables(out, rows) -> None``: the published tables, from the rows of all cases in order.

``row`` becomes a line of ``phantoms.jsonl``; ``Job.row`` makes it. Keys that start with ``_`` are for ``write_tables``
alone and are not written.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from voco.phantom.anatomy.anatomy import Anatomy, draw_anatomy
from voco.phantom.anatomy.canvas import Canvas
from voco.phantom.anatomy.patient import Edit, Painted, Patient, expose, paint
from voco.phantom.anatomy.scanner import Scanner, draw_scanner
from voco.short_repr import short_repr

LAYOUTS = ("rsna_pe", "lidc", "imageclef_tb", "rsna_trauma")
LEAST_CHANGE_HU = 20.0


def layout(name: str) -> ModuleType:
    """The module of a layout with disease."""
    return importlib.import_module(f"voco.phantom.layouts.{name}")


@dataclass
class Subject:
    """One anatomy and its scan setting, shared by the cases of a group. Painted once, copied for each scan.

    Attributes:
        key: what every random number comes from: cohort seed, layout, group.
        anatomy, scanner: after the layout's ``draw``.
    """

    key: tuple
    anatomy: Anatomy
    scanner: Scanner
    module: ModuleType
    size: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    _painted: dict = field(default_factory=dict)
    _shared: dict = field(default_factory=dict)

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """``make()``, done once for the group: plans and trees that all cases need."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def rng(self, *stream: str | int) -> np.random.Generator:
        """Random numbers that all cases of the group share."""
        from voco.rng import derive_seed

        return np.random.default_rng(derive_seed(*self.key, *stream))

    def painted(self, anatomy: Anatomy | None = None, scanner: Scanner | None = None) -> Painted:
        """The ideal image without findings, mimics included; another anatomy or scanner is another series."""
        anatomy, scanner = anatomy or self.anatomy, scanner or self.scanner
        key = (anatomy.phase, scanner.seed)
        if key not in self._painted:
            painted = paint(anatomy, scanner, self.size, self.spacing_mm)
            self.module.paint_mimics(painted.canvas, anatomy, self.rng("mimics"))
            self._painted[key] = painted
        return self._painted[key]


@dataclass(frozen=True)
class Job:
    """One case to write.

    Attributes:
        out: folder of the cohort.
        seed: of the cohort.
        index: of the case in the cohort.
        group, member: its anatomy, and its place among the cases of that anatomy.
        severity: size and contrast of findings: 0 plants nothing though labels stay, 1 moderate, 2 gross.
        subject: what the group shares.
    """

    out: Path
    seed: int
    index: int
    group: int
    member: int
    severity: float
    subject: Subject

    @property
    def planned_severity(self) -> float:
        """Severity that edits plant with: at severity 0 that of a moderate finding, which is then not scanned."""
        return self.severity or 1.0

    def rng(self, *stream: str | int) -> np.random.Generator:
        """Random numbers of this case alone: names, identifiers."""
        return self.subject.rng("case", self.index, *stream)

    def scan(
        self, edit: Edit | None = None, *, anatomy: Anatomy | None = None, scanner: Scanner | None = None
    ) -> Patient:
        """Scan the group's patient after ``edit(canvas, anatomy)``, which gets a copy of the ideal image.

        At severity 0 the edit is called all the same, because labels (which slices, which side) follow from what it
        plants, but on a copy that is thrown away: see ``planned_severity``.
        """
        painted = self.subject.painted(anatomy, scanner)
        name = f"PHANTOM-{self.index:04d}"
        if edit is not None and self.severity == 0:
            edit(painted.canvas.copy(), painted.anatomy)
            edit = None
        return expose(painted, name, edit=edit, keep=True)

    @property
    def pair(self) -> str:
        """Name of the anatomy; cohorts of other seeds hold other people, who must not be taken for these."""
        seed, layout = self.subject.key[:2]
        return f"{layout}-{self.group:04d}" if seed == 0 else f"{layout}-seed{seed}-{self.group:04d}"

    def row(self, patient: Patient, *, ids: list[str], label, lesions: list[dict], paths: list[Path], **more) -> dict:
        """The line of ``phantoms.jsonl``.

        Args:
            patient: one scan of the case.
            ids: the case ids under which a reader of this layout lists the scans.
            label: what is to be learned, as number, word or dictionary.
            lesions: what was planted, from ``Lesion.row``.
            paths: written scans.
            more: further keys.
        """
        return {
            **patient.parameters,
            "spacing_mm": patient.spacing_mm,
            "size": patient.scan.shape,
            "paths": [path.relative_to(self.out).as_posix() for path in paths],
            "ids": ids,
            "pair": self.pair,
            "label": label,
            "lesions": lesions,
            "severity": self.severity,
            **more,
        }


@short_repr
@dataclass(frozen=True)
class Lesion:
    """A planted finding: the voxels of the ideal image that it changed.

    Attributes:
        kind: such as ``filling_defect``.
        box: index box in the ideal image.
        mask: boolean array on the box.
        change_hu: mean change in the mask.
        details: more about it, ready for JSON.
    """

    kind: str
    box: tuple[slice, ...]
    mask: np.ndarray
    change_hu: float
    details: dict

    def areas_mm2(self, painted: Painted) -> np.ndarray:
        """Area in each slice of the scan, (D,): what lies in the thin slices that it averages."""
        _, dy, dx = painted.grid.spacing_mm
        area = np.zeros(painted.grid.size[0] * painted.slices)
        area[self.box[0]] = self.mask.sum(axis=(1, 2)) * (dy * dx)
        return area.reshape(-1, painted.slices).mean(axis=1)

    def row(self, painted: Painted) -> dict:
        """What ``phantoms.jsonl`` says of it; positions are LPS mm (x, y, z), as in the written headers."""
        grid = painted.canvas.grid
        index = [np.flatnonzero(self.mask.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        axes = grid.scanner_axes(self.box)
        low, high = ([float(axis[i[end]]) for axis, i in zip(axes, index)] for end in (0, -1))
        middle = [float((axis * w).sum() / w.sum()) for axis, w in zip(axes, self._profiles())]
        slices = np.flatnonzero(self.areas_mm2(painted) > 0)
        return {
            "type": self.kind,
            "centre_mm": [round(v, 2) for v in middle[::-1]],
            "extent_mm": [round(b - a + s, 2) for a, b, s in zip(low, high, grid.spacing_mm)][::-1],
            "slices": [int(slices[0]), int(slices[-1])],
            "volume_ml": round(float(self.mask.sum() * np.prod(grid.spacing_mm) / 1000), 4),
            "change_hu": round(self.change_hu, 1),
            **self.details,
        }

    def _profiles(self) -> list[np.ndarray]:
        return [self.mask.sum(axis=tuple(b for b in range(3) if b != a), dtype=float) for a in range(3)]


def contrast_share(severity: float) -> float:
    """Share of a finding's full difference to its surroundings: 0 at severity 0, all of it from 1 on."""
    return min(1.0, severity)


def size_share(severity: float) -> float:
    """Size of a finding over its moderate size: a half toward severity 0 (where contrast ends), 1.5 at severity 2."""
    return 0.5 + 0.5 * severity


def plant(
    canvas: Canvas,
    box: tuple[slice, ...] | None,
    kind: str,
    put: Callable[[], None],
    *,
    share: float = 1.0,
    **details,
) -> Lesion | None:
    """Plant one finding and note which voxels it changed by ``LEAST_CHANGE_HU`` or more.

    Args:
        canvas: ideal image; changed in place.
        box: index box that holds the finding (``canvas.grid.box``); None when it is outside the grid.
        kind: its name.
        put: paints it, within the box.
        share: of the full contrast, from ``contrast_share``: the least change shrinks with it, so that the same voxels
            belong to a faint finding.
        details: more to note.

    Returns:
        The finding, or None where nothing was changed.
    """
    if box is None:
        return None
    before = canvas.hu[box].copy()
    put()
    change = canvas.hu[box] - before
    mask = np.abs(change) >= LEAST_CHANGE_HU * share
    if not mask.any():
        return None
    return Lesion(kind, box, mask, float(change[mask].mean()), details)


def write_group(job: tuple) -> list[tuple[list[Path], dict]]:
    """Write the cases of one anatomy.

    Args:
        job: layout, folder, cohort seed, group, number of cases in the cohort, severity, size, spacing_mm.
    """
    from voco.rng import derive_seed

    name, out, seed, group, cases, severity, size, spacing_mm = job
    module = layout(name)
    key = (seed, name, group)
    anatomy = draw_anatomy(derive_seed(*key, "anatomy"))
    scanner = draw_scanner(derive_seed(*key, "scan"))
    anatomy, scanner = module.draw(anatomy, scanner, np.random.default_rng(derive_seed(*key, "draw")))
    subject = Subject(key, anatomy, scanner, module, size, spacing_mm)
    first = group * module.GROUP
    return [
        module.write_case(Job(out, seed, index, group, index - first, severity, subject))
        for index in range(first, min(first + module.GROUP, cases))
    ]
