"""Which scans there are and whose they are: a folder, a CSV, a Decathlon JSON or an nnssl JSON -> cases."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from voco.data.asides import MASK, find_asides, notes_of
from voco.data.manifest_formats import HELDOUT, TEST, TRAIN, Listing, Row, read_list
from voco.data.manifest_patients import assign_patients, exclude_patients
from voco.data.progress import Progress
from voco.data.walk import is_foreign, stem, walk_files
from voco.errors import InputError
from voco.files import write_text

_LISTED_REASONS = 5


@dataclass(frozen=True)
class Case:
    """One scan of a cohort.

    Attributes:
        id: unique in the cohort, safe as a file name, the same whenever the cohort is read.
        path: relative to the root, posix; a file, or the folder of a DICOM series.
        patient: cases of one patient stay together.
        series: SeriesInstanceUID.
        files: of a DICOM series, relative to the root.
        split: train or heldout, where the list of scans says so.
        mask: file of a mask of the scan, relative to the root.
    """

    id: str
    path: str
    patient: str
    series: str | None = None
    files: tuple[str, ...] = ()
    split: str | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Rejection:
    """A scan that cannot be used, why, and whose it is, where that is known."""

    path: str
    reason: str
    patient: str = ""


@dataclass
class Manifest:
    """A cohort: scans, what was rejected, every DICOM series found (rows of ``series.csv``), sentences for the user."""

    root: Path
    cases: list[Case] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    series: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_manifest(
    root: str | Path,
    *,
    select: str = "thinnest_axial",
    exclude: str | Path | None = None,
    patient_regex: str | None = None,
    progress: bool = False,
    workers: int = 1,
    test: bool = False,
) -> Manifest:
    """List the scans of a cohort.

    Args:
        root: a folder, searched at any depth for NIfTI, MHD/MHA, NRRD and DICOM; or a CSV with the columns path,
            patient, series, case, split; or a Decathlon or nnssl JSON. Paths in lists are relative to the list.
        select: which series of a DICOM study is taken, see ``voco.data.dicom.select_series``.
        exclude: file with patients to leave out, one a line: PatientID, hashed PatientID, folder, file or case id.
        patient_regex: first group (or all) of its first match in the relative path is the patient.
        progress: show what is being looked at on stderr.
        workers: processes that read DICOM headers.
        test: also take what a list marks as test. By default it is left out of everything.

    Returns:
        Cases sorted by path.

    Raises:
        InputError: nothing usable is there, or a setting or list that cannot be used.
    """
    root = Path(root)
    if not root.exists():
        raise InputError(f"{root} does not exist; expected a folder with CT scans, or a CSV or JSON that lists them")
    scan = _Scan(root if root.is_dir() else root.parent, select, workers, progress)
    scan.folder() if root.is_dir() else scan.listing(read_list(root), test)
    manifest = Manifest(scan.root, scan.cases, scan.rejected, scan.series, scan.notes)
    _refuse_duplicates(manifest)
    _check_not_empty(root, manifest)
    manifest.cases, notes = assign_patients(manifest.cases, patient_regex)
    manifest.notes += notes
    manifest.cases = sorted(name_cases(manifest.cases), key=lambda case: (case.path, case.id))
    # a list or a pattern may name a patient otherwise than the headers do
    named = {(case.path, case.series): case.patient for case in manifest.cases}
    for row in manifest.series:
        row["patient"] = named.get((row["path"], row["series"]), row["patient"])
    if exclude is not None:
        manifest.cases, notes = exclude_patients(manifest.cases, Path(exclude))
        manifest.notes += notes
        if not manifest.cases:
            raise InputError(f"{exclude} excludes every patient of {root}; nothing is left")
    return manifest


class _Scan:
    """Collects cases whose patient may still be open ("") and whose id is what the list says, or empty."""

    def __init__(self, root: Path, select: str, workers: int, progress: bool):
        self.root, self.select, self.workers, self.progress = root, select, workers, progress
        self.cases: list[Case] = []
        self.rejected: list[Rejection] = []
        self.series: list[dict] = []
        self.notes: list[str] = []

    def folder(self) -> None:
        from voco.data.read import is_volume_file

        volumes, other, foreign = [], [], []
        for name in walk_files(self.root, self._unreadable):
            if is_foreign(name):
                foreign.append(name)
            elif not is_volume_file(name):
                other.append(name)
            else:
                volumes.append(name)
        asides = find_asides(self.root, volumes)
        self.notes += notes_of(asides)
        apart = {aside.path for aside in asides}
        self.cases += [Case("", name, "") for name in volumes if name not in apart]
        if foreign:
            self.notes.append(
                f"{len(foreign)} files of kinds that are not read were left out (first: {foreign[0]}): unpack "
                "archives, convert other formats to NIfTI, NRRD or MetaImage"
            )
        self.dicom(other)

    def _unreadable(self, error: OSError) -> None:
        folder = os.path.relpath(error.filename or self.root, self.root)
        self.rejected.append(Rejection(folder, f"this folder cannot be searched: {error.strerror}"))

    def dicom(self, files: Sequence[str], row: Row | None = None) -> int:
        """Add the series that the rule takes among ``files``; with a row, the one it names. Returns how many."""
        from voco.data.dicom import find_series, select_series

        bar = Progress("look for DICOM", len(files), self.progress and row is None, "files")
        try:
            found = find_series(
                self.root, files, workers=self.workers, progress=lambda done, total: bar.step(done - bar.done)
            )
        finally:
            bar.close()
        wanted = row.series if row else None
        records = select_series(found, self.select)
        if wanted is not None:
            records = [record for record in records if record.series == wanted]
        # As select_series parts them: one study UID under two patients is two studies.
        studies = {(record.patient, record.study) for record in records if record.decision == "kept"}
        taken = 0
        for record in records:
            keep = record.decision == "kept" or (wanted is not None and record.problem is None)
            self.series.append({**record.row(), **({"decision": "kept"} if keep else {})})
            if keep:
                taken += 1
                patient = (row.patient if row else None) or record.patient or ""
                name = row.case if row and row.case and taken == 1 else ""
                split = row.split if row else None
                self.cases.append(Case(name, record.path, patient, record.series, record.files, split))
            elif record.decision == "rejected" and self._is_lost(record, studies):
                self.rejected.append(Rejection(record.path, record.reason))
        return taken

    def _is_lost(self, record, studies: set) -> bool:
        """Scouts, reports and other modalities were never scans; a broken series counts if its study has no other."""
        if not record.series:
            return True
        return record.kind not in ("other", "localizer", "monitoring", "mask") and (
            self.select == "all" or not record.study or (record.patient, record.study) not in studies
        )

    def listing(self, listing: Listing, test: bool) -> None:
        from voco.data.read import is_volume_file

        self.notes += listing.notes
        self.rejected += [Rejection(*item) for item in listing.rejected]
        rows = listing.rows if test else [row for row in listing.rows if row.split != TEST]
        if len(rows) < len(listing.rows):
            self.notes.append(f"{len(listing.rows) - len(rows)} scans marked as test were left out")
        bar = Progress("look at list", len(rows), self.progress, "rows")
        paths = [Path(os.path.relpath(row.path, self.root)).as_posix() for row in rows]
        volumes = [path for path, row in zip(paths, rows) if is_volume_file(path) and row.path.is_file()]
        masks = {a.path: a.seen for a in find_asides(self.root, volumes, by_name=False) if a.kind == MASK}
        for row, relative in zip(rows, paths):
            if not row.path.exists():
                name = row.name if relative.startswith("..") else relative
                self.rejected.append(Rejection(name, "no such file or folder"))
            elif relative in masks:
                reason = f"a mask, not a scan: {masks[relative]}; name the scan itself in the list"
                self.rejected.append(Rejection(relative, reason))
            elif row.path.is_file() and is_volume_file(row.path):
                self.cases.append(Case(row.case or "", relative, row.patient or "", row.series, (), row.split))
            else:
                self._dicom_row(row, relative)
            bar.step()
        bar.close()

    def _dicom_row(self, row: Row, relative: str) -> None:
        before = len(self.cases)
        folder = row.path if row.path.is_dir() else row.path.parent
        prefix = relative if row.path.is_dir() else os.path.dirname(relative)
        names = [os.path.join(prefix, name) for name in walk_files(folder, self._unreadable)]
        rejected = len(self.rejected)
        self.dicom(names, row)
        if row.path.is_file():
            # One slice stands for its series.
            self.cases[before:] = [case for case in self.cases[before:] if relative in case.files]
        if len(self.cases) == before and len(self.rejected) == rejected:
            what = f"series {row.series}" if row.series else "usable CT series"
            self.rejected.append(Rejection(relative, f"no {what} here"))


def _refuse_duplicates(manifest: Manifest) -> None:
    seen, kept = set(), []
    for case in manifest.cases:
        key = (case.path, case.series, case.files)
        if key in seen:
            manifest.rejected.append(Rejection(case.path, "listed twice; the first entry is used"))
        else:
            seen.add(key)
            kept.append(case)
    manifest.cases = kept


def _check_not_empty(root: Path, manifest: Manifest) -> None:
    if manifest.cases:
        return
    if manifest.rejected:
        check_rejected(len(manifest.rejected), manifest.rejected, 0.0)
    if manifest.series:
        reasons = Counter(row["reason"] for row in manifest.series).most_common(3)
        why = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        raise InputError(f"{root} holds {len(manifest.series)} DICOM series, and none can be used: {why}")
    what = "no file" if root.is_dir() else "no entry"
    notes = " ".join(f"({note})" for note in manifest.notes)
    raise InputError(f"{root} has {what} that is a CT scan: expected NIfTI, MHD/MHA, NRRD or DICOM {notes}".rstrip())


def name_outside(path: str, root: Path) -> str:
    """A path relative to the root, as it is; one outside of it by its place, not by the way there."""
    return os.path.abspath(root / path) if path.startswith("..") else path


def name_cases(cases: Sequence[Case]) -> list[Case]:
    """Give each case its id: the path in letters that every file system takes, and a digest where that is ambiguous."""
    plain = [case.id or _plain_id(case) for case in cases]
    count = Counter(name.lower() for name in plain)
    named = [
        replace(case, id=name if count[name.lower()] == 1 else f"{name}-{_digest(case.path, case.series, case.files)}")
        for case, name in zip(cases, plain)
    ]
    for case in named:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", case.id):
            raise InputError(f"case id {case.id!r} of {case.path} may hold letters, digits, '.', '_' and '-' only")
    return named


def _plain_id(case: Case) -> str:
    name = stem(case.path) if not case.files else case.path
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "__")).lstrip("._-") or "scan"
    changed = safe != name.replace("/", "__") or "__" in name or len(safe) > 100
    if case.series is not None:
        return f"{safe[:80]}-{_digest(case.path, case.series)}"
    return f"{safe[:80]}-{_digest(case.path)}" if changed else safe


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def split_patients(cases: Sequence[Case], heldout: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Part cases into training and held-out by patient.

    A list that says which are which is obeyed. Otherwise patients are ordered by a hash of (seed, patient) and the
    first share is held out: the order of the files does not matter, and a patient who joins moves few others.

    Args:
        cases: of a manifest.
        heldout: share of patients in [0, 1); above 0, at least one of two or more patients is held out.
        seed: another seed, another choice.

    Returns:
        (training cases, held-out cases), each in the order given.

    Raises:
        InputError: ``heldout`` out of range, or a list that puts a patient on both sides.
    """
    if not 0 <= heldout < 1:
        raise InputError(f"the held-out share is {heldout}; expected a number from 0 to below 1, such as 0.1")
    patients = sorted({case.patient for case in cases})
    chosen = {case.patient for case in cases if case.split == HELDOUT}
    if chosen:
        both = sorted(chosen & {case.patient for case in cases if case.split in (TRAIN, None)})
        if both:
            raise InputError(
                f"{len(both)} patients are both in the training and in the held-out part of the list "
                f"({', '.join(both[:_LISTED_REASONS])}); a patient belongs to one"
            )
    elif heldout > 0 and len(patients) > 1:
        count = min(max(1, round(heldout * len(patients))), len(patients) - 1)
        ranked = sorted(patients, key=lambda patient: _rank(seed, patient))
        chosen = set(ranked[:count])
    return [c for c in cases if c.patient not in chosen], [c for c in cases if c.patient in chosen]


