"""The same scan twice in a cohort, under any names: found, proven on the voxels, kept together by every split."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from voco.data.prepare import PreparedEntry
from voco.errors import InputError
from voco.files import write_json, write_rows

FILE = "duplicates.csv"
# Correlation of the fine detail of two aligned scans from which on they are one; measured in docs/leaks.md.
CONFIRMED = 0.78
# Where landmarks leave no doubt, less is asked: noise that one of two resamplings took away lowers the correlation.
SURE_SCORE, SURE_CONFIRMED = 6.0, 0.6
_VERSION = 3
_SHOWN = 5
_WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Pair:
    """Two scans that are one, or may be.

    Attributes:
        path_a, path_b, case_a, case_b, patient_a, patient_b: which scans.
        how: see ``voco.data.alike.Alike``.
        score: likewise.
        agreement: correlation of the aligned fine detail; 1 for equal voxels.
        difference_hu: mean absolute difference of the aligned voxels, in the window.
        overlap: share of the smaller scan's tissue that was compared.
        confirmed: whether they are taken for one scan.
    """

    path_a: str
    path_b: str
    case_a: str
    case_b: str
    patient_a: str
    patient_b: str
    how: str
    score: float
    agreement: float
    difference_hu: float
    overlap: float
    confirmed: bool


@dataclass(frozen=True)
class Duplicates:
    """All pairs of a cohort.

    Attributes:
        pairs: confirmed ones and others.
        scans: how many there are.
    """

    pairs: tuple[Pair, ...] = ()
    scans: int = 0

    @property
    def confirmed(self) -> list[Pair]:
        """Pairs under two patients' names that are one scan."""
        return [pair for pair in self.pairs if pair.confirmed and pair.patient_a != pair.patient_b]

    @property
    def groups(self) -> dict[str, str]:
        """Patients who share a scan with others, each with the name of the group: that of its first patient."""
        parent: dict[str, str] = {}

        def root(name: str) -> str:
            while parent.setdefault(name, name) != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        for pair in self.confirmed:
            one, two = sorted((root(pair.patient_a), root(pair.patient_b)))
            parent[two] = one
        return {name: root(name) for name in sorted(parent)}

    def parted(self, parts: Mapping[str, str]) -> list[Pair]:
        """Confirmed pairs whose cases lie in different parts.

        Args:
            parts: case id to part.
        """
        return [p for p in self.confirmed if parts.get(p.case_a) != parts.get(p.case_b)]

    def text(self) -> str:
        """What to tell the user, in one or two lines; empty where nothing was found."""
        groups, open_pairs = self.groups, [p for p in self.pairs if not p.confirmed]
        if not groups and not open_pairs:
            return ""
        lines = []
        if groups:
            lines.append(
                f"the same scan under several patients' names: {len(groups)} patients are {len(set(groups.values()))}, "
                f"who stay together in every split ({FILE}); false merges to expect among {self.scans} scans: "
                f"at most {expected_false_merges(self.scans):.1g}"
            )
        if open_pairs:
            lines.append(f"{len(open_pairs)} pairs of scans look alike but did not prove to be one; see {FILE}")
        return "; ".join(lines)

    def write(self, out: Path, parts: Sequence[Mapping[str, str]] = ()) -> None:
        """Leave ``duplicates.csv`` in a run folder; without pairs there is none.

        Args:
            out: folder.
            parts: case id to part, of each fold of a split that was kept although it parts them.
        """
        if not self.pairs:
            (out / FILE).unlink(missing_ok=True)
            return
        names = ("path_a", "path_b", "case_a", "case_b", "patient_a", "patient_b", "how", "score", "agreement")
        rows = [(*names, "difference_hu", "overlap", "done")]
        apart = {(p.case_a, p.case_b) for fold in parts for p in self.parted(fold)}
        for pair in self.pairs:
            values = [getattr(pair, name) for name in names[:7]]
            numbers = [f"{getattr(pair, name):.4g}" for name in ("score", "agreement", "difference_hu", "overlap")]
            rows.append((*values, *numbers, _done(pair, (pair.case_a, pair.case_b) in apart)))
        write_rows(out / FILE, rows)


def _done(pair: Pair, parted: bool) -> str:
    if not pair.confirmed:
        return "listed only"
    if pair.patient_a == pair.patient_b:
        return "nothing: one patient"
    return "parted by the split that was given" if parted else "kept together"


