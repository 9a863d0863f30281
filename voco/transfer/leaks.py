"""Whether the cases of a task were seen in the pretraining of an encoder, case by case, with the evidence.

What is known of a pretraining are fingerprints of its scans (runs of this project), or the list of its public data sets
(published weights). Where neither is known, the verdict is ``unknown``. Where something is known and nothing was found,
the evidence says what was looked for. See docs/leaks.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from voco.data.alike import PICTURE_CORRELATION, landmark_pairs
from voco.data.fingerprint import Fingerprints, data_set_digest
from voco.data.pictures import nearest
from voco.errors import InputError
from voco.files import write_text
from voco.methods import METHODS
from voco.transfer.data_sets import canonical_name, is_not_ct, shared, with_parts

if TYPE_CHECKING:
    import pandas as pd

    from voco.data.prepare import PreparedEntry

# From worst to best; a case gets the worst that any of the trainings gives it.
NO_MATCH = "no match found"
VERDICTS = ("seen", "near-duplicate", "same patient", "same data set", "unknown", NO_MATCH)
REFUSED = ("seen", "near-duplicate", "same patient")
FILE = "leaks.csv"
_FORMER = {"clean": NO_MATCH}  # as files of earlier versions call it
_LOOKED = (
    "looked for: equal voxels, also mirrored, turned by right angles or padded; copies that were resampled, windowed, "
    "mirrored, turned, or cut in any direction; patients' names"
)
_LOOKED_OLD = (
    "looked for: equal voxels; copies that were resampled, windowed or mirrored, or lost some slices; patients' names. "
    "Not looked for: copies that were turned, cut or padded, since the fingerprints are of an older kind"
)
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """One training that an encoder went through.

    Attributes:
        name: for people.
        fingerprints: of its scans; None where it left none.
        data_sets: names of its public data sets; None where they are not known.
        why_unknown: reason, where neither is known.
    """

    name: str
    fingerprints: Fingerprints | None = None
    data_sets: tuple[str, ...] | None = None
    why_unknown: str = ""


def sources_of(encoder) -> list[Source]:
    """The trainings of an encoder, oldest first; none for one that starts from scratch.

    Args:
        encoder: a ``voco.encoders.Encoder``, or the path of an encoder or run folder.

    Raises:
        InputError: a path that holds no encoder, or a damaged file of fingerprints.
    """
    if isinstance(encoder, str | Path):
        from voco.weights.folder import read_config, read_fingerprints

        config = read_config(encoder)
        if config is None:
            raise InputError(f"{encoder} is no encoder or run folder: it has no config.json of an encoder")
        history, files = config["provenance"], read_fingerprints(encoder)
    else:
        history, files = encoder.provenance, encoder.fingerprints
    return [_source(number, entry, files) for number, entry in enumerate(history, 1)]


def _source(number: int, entry: dict, files: dict[str, bytes]) -> Source:
    title = entry.get("method") or entry.get("source") or "training"
    name = f"training {number} ({title})"
    if file := entry.get("fingerprints"):
        if file not in files:
            return Source(name, why_unknown=f"its {file} is missing beside the encoder")
        return Source(name, fingerprints=Fingerprints.from_bytes(files[file], file))
    if _samples(entry) == "clips":
        return Source(name, data_sets=())  # nobody's scans
    if "method" in entry:
        sets = tuple(map(str, entry.get("data_sets", ())))
        return Source(name, data_sets=sets, why_unknown="the run left no fingerprints of its scans")
    if entry.get("file_is_the_published_one") is False:
        return Source(name, why_unknown=f"its file {entry.get('file')} is not the published one")
    names = entry.get("data") or ([entry["dataset"]] if entry.get("dataset") else [])
    if isinstance(names, str):
        names = [names]
    if "unknown" in names:
        return Source(
            name, data_sets=tuple(map(str, names)), why_unknown="its authors do not say all it was trained on"
        )
    if strange := [item for item in names if canonical_name(str(item)) is None]:
        return Source(
            name, data_sets=tuple(map(str, names)), why_unknown=f"what {', '.join(map(str, strange))} holds is unknown"
        )
    if not names:
        return Source(name, why_unknown="where its weights come from is not known")
    return Source(name, data_sets=tuple(map(str, names)))


def _samples(entry: dict) -> str:
    """What a training saw, ``scans`` or ``clips``: the method says it; that of a plugin need not be there any more."""
    method = entry.get("method")
    return METHODS[method].source if method in METHODS else str(entry.get("samples", ""))


class LeakGuard:
    """Compares cases with what an encoder was trained on.

    Args:
        encoder: a ``voco.encoders.Encoder``, or the path of an encoder or run folder.

    Raises:
        InputError: a path that holds no encoder, or a damaged file of fingerprints.
    """

    def __init__(self, encoder):
        self.sources = sources_of(encoder)

    def verdicts(
        self, entries: Sequence[PreparedEntry] | Fingerprints, data_sets: Sequence[str], names: Sequence[str] = ()
    ) -> pd.DataFrame:
        """One row per case.

        Args:
            entries: prepared scans of the task, or their fingerprints.
            data_sets: names of the public data sets that the cases come from (``Task.data_sets``), or any other name
                for data of one's own; empty where nobody said, and then a list of public sets proves nothing.
            names: of the cases, with fingerprints; by default the ids of the entries.

        Returns:
            Columns case, verdict (one of ``VERDICTS``) and evidence, a sentence.
        """
        import pandas as pd

        if isinstance(entries, Fingerprints):
            cases, names = entries, list(names) or [str(i) for i in range(len(entries))]
        else:
            names = [entry.case.id for entry in entries]
            needed = any(source.fingerprints is not None for source in self.sources)
            cases = Fingerprints.of_entries(entries) if needed else None
        best = [(len(VERDICTS) - 1, "the encoder was trained from scratch")] * len(names)
        found = [self._judge(source, cases, len(names), tuple(data_sets)) for source in self.sources]
        if found:
            best = [min(column, key=lambda pair: pair[0]) for column in zip(*found)]
        rows = [(name, VERDICTS[rank], evidence) for name, (rank, evidence) in zip(names, best)]
        return pd.DataFrame(rows, columns=["case", "verdict", "evidence"])

    def _judge(self, source: Source, cases, count: int, data_sets: tuple[str, ...]) -> list[tuple[int, str]]:
        """(rank, evidence) of every case by one source."""
        rank, evidence = self._of_data_sets(source, data_sets)
        rows = [(VERDICTS.index(rank), f"{source.name}: {evidence}")] * count
        if source.fingerprints is None:
            return rows
        seen = source.fingerprints
        used, held = np.flatnonzero(seen.trained), np.flatnonzero(~seen.trained)
        held_out = {bytes(seen.voxels[i]) for i in held}
        patients = {bytes(row) for row in seen.patients[used] if row.any()}
        copies = _copies(cases, seen, used)
        for i in range(count):
            if i in copies:
                found = copies[i]
            elif bytes(cases.patients[i]) in patients:
                found = ("same patient", "another scan of a patient of this name was trained on")
            elif bytes(cases.voxels[i]) in held_out:
                found = (rank, f"held out of that training, so not trained on; {evidence}")
            else:
                continue
            rows[i] = (VERDICTS.index(found[0]), f"{source.name}: {found[1]}")
        return rows

    def _of_data_sets(self, source: Source, data_sets: tuple[str, ...]) -> tuple[str, str]:
        if source.fingerprints is not None:
            # Digests: a set is found under the name of any part of the task's sets, or of any set that holds it.
            mine = {data_set_digest(name): name for name in _around(data_sets)}
            looked = _LOOKED_OLD if source.fingerprints.is_old else _LOOKED
            if common := sorted(mine[d] for d in source.fingerprints.data_sets & set(mine)):
                return "same data set", f"it used scans of {', '.join(common)}, but none like this one ({looked})"
            return NO_MATCH, f"none of its {int(source.fingerprints.trained.sum())} scans is like this one ({looked})"
        listed = source.data_sets or ()
        if common := sorted(shared(listed, data_sets)):
            return "same data set", f"it was trained on {', '.join(common)}"
        if source.why_unknown:
            return "unknown", source.why_unknown
        if all(is_not_ct(name) for name in listed):
            return NO_MATCH, f"it saw no CT ({', '.join(listed) or 'videos'})"
        if not data_sets:
            return "unknown", "it was trained on public CT, and which data set the cases come from was not said"
        return NO_MATCH, f"{', '.join(data_sets)} is not among its data sets"


def _copies(cases: Fingerprints, seen: Fingerprints, used: np.ndarray) -> dict[int, tuple[str, str]]:
    """Verdict and evidence of the cases that are copies of scans that were trained on."""
    found: dict[int, tuple[str, str]] = {}
    rows, number = np.arange(len(cases)), f"of {len(seen)}"
    by_voxels = {bytes(seen.voxels[i]): int(i) for i in used}
    old = seen.is_old or cases.is_old
    by_tissue = {} if old else {bytes(seen.tissue[i]): int(i) for i in used if seen.tissue[i].any()}
    for i in rows:
        if (same := by_voxels.get(bytes(cases.voxels[i]))) is not None:
            found[int(i)] = ("seen", f"scan {same} {number} has the same voxels")
        elif by_tissue and (same := by_tissue.get(bytes(cases.tissue[i]))) is not None:
            found[int(i)] = ("seen", f"scan {same} {number} has the same voxels, mirrored, turned or padded")
    rows = np.array([i for i in rows if int(i) not in found], np.int64)
    score, where = nearest(cases.signatures[rows], seen.signatures[used])
    for i, value, near in zip(rows, score, where):
        if value >= PICTURE_CORRELATION:
            text = f"scan {int(used[near])} {number} looks the same (correlation {value:.3f})"
            found[int(i)] = ("near-duplicate", text)
    if not old:
        rows = np.array([i for i in rows if int(i) not in found], np.int64)
        best: dict[int, float] = {}
        for pair in landmark_pairs(cases, seen, rows, used):
            if pair.score > best.get(pair.one, 0.0):
                best[pair.one] = pair.score
                text = f"{pair.fit.inliers} landmarks of scan {pair.two} {number} fit it (score {pair.score:.1f})"
                found[pair.one] = ("near-duplicate", text)
    return found


def _around(names: Sequence[str]) -> set[str]:
    """The sets, what they hold, and every known set that has a part in common with them."""
    from voco.transfer.data_sets import CT

    own = with_parts(names)
    return set(own) | {name for name in CT if with_parts([name]) & own} | set(names)


def summary(verdicts: pd.DataFrame) -> str:
    """One line: how many cases have which verdict, worst first."""
    count = Counter(_FORMER.get(name, name) for name in verdicts["verdict"])
    return "; ".join(f"{count[name]} {name}" for name in VERDICTS if count[name]) or "no case"


def write_leaks(verdicts: pd.DataFrame, out: str | Path) -> Path:
    """Write ``leaks.csv`` into a folder; returns its path."""
    path = Path(out) / FILE
    return write_text(path, verdicts.to_csv(index=False))


def refuse_seen(verdicts: pd.DataFrame, allow_seen: bool = False) -> None:
    """Stop before a test set is opened whose scans or patients the encoder has seen.

    Args:
        verdicts: of the test cases.
        allow_seen: go on all the same.

    Raises:
        InputError: a case is ``seen``, a ``near-duplicate`` of what was seen, or another scan of the ``same patient``.
    """
    bad = verdicts[verdicts["verdict"].isin(REFUSED)]
    if allow_seen or bad.empty:
        return
    lines = [f"  {row.case}: {row.verdict}, {row.evidence}" for row in bad.head(_SHOWN).itertuples()]
    more = [f"  and {len(bad) - _SHOWN} more, see {FILE}"] if len(bad) > _SHOWN else []
    raise InputError(
        f"{len(bad)} of {len(verdicts)} test scans, or their patients, were in the training of the encoder "
        f"({summary(verdicts)}):\n"
        + "\n".join([*lines, *more])
        + "\nTake another encoder, or one pretrained without these patients (pretrain/run.py --data.exclude FILE); "
        "--allow_seen opens the test set all the same, and the results will say so"
    )