def deal_patients(patients: Iterable[str], folds: int, seed: int) -> list[set[str]]:
    """Deal patients into folds whose sizes differ by one at most, as a function of the seed and of who they are.

    Args:
        patients: names; the order does not matter.
        folds: at least 2.
        seed: another seed, another deal.

    Raises:
        InputError: fewer patients than folds.
    """
    ranked = sorted(set(patients), key=lambda patient: (_rank(seed, patient), patient))
    if not 2 <= folds <= len(ranked):
        raise InputError(
            f"{folds} folds of {len(ranked)} patients cannot be dealt: a fold needs a patient, and one fold alone "
            "leaves nobody to train on; expected --eval.cross from 2 to the number of patients, or 0"
        )
    return [set(ranked[number::folds]) for number in range(folds)]


def _rank(seed: int, patient: str) -> bytes:
    # A patient may be named by a folder, whose name need not be UTF-8.
    return hashlib.sha256(f"{seed}\n{patient}".encode(errors="surrogateescape")).digest()


def check_rejected(total: int, rejected: Sequence[Rejection], share: float) -> None:
    """Stop where too many scans cannot be used.

    Args:
        total: scans in all, usable or not.
        rejected: those that are not.
        share: largest share that is tolerated.

    Raises:
        InputError: more than that are rejected; the message lists the first reasons.
    """
    if not rejected or len(rejected) <= share * total:
        return
    lines = [f"  {item.path}: {item.reason}" for item in rejected[:_LISTED_REASONS]]
    if len(rejected) > _LISTED_REASONS:
        lines.append(f"  and {len(rejected) - _LISTED_REASONS} more")
    what = f"more than the tolerated share of {share:.0%}; mend or remove them, or raise max_rejected"
    if len(rejected) >= total:
        what = "so nothing is left"
    raise InputError(f"{len(rejected)} of {total} scans cannot be used, {what}:\n" + "\n".join(lines))


def write_rejected(path: str | Path, rejected: Sequence[Rejection]) -> None:
    """Write ``rejected.csv``: path, reason, patient."""
    _write_rows(path, ["path", "reason", "patient"], [asdict(item) for item in rejected])


def write_series(path: str | Path, rows: Sequence[dict]) -> None:
    """Write ``series.csv``: every DICOM series found, with the decision and its reason."""
    _write_rows(path, list(rows[0]) if rows else ["path"], rows)


def _write_rows(path: str | Path, columns: list[str], rows: Sequence[dict]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
