"""From a data set to studies that are ready: read, split, prepared, with their targets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from voco.data.cache import PreparedVolume
from voco.data.cohort import prepare_together
from voco.data.doubts import doubt_notes
from voco.data.duplicates import Duplicates
from voco.data.fold import Splits
from voco.data.layouts.labeled import LabeledCase, LabeledManifest
from voco.data.manifest import Rejection, check_rejected
from voco.errors import InputError, ScanError
from voco.tasks.base import Task
from voco.tasks.slices import SliceTable
from voco.transfer.samples import StudyItem
from voco.transfer.views import View


@dataclass(frozen=True)
class Study:
    """A labeled case that is prepared.

    Attributes:
        labeled: the case.
        targets: of the study, per output of the task; NaN = not known.
        paths: prepared volume, and the scan inside its mask where that is a channel.
        shape: (D, H, W) of both.
    """

    labeled: LabeledCase
    targets: dict[str, float]
    paths: tuple[Path, ...]
    shape: tuple[int, int, int]

    @property
    def id(self) -> str:
        return self.labeled.id

    @cached_property
    def slices(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) fractional D index and (P,) label of each place that has slice labels; both empty without any."""
        table = SliceTable.of(PreparedVolume.open(self.paths[0]).meta) if self.labeled.slices else None
        if table is None:
            return np.zeros(0), np.zeros(0)
        return table.positions(table.labels(self.labeled.slices))

    def window_targets(self, task: Task, view: View, start: int) -> dict[str, float]:
        """Targets of the window whose first slice is ``start``."""
        index, labels = self.slices
        inside = (index >= start - 0.5) & (index < start + view.size[0] - 0.5)
        return task.window_targets(labels[inside])

    def item(self, task: Task, *, with_slices: bool) -> StudyItem:
        """As a training sample is made of it."""
        index, labels = self.slices if with_slices else (np.zeros(0), np.zeros(0))
        return StudyItem(self.paths, self.shape, self.targets, task.stratum(self.labeled), index, labels)


