"""From a data folder to prepared files, split by patient: what every pretraining method starts from."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from voco.data.doubts import doubt_notes, with_doubts
from voco.data.duplicates import Duplicates, find_duplicates, refuse_parted
from voco.data.manifest import (
    Case,
    Rejection,
    build_manifest,
    check_rejected,
    deal_patients,
    split_patients,
    write_rejected,
    write_series,
)
from voco.data.prepare import PreparedEntry, PrepareSettings, case_key, prepare
from voco.errors import InputError, ScanError
from voco.files import write_json

_WAIT_SECONDS = 2.0
_PATIENCE = 150  # waits between two messages


@dataclass(frozen=True)
class Cohort:
    """Prepared scans of one run.

    Attributes:
        train, heldout: prepared files grouped by patient; patients who share a scan are one.
        rejected: scans that cannot be used, with the reason.
        series: rows of ``series.csv``; empty without DICOM.
        fingerprint: hash of the scans used, their preparation and the split; the same data give the same one.
        counts: numbers for the console and ``run.json``.
        duplicates: scans that are there more than once.
        notes: what is doubtful about scans that are used, as sentences.
    """

    train: list[list[PreparedEntry]]
    heldout: list[list[PreparedEntry]]
    rejected: list[Rejection]
    series: list[dict]
    fingerprint: str
    counts: dict[str, int]
    duplicates: Duplicates = field(default_factory=Duplicates)
    notes: tuple[str, ...] = ()

    def write(self, out: Path) -> None:
        """Leave ``rejected.csv``, ``duplicates.csv`` and, with DICOM, ``series.csv`` in a run folder."""
        out.mkdir(parents=True, exist_ok=True)
        self.duplicates.write(out, [_sides(self.train, self.heldout)])
        write_rejected(out / "rejected.csv", self.rejected)
        if self.series:
            write_series(out / "series.csv", self.series)

    def check(self, max_rejected: float) -> None:
        """Stop before training on too little of what was given.

        Raises:
            InputError: more than ``max_rejected`` of the scans unusable, or nothing to train on.
        """
        check_rejected(self.counts["scans"], self.rejected, max_rejected)
        if not self.train:
            raise InputError(f"no scan is left to train on: {self.counts}; see rejected.csv and --data.exclude")

    def folds(self, count: int, seed: int) -> list[Cohort]:
        """The same scans ``count`` times, each time without another fold of the patients; all of them once held out.

        Raises:
            InputError: fewer patients than folds, or a list that already says who is held out.
        """
        if self.heldout:
            raise InputError(
                f"the list of scans says by itself that {len(self.heldout)} patients are held out, and --eval.cross "
                f"{count} holds every patient out once: take one of the two, the list without these marks (or these "
                "patients), or --eval.cross 0"
            )
        dealt = deal_patients([patient[0].case.patient for patient in self.train], count, seed)
        parts = []
        for held in dealt:
            sides = ([p for p in self.train if (p[0].case.patient in held) == side] for side in (False, True))
            parts.append(self._split(*sides))
        return parts

    def _split(self, train: list[list[PreparedEntry]], heldout: list[list[PreparedEntry]]) -> Cohort:
        counts = self.counts | _counts(train, heldout)
        return replace(self, train=train, heldout=heldout, fingerprint=_fingerprint(train, heldout), counts=counts)


def load_cohort(
    root: str,
    cache: Path,
    settings: PrepareSettings,
    *,
    select: str,
    exclude: str | None,
    patient_regex: str | None,
    heldout: float,
    seed: int,
    workers: int,
    allow_seen: bool = False,
    rank: int = 0,
    world: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Cohort:
    """List the scans, prepare what is not prepared yet, and split by patient.

    With several processes only the first one prepares; the others wait for its result on disk, before any process
    group exists, because preparation may take hours and collective time-outs are minutes.

    Scans that cannot be used are listed, not judged: see ``Cohort.check``. Patients who share a scan are one patient
    for the split and in training.

    Raises:
        InputError: the list of scans puts the same scan on two sides, and ``allow_seen`` is not given.
    """
    manifest = build_manifest(root, select=select, exclude=exclude, patient_regex=patient_regex, progress=rank == 0)
    say(f"found {len(manifest.cases)} scans of {len({c.patient for c in manifest.cases})} patients in {root}")
    for note in manifest.notes:
        say(note)
    entries, rejected = prepare_together(
        manifest.cases, manifest.root, cache, settings, workers=workers, rank=rank, world=world, say=say
    )
    series = with_doubts(manifest.series, entries, rejected)
    rejected = [*manifest.rejected, *rejected]
    by_case = {e.case.id: e for e in entries}
    duplicates = find_duplicates(entries, cache, rank=rank, world=world, say=say)
    cases = [e.case for e in entries]
    names = duplicates.groups
    if any(case.split is not None for case in cases):
        parts = {case.id: case.split or "train" for case in cases}
        option = "" if allow_seen else "--data.allow_seen true"
        if parted := refuse_parted(duplicates, [parts], "the list of scans", option):
            names = {}
            say(f"note: {len(parted)} pairs of the same scan lie on two sides of the list's split (--data.allow_seen)")
    together = [replace(case, patient=names.get(case.patient, case.patient)) for case in cases]
    train, held = (_by_patient(side, by_case) for side in split_patients(together, heldout, seed))
    scans = len(manifest.cases) + len(manifest.rejected)
    return Cohort(
        train=train,
        heldout=held,
        rejected=rejected,
        series=series,
        fingerprint=_fingerprint(train, held),
        counts={"scans": scans, **_counts(train, held), "rejected_scans": len(rejected)},
        duplicates=duplicates,
        notes=tuple(doubt_notes(entries)),
    )


def _sides(train, heldout) -> dict[str, str]:
    """Case id to side."""
    sides = (("train", train), ("heldout", heldout))
    return {entry.case.id: name for name, patients in sides for patient in patients for entry in patient}


def prepare_together(
    cases: Sequence[Case],
    root: Path,
    cache: Path,
    settings: PrepareSettings,
    *,
    workers: int,
    rank: int = 0,
    world: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[PreparedEntry], list[Rejection]]:
    """Prepare what is not prepared yet, once for all processes: the first does it, the others wait for its result."""
    cache = Path(cache)
    done = cache / "cohorts" / f"{_key(cases, root, settings)}.json"
    if rank != 0:
        return _await(done, cases)
    result = prepare(cases, root, cache, settings, workers=max(1, workers), progress=True)
    say(f"prepared {result.made} scans, {result.reused} were ready in {cache}")
    if world > 1:
        _publish(done, result.entries, result.rejected)
    return result.entries, result.rejected


def _by_patient(cases: Sequence[Case], by_case: dict[str, PreparedEntry]) -> list[list[PreparedEntry]]:
    groups: dict[str, list[PreparedEntry]] = {}
    for case in sorted(cases, key=lambda c: c.id):
        groups.setdefault(case.patient, []).append(by_case[case.id])
    return [groups[patient] for patient in sorted(groups)]


def _counts(train: Sequence[Sequence[PreparedEntry]], heldout: Sequence[Sequence[PreparedEntry]]) -> dict[str, int]:
    counts = {}
    for name, patients in (("train", train), ("heldout", heldout)):
        counts |= {f"{name}_scans": sum(len(found) for found in patients), f"{name}_patients": len(patients)}
    drawn = sum(entry.synthetic for patients in (train, heldout) for found in patients for entry in found)
    return counts | ({"synthetic_scans": drawn} if drawn else {})


def _fingerprint(train: Sequence[Sequence[PreparedEntry]], held: Sequence[Sequence[PreparedEntry]]) -> str:
    digest = hashlib.sha256()
    for name, patients in (("train", train), ("heldout", held)):
        # patients who share a scan count under the first one's name: joined otherwise, it is another split
        named = ((found[0].case.patient, entry) for found in patients for entry in found)
        for patient, entry in sorted(named, key=lambda row: row[1].case.id):
            # not the cache file's name, which holds file times: a copy of the data must count as the same data
            row = f"{name}\t{entry.case.id}\t{patient}\t{tuple(entry.shape)}\t{tuple(entry.spacing_mm)}\n"
            digest.update(row.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _key(cases: Sequence[Case], root: Path, settings: PrepareSettings) -> str:
    """Hash of what will be prepared and of the state of its files: an old result is never taken for this one."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda c: c.id):
        try:
            key = case_key(case, root, settings)
        except ScanError as error:
            key = str(error)
        digest.update(f"{case.id}\t{key}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _publish(done: Path, entries: Sequence[PreparedEntry], rejected: Sequence[Rejection]) -> None:
    record = {
        "entries": {
            e.case.id: [str(e.path), list(e.shape), list(e.spacing_mm), e.bytes, e.synthetic, list(e.notes)]
            for e in entries
        },
        "rejected": [[r.path, r.reason, r.patient] for r in rejected],
    }
    write_json(done, record)


def _await(done: Path, cases: Sequence[Case]) -> tuple[list[PreparedEntry], list[Rejection]]:
    """Wait for the first process. It cannot be missed: when that process fails, the launcher ends this one too."""
    by_id = {c.id: c for c in cases}
    waited = 0
    while True:
        waited += 1
        if waited % _PATIENCE == 0 and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(
                f"waiting for the first process to prepare the scans into {done.parent.parent}. If this machine does "
                "not share that folder, stop, run `voco prepare` there and give a shared folder as --data.cache",
                file=sys.stderr,
                flush=True,
            )
        if done.is_file():
            record = json.loads(done.read_text())
            entries = [
                PreparedEntry(by_id[i], Path(path), tuple(shape), tuple(spacing), bytes_, drawn, tuple(notes))
                for i, (path, shape, spacing, bytes_, drawn, notes) in record["entries"].items()
            ]
            if all(e.path.is_file() for e in entries):
                return entries, [Rejection(*item) for item in record["rejected"]]
        time.sleep(_WAIT_SECONDS)