def find_duplicates(
    entries: Sequence[PreparedEntry],
    cache: Path,
    *,
    rank: int = 0,
    world: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Duplicates:
    """The same scan twice among prepared scans.

    Equal voxels are one scan. What is alike by landmarks or picture is brought together and compared voxel by voxel.
    Scans of one patient are not compared further than by their hashes. The result is kept in the cache, where the
    other processes of a run wait for it.

    Args:
        entries: prepared scans.
        cache: folder of the prepared scans.
        rank, world: this process and all of them; the first one looks.
        say: told what is found.

    Raises:
        InputError: a prepared scan is gone, or of an earlier version.
    """
    entries = sorted(entries, key=lambda entry: entry.case.id)
    path = Path(cache) / "cohorts" / f"{_key(entries)}.duplicates.json"
    while rank != 0 and not path.is_file():
        time.sleep(_WAIT_SECONDS)
    if path.is_file():
        pairs = json.loads(path.read_text())
        found = Duplicates(tuple(Pair(**pair) for pair in pairs), len(entries))
    else:
        found = Duplicates(tuple(_pairs(entries)), len(entries))
        _keep(path, found, needed=world > 1)
    if text := found.text():
        say(text)
    return found


def _keep(path: Path, found: Duplicates, needed: bool) -> None:
    try:
        write_json(path, [asdict(pair) for pair in found.pairs])
    except OSError as error:
        if needed:  # a complete cache may be read-only, but then nobody else learns of the result
            raise InputError(f"{path} cannot be written ({error.strerror}), and other processes wait for it") from None


def _key(entries: Sequence[PreparedEntry]) -> str:
    digest = hashlib.sha256(f"{_VERSION} {CONFIRMED}\n".encode())
    for entry in entries:
        text = f"{entry.case.id}\t{entry.case.path}\t{entry.case.patient}\t{entry.path.name}\n"
        digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _pairs(entries: Sequence[PreparedEntry]) -> Iterable[Pair]:
    from functools import lru_cache

    from voco.data.alignment import read_detail
    from voco.data.alike import alike_within
    from voco.data.fingerprint import Fingerprints

    detail = lru_cache(maxsize=16)(read_detail)
    for alike in alike_within(Fingerprints.of_entries(entries)):
        one, two = entries[alike.one], entries[alike.two]
        same = one.case.patient == two.case.patient
        if same and (not alike.is_equal or one.case.path == two.case.path):
            continue  # one scan may be several cases of a patient, such as its two lungs
        agreement, difference, overlap = 1.0, 0.0, 1.0
        if not alike.is_equal:
            result = _aligned(detail(one.path), detail(two.path), alike)
            agreement, difference, overlap = result.correlation, result.difference_hu, result.overlap
        yield Pair(
            one.case.path, two.case.path, one.case.id, two.case.id, one.case.patient, two.case.patient,
            alike.how, alike.score, agreement, difference, overlap,
            alike.is_equal or proves(alike.score if alike.fit is not None else 0.0, agreement),
        )  # fmt: skip


def proves(score: float, agreement: float) -> bool:
    """Whether two scans are one, by the score of their landmarks and the correlation of their aligned fine detail."""
    return agreement >= CONFIRMED or (score >= SURE_SCORE and agreement >= SURE_CONFIRMED)


def _aligned(one, two, alike):
    from voco.data.alignment import agree, box_to_box

    turn, shift = (alike.fit.turn, alike.fit.shift) if alike.fit is not None else box_to_box(one, two)
    return agree(one, two, turn, shift)


def refuse_parted(duplicates: Duplicates, parts: Sequence[Mapping[str, str]], what: str, option: str) -> list[Pair]:
    """Stop where a split that was given has the same scan on two sides.

    Args:
        duplicates: of the cohort.
        parts: case id to part, of each fold.
        what: which split it is, for the message.
        option: what goes on all the same, for the message; empty where it was given.

    Returns:
        The pairs that are parted, where they are allowed.

    Raises:
        InputError: there are such pairs.
    """
    pairs = list(dict.fromkeys(pair for fold in parts for pair in duplicates.parted(fold)))
    if pairs and option:
        lines = [f"  {p.path_a} ({p.patient_a}) and {p.path_b} ({p.patient_b}): {_evidence(p)}" for p in pairs[:_SHOWN]]
        more = [f"  and {len(pairs) - _SHOWN} more, see {FILE}"] if len(pairs) > _SHOWN else []
        raise InputError(
            f"{what} puts the same scan on two sides, {len(pairs)} times:\n"
            + "\n".join([*lines, *more])
            + "\nGive both scans one patient in the list of scans and one part in the split, or leave the split out, "
            f"so that one is made that keeps them together; {option} goes on all the same, and the results will say so"
        )
    return pairs


def _evidence(pair: Pair) -> str:
    if pair.how == "voxels":
        return "equal voxels"
    if pair.how == "tissue":
        return "equal voxels, mirrored, turned or padded"
    return f"voxels correlate by {pair.agreement:.2f} once aligned"


# Distinct synthetic patients, who are more alike than people are; measured in docs/leaks.md. Share of pairs whose
# landmarks score above a start and how fast it falls beyond; mean and standard deviation (Fisher z) of the correlation
# of pictures, and of the fine detail of the pairs with the best scores once aligned.
_SCORE_SHARE, _SCORE_START, _SCORE_SCALE = 0.0127, 0.25, 0.31
_PICTURE_Z, _AGREEMENT_Z = (1.137, 0.222), (0.559, 0.085)


def expected_false_merges(scans: int) -> float:
    """How many pairs of distinct people a cohort of this size is expected to merge, at most.

    A pair is merged where it becomes a candidate (landmarks: exponential tail; pictures: normal in Fisher's z) and its
    aligned voxels agree (normal in Fisher's z), both as among synthetic patients of one body region.

    Args:
        scans: of different people.
    """
    from scipy.stats import norm

    from voco.data.alike import CANDIDATE_SCORE, PICTURE_CORRELATION

    def beyond(correlation: float, mean: float, deviation: float) -> float:
        return float(norm.sf((math.atanh(correlation) - mean) / deviation))

    def scores(least: float) -> float:
        return _SCORE_SHARE * math.exp(-(least - _SCORE_START) / _SCORE_SCALE)

    agree, nearly = beyond(CONFIRMED, *_AGREEMENT_Z), beyond(SURE_CONFIRMED, *_AGREEMENT_Z)
    candidates = scores(CANDIDATE_SCORE) + beyond(PICTURE_CORRELATION, *_PICTURE_Z)
    return scans * (scans - 1) / 2 * (candidates * agree + scores(SURE_SCORE) * (nearly - agree))