@dataclass
class Cohort:
    """Studies of one run.

    Attributes:
        studies: by case id; those that could not be prepared are missing.
        entries: prepared entries by case id, of the first version of each scan.
        rejected: scans and rows that cannot be used, with the reason.
        notes: sentences for the user.
        doubts: what is doubtful about scans that are used.
        counts: numbers for the console and ``run.json``.
        duplicates: scans that are there more than once.
    """

    manifest: LabeledManifest
    studies: dict[str, Study]
    entries: dict
    rejected: list[Rejection]
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    duplicates: Duplicates = field(default_factory=Duplicates)

    @property
    def synthetic(self) -> int:
        """How many of the studies were drawn."""
        return sum(self.entries[name].synthetic for name in self.studies)

    @property
    def fingerprint(self) -> str:
        """Hash of the studies, their labels and their preparation; the same data give the same one."""
        digest = hashlib.sha256()
        for name, study in sorted(self.studies.items()):
            row = f"{name}\t{study.labeled.patient}\t{sorted(study.targets.items())}\t{study.shape}\n"
            digest.update(row.encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def check(self, max_rejected: float) -> None:
        """Stop where too little of what was given can be used.

        Raises:
            InputError: more than ``max_rejected`` of the scans unusable.
        """
        check_rejected(self.counts["scans"], self.rejected, max_rejected)

    def write(self, out: Path, splits: Splits | None = None) -> None:
        """Leave ``rejected.csv`` in a run folder, which is made if missing, and with a split ``duplicates.csv``."""
        from voco.data.manifest import write_rejected

        out.mkdir(parents=True, exist_ok=True)
        write_rejected(out / "rejected.csv", self.rejected)
        if splits is not None:
            self.duplicates.write(out, [fold.parts for fold in splits.folds])


def prepare_studies(
    manifest: LabeledManifest,
    task: Task,
    view: View,
    cache: Path,
    *,
    mask_channel: bool,
    workers: int,
    offset: float | None = None,
    rank: int,
    world: int,
    say: Callable[[str], None],
    targets: bool = True,
) -> Cohort:
    """Prepare every case of a manifest for a view.

    Args:
        mask_channel: also prepare each scan inside its mask, as a second channel.
        offset: HU to add to the values of every scan.
        targets: whether the cases have labels.
    """
    cases = [labeled.case for labeled in manifest.cases]
    versions = [replace(view.prepare_settings(), offset=offset)]
    if mask_channel:
        versions.append(replace(versions[0], mask="fill"))
    found, rejected = [], list(manifest.rejected)
    for settings in versions:
        entries, lost = prepare_together(
            cases, manifest.root, cache, settings, workers=workers, rank=rank, world=world, say=say
        )
        found.append({entry.case.id: entry for entry in entries})
        rejected += [item for item in lost if item not in rejected]
    doubts = doubt_notes(found[0].values())
    for note in doubts:
        say(f"note: {note}")
    studies = {}
    for labeled in manifest.cases:
        entries = [version.get(labeled.id) for version in found]
        if any(entry is None for entry in entries):
            continue
        study = Study(labeled, {}, tuple(entry.path for entry in entries), tuple(entries[0].shape))
        try:
            if targets:
                study = replace(study, targets=study_targets(task, study))
        except ScanError as error:
            rejected.append(Rejection(labeled.case.path, str(error)))
            continue
        studies[labeled.id] = study
    if not studies:
        check_rejected(len(rejected), rejected, 0.0)
        raise InputError(f"{manifest.root}: no study is left to work with")
    counts = {
        "scans": len(manifest.cases) + len(manifest.rejected),
        "studies": len(studies),
        "patients": len({study.labeled.patient for study in studies.values()}),
        "rejected_scans": len(rejected),
    }
    return Cohort(manifest, studies, found[0], rejected, counts, list(manifest.notes), doubts)


def join_duplicates(cohort: Cohort, duplicates: Duplicates) -> Cohort:
    """The cohort with one name for all patients who share a scan, so that splits and intervals take them for one."""
    names = duplicates.groups

    def joined(labeled: LabeledCase) -> LabeledCase:
        return replace(labeled, case=replace(labeled.case, patient=names.get(labeled.patient, labeled.patient)))

    if not names:
        return replace(cohort, duplicates=duplicates)
    studies = {name: replace(study, labeled=joined(study.labeled)) for name, study in cohort.studies.items()}
    order = list(dict.fromkeys(names.get(patient, patient) for patient in cohort.manifest.order))
    manifest = replace(cohort.manifest, cases=[joined(case) for case in cohort.manifest.cases], order=order)
    counts = cohort.counts | {"patients": len({study.labeled.patient for study in studies.values()})}
    return replace(cohort, manifest=manifest, studies=studies, counts=counts, duplicates=duplicates)


def study_targets(task: Task, study: Study) -> dict[str, float]:
    """Targets of a study; those that hang on where its slices lie need the prepared scan."""
    if task.slice_labels and study.labeled.slices:
        return task.targets_from_slices(study.labeled, *study.slices)
    return task.targets(study.labeled)


def check_varied(task: Task, manifest: LabeledManifest) -> None:
    """Stop before anything is computed where no label tells one case from another.

    Raises:
        InputError: every output has one value only.
    """
    rows = [task.targets(case) for case in manifest.cases]
    found = {o.name: {row[o.name] for row in rows if np.isfinite(row[o.name])} for o in task.outputs}
    if all(len(values) < 2 for values in found.values()):
        words = ", ".join(
            f"{name}: {next(iter(values)):g}" if values else f"{name}: none" for name, values in found.items()
        )
        raise InputError(
            f"all {len(rows)} cases have the same labels ({words}), so nothing can be learned; add cases of another"
        )


def pick(cohort: Cohort, ids: Sequence[str]) -> list[Study]:
    """Studies of these cases, those that were rejected left out."""
    return [cohort.studies[name] for name in ids if name in cohort.studies]
